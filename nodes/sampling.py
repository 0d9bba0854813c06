"""Nodes that choose the schedule, and samplers that include them."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

import nodes as comfy_nodes

from ..asyncdiff_core.algorithm.schedule import AUTO_WARM_UP
from ..asyncdiff_core.comfyui.distribute import (
    ensure_distributed,
    require_finite,
    with_schedule,
)
from .loaders import CATEGORY


def schedule_inputs() -> list[io.Input]:
    """The inputs of an asynchronous schedule."""
    return [
        io.Int.Input(
            "warm_up",
            default=AUTO_WARM_UP,
            min=AUTO_WARM_UP,
            max=10000,
            tooltip="How many first evaluations (with most samplers, steps) run synchronously, "
            "exactly as on one device. More: closer to the single-device image. Fewer: faster. 0: "
            "one for every eight steps, three at most.",
        ),
        io.Boolean.Input(
            "time_shift",
            default=False,
            advanced=True,
            optional=True,
            tooltip="Give every evaluation after the warm-up the timestep of the one before. Can "
            "help against residual noise with many stages and a stride.",
        ),
    ]


def sampler_inputs() -> list[io.Input]:
    """The inputs that KSampler and KSamplerAdvanced share, from `steps` to `latent_image`."""
    return [
        io.Int.Input("steps", default=20, min=1, max=10000, tooltip="The number of steps."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How strongly the image follows the prompt.",
        ),
        io.Combo.Input(
            "sampler_name",
            options=comfy.samplers.KSampler.SAMPLERS,
            tooltip="The sampling algorithm.",
        ),
        io.Combo.Input(
            "scheduler",
            options=comfy.samplers.KSampler.SCHEDULERS,
            tooltip="How the noise is reduced from step to step.",
        ),
        io.Conditioning.Input("positive", tooltip="What the image should contain."),
        io.Conditioning.Input("negative", tooltip="What the image should not contain."),
        io.Latent.Input("latent_image", tooltip="The latent image to denoise."),
    ]


def model_input() -> io.Input:
    """A MODEL, distributed or not."""
    return io.Model.Input(
        "model",
        tooltip="The MODEL to sample. One of ComfyUI's own is spread over all devices, if it can "
        "be.",
    )


class AsyncDiffSchedule(io.ComfyNode):
    """Set the schedule of a distributed MODEL, for any of ComfyUI's sampler nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffSchedule",
            display_name="Schedule (AsyncDiff)",
            category=CATEGORY,
            description="Sets how many first steps of a distributed MODEL run synchronously, for "
            "use with any sampler node.",
            search_aliases=["async schedule", "warm up"],
            inputs=[model_input(), *schedule_inputs()],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: io.Model.Type, warm_up: int, time_shift: bool = False) -> io.NodeOutput:
        return io.NodeOutput(with_schedule(ensure_distributed(model), warm_up, time_shift))


class AsyncDiffKSampler(io.ComfyNode):
    """KSampler on several devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffKSampler",
            display_name="KSampler (AsyncDiff)",
            category=CATEGORY,
            description="KSampler, with the model's stages working at the same time. A MODEL of "
            "ComfyUI's own loaders is spread over all devices by itself.",
            search_aliases=["multi gpu ksampler", "parallel ksampler", "async ksampler"],
            inputs=[
                model_input(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the noise.",
                ),
                *sampler_inputs(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the image is made anew.",
                ),
                *schedule_inputs(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, warm_up: int, time_shift: bool = False, **sampling: Any
    ) -> io.NodeOutput:
        require_finite(cfg=sampling["cfg"], denoise=sampling["denoise"])
        model = with_schedule(ensure_distributed(model), warm_up, time_shift)
        return io.NodeOutput(*comfy_nodes.KSampler().sample(model, **sampling))


class AsyncDiffKSamplerAdvanced(io.ComfyNode):
    """KSampler (Advanced) on several devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AsyncDiffKSamplerAdvanced",
            display_name="KSampler Advanced (AsyncDiff)",
            category=CATEGORY,
            description="KSampler (Advanced), with the model's stages working at the same time. A "
            "MODEL of ComfyUI's own loaders is spread over all devices by itself.",
            search_aliases=["multi gpu ksampler advanced", "async ksampler advanced"],
            inputs=[
                model_input(),
                io.Combo.Input(
                    "add_noise",
                    options=["enable", "disable"],
                    tooltip="Whether noise is added before the first step.",
                ),
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The seed of the noise.",
                ),
                *sampler_inputs(),
                io.Int.Input(
                    "start_at_step", default=0, min=0, max=10000, tooltip="The first step to run."
                ),
                io.Int.Input(
                    "end_at_step",
                    default=10000,
                    min=0,
                    max=10000,
                    tooltip="The step before which to stop.",
                ),
                io.Combo.Input(
                    "return_with_leftover_noise",
                    options=["disable", "enable"],
                    tooltip="Whether the noise of the steps that were not run is left in.",
                ),
                *schedule_inputs(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls, model: io.Model.Type, warm_up: int, time_shift: bool = False, **sampling: Any
    ) -> io.NodeOutput:
        require_finite(cfg=sampling["cfg"])
        model = with_schedule(ensure_distributed(model), warm_up, time_shift)
        return io.NodeOutput(*comfy_nodes.KSamplerAdvanced().sample(model, **sampling))
