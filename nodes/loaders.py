"""Nodes that give a MODEL spread over several devices."""

from __future__ import annotations

import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io

from ..asyncdiff_core.comfyui.distribute import load_distributed, parallelize, plan_for
from ..asyncdiff_core.comfyui.model.loading import Loader
from ..asyncdiff_core.comfyui.run.launch import state_of

CATEGORY = "AsyncDiff"
WEIGHT_DTYPES = ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")


def plan_inputs() -> list[io.Input]:
    """The inputs by which a node places a model on devices."""
    return [
        io.String.Input(
            "devices",
            default="auto",
            tooltip="Where the stages run: 'auto' for every GPU (without GPUs, two CPU workers), "
            "or a list such as 'cuda:0,cuda:1'. The same device may stand twice. In the "
            "browser, a list with devices of another machine gives way to 'auto', with a warning.",
        ),
        io.Int.Input(
            "stages",
            default=0,
            min=0,
            max=64,
            advanced=True,
            optional=True,
            tooltip="Into how many stages the model is cut. 0: with 'auto' chosen in every run, "
            "with a list as many as the devices allow.",
        ),
        io.Int.Input(
            "replicas",
            default=0,
            min=0,
            max=64,
            advanced=True,
            optional=True,
            tooltip="How many copies of the pipeline share cond and uncond. 0: with 'auto' chosen "
            "in every run, with a list one.",
        ),
        io.Int.Input(
            "stride",
            default=1,
            min=1,
            max=16,
            advanced=True,
            optional=True,
            tooltip="How many steps share one pass through the model. Each one above 1 takes one "
            "more device per replica. Samplers with several evaluations per step run with 1. With "
            "'auto', 1 leaves it open whether devices take consecutive steps in place of stages.",
        ),
    ]


def state_in(folder: str, name: str) -> tuple[int, int] | None:
    """See state_of: if it changes, the loader runs again, as workers would read the new file."""
    path = folder_paths.get_full_path(folder, name)
    return None if path is None else state_of(path)


class AsyncDiffCheckpointLoader(io.ComfyNode):
    """Load Checkpoint, with the diffusion model spread over devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffCheckpointLoader",
            display_name="Load Checkpoint (AsyncDiff)",
            category=CATEGORY,
            description="Load Checkpoint, with the diffusion model cut into stages, each on a "
            "device of its own. Every device holds only its share of the weights.",
            search_aliases=["multi gpu checkpoint", "parallel checkpoint", "async checkpoint"],
            inputs=[
                io.Combo.Input(
                    "ckpt_name",
                    options=folder_paths.get_filename_list("checkpoints"),
                    tooltip="The checkpoint to load.",
                ),
                *plan_inputs(),
            ],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, ckpt_name: str, **_: object) -> tuple[int, int] | None:
        return state_in("checkpoints", ckpt_name)

    @classmethod
    def execute(
        cls, ckpt_name: str, devices: str, stages: int = 0, replicas: int = 0, stride: int = 1
    ) -> io.NodeOutput:
        plan = plan_for(devices, stages, replicas, stride)
        path = folder_paths.get_full_path_or_raise("checkpoints", ckpt_name)
        embeddings = folder_paths.get_folder_paths("embeddings")
        loader = Loader(
            "comfy.sd:load_checkpoint_guess_config", (path, False, False, False, embeddings), 0
        )
        model = load_distributed(loader, plan)
        _, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
            path, embedding_directory=embeddings, output_model=False
        )
        return io.NodeOutput(model, clip, vae)


class AsyncDiffDiffusionModelLoader(io.ComfyNode):
    """Load Diffusion Model, spread over devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffDiffusionModelLoader",
            display_name="Load Diffusion Model (AsyncDiff)",
            category=CATEGORY,
            description="Load Diffusion Model, cut into stages, each on a device of its own. Every "
            "device holds only its share of the weights.",
            search_aliases=["multi gpu unet", "parallel unet", "async unet", "load unet"],
            inputs=[
                io.Combo.Input(
                    "unet_name",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="The diffusion model to load.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    advanced=True,
                    tooltip="The type in which the weights are kept, as in Load Diffusion Model.",
                ),
                *plan_inputs(),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def fingerprint_inputs(cls, unet_name: str, **_: object) -> tuple[int, int] | None:
        return state_in("diffusion_models", unet_name)

    @classmethod
    def execute(
        cls,
        unet_name: str,
        weight_dtype: str,
        devices: str,
        stages: int = 0,
        replicas: int = 0,
        stride: int = 1,
    ) -> io.NodeOutput:
        plan = plan_for(devices, stages, replicas, stride)
        path = folder_paths.get_full_path_or_raise("diffusion_models", unet_name)
        options: dict[str, object] = {}
        if weight_dtype.startswith("fp8_e4m3fn"):
            options["dtype"] = torch.float8_e4m3fn
        elif weight_dtype == "fp8_e5m2":
            options["dtype"] = torch.float8_e5m2
        if weight_dtype.endswith("_fast"):
            options["fp8_optimizations"] = True
        loader = Loader("comfy.sd:load_diffusion_model", (path, options))
        return io.NodeOutput(load_distributed(loader, plan))


class AsyncDiffParallelize(io.ComfyNode):
    """Spread a MODEL from any of ComfyUI's loaders over devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffParallelize",
            display_name="Parallelize Model (AsyncDiff)",
            category=CATEGORY,
            description="Cuts a MODEL from any of ComfyUI's loaders into stages, each on a device "
            "of its own. LoRAs and other patches on the MODEL are kept.",
            search_aliases=[
                "multi gpu",
                "parallel model",
                "distribute model",
                "split model",
                "faster",
            ],
            inputs=[io.Model.Input("model", tooltip="The MODEL to spread."), *plan_inputs()],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, devices: str, stages: int = 0, replicas: int = 0, stride: int = 1
    ) -> io.NodeOutput:
        return io.NodeOutput(parallelize(model, plan_for(devices, stages, replicas, stride)))
