"""Run in a process of its own: Z-Image's Fun ControlNets, cut at every place.

    python flowing.py COMFYUI PACK

Prints one JSON object of what was compared, and whether it held.
"""

from __future__ import annotations

import json
import sys

PATCHED = ("noise_refiner", "layers")


def main(comfyui: str, pack: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.latent_formats
    import comfy.ops
    import torch
    from comfy.ldm.lumina.controlnet import ZImage_Control
    from comfy_extras.nodes_model_patch import ZImageControlPatch

    from asyncdiff_core.algorithm.activations import OutputMeta
    from asyncdiff_core.algorithm.oracle import Oracle
    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.algorithm.stage import StagedModel
    from asyncdiff_core.algorithm.trunk import Trunk
    from asyncdiff_core.comfyui.model.layouts import entry_of, layout_of
    from asyncdiff_core.comfyui.patches.code_patches import _new_containers
    from asyncdiff_core.comfyui.patches.flowing import flow_of
    from harness.cuts import chain
    from harness.own_process.architectures import ARCHITECTURES, fill

    torch.set_num_threads(1)

    class Encoder:
        """A VAE with the four channels of the tests' Z-Image."""

        def spacial_compression_encode(self) -> int:
            return 8

        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            shape = len(pixels), 16, pixels.shape[1] // 8, pixels.shape[2] // 8
            return torch.randn(shape, generator=torch.Generator().manual_seed(5))

    class Patcher:
        def __init__(self, model: torch.nn.Module) -> None:
            self.model = model

    def patches(*kinds: dict) -> dict:
        """Of some ControlNets at once, as ComfyUI's node puts them into the options."""
        made = []
        for kind in kinds:
            sizes = {"dim": 256, "n_heads": 4, "n_kv_heads": 4, "multiple_of": 16}
            sizes |= {"ffn_dim_multiplier": 1.0, **kind}
            model = ZImage_Control(**sizes, dtype=torch.float32, operations=comfy.ops.manual_cast)
            fill(model)
            picture = torch.zeros(1, 80, 112, 3)
            made.append(ZImageControlPatch(Patcher(model), Encoder(), picture, 0.8))
        return {"patches": {"noise_refiner": made, "double_block": [*made]}}

    calls = []
    call = ZImageControlPatch.__call__

    def counted(self: object, args: dict) -> object:
        calls.append(args["block_index"])
        return call(self, args)

    ZImageControlPatch.__call__ = counted
    architecture = next(one for one in ARCHITECTURES if one.label == "Z-Image")

    def compare(*kinds: dict) -> dict[str, bool]:
        model = architecture.build()
        entry = entry_of(model)
        options = patches(*kinds)

        def evaluation(number: int) -> tuple:
            (x, timestep), inputs = architecture.evaluation(number)
            return (x[..., :10, :14], timestep), inputs

        def plain(number: int, options: dict) -> torch.Tensor:
            args, inputs = evaluation(number)
            inputs["transformer_options"] = _new_containers(options)
            return getattr(model, entry)(*args, **inputs)

        expected = [plain(number, options) for number in range(3)]
        held = {"it does something": not torch.equal(plain(0, {}), expected[0])}
        trunk = Trunk.of(model, layout_of(model))
        staged = StagedModel(model, trunk, entry)
        staged.poisons_scratch = True

        structures: dict[int, set] = {}  # of what crosses with each unit

        class Noting:
            """A flow, of which that is noted."""

            def __init__(self, flow: object) -> None:
                self.enter, self._leave = flow.enter, flow.leave

            def leave(self, unit: int, args: tuple) -> object:
                left = self._leave(unit, args)
                structures.setdefault(unit, set()).add(str(OutputMeta.of(left)))
                return left

        def run(stages: list, warm_up: int) -> list:
            oracle = Oracle(staged, stages)
            oracle.begin_run(AsyncSchedule(warm_up))
            outputs = []
            for number in range(3):
                # What a worker has left of another evaluation, if its stage ends early.
                other = (-1, (None, torch.full((2, 35, 256), torch.nan))) if number else None
                for patch in options["patches"]["double_block"]:
                    patch.temp_data = other
                args, inputs = evaluation(number)
                code = _new_containers(options)
                staged.beside = Noting(flow_of(code, lambda: staged))
                inputs["transformer_options"] = code
                outputs.append(oracle.evaluate("lane", args, inputs))
            oracle.end_run()
            return outputs

        text = len(trunk.spans["context_refiner"])  # is the same in all evaluations
        for place in range(1, len(trunk.units)):
            stages = chain((0, place), (place, len(trunk.units)))
            name = f"cut before {trunk.units[place].name}"
            calls.clear()
            pairs = zip(run(stages, 3), expected, strict=True)
            num_once = 3 * len(kinds) * sum(len(trunk.spans[one]) for one in PATCHED)
            held[f"{name}, each block once"] = len(calls) == num_once
            held[name] = all(torch.equal(ours, whole) for ours, whole in pairs)
            pairs = zip(run(stages, 1)[1:], expected[1:], strict=True)
            held[f"{name}, async"] = all(
                bool(torch.isfinite(ours).all()) and torch.equal(ours, whole) == (place <= text)
                for ours, whole in pairs
            )
        held["what crosses has one structure"] = all(len(one) == 1 for one in structures.values())
        return held

    every = {"n_control_layers": 30}
    refined = {"n_control_layers": 15, "refiner_control": True, "additional_in_dim": 17}
    held = {}
    for name, kinds in {
        "first version": [{"n_control_layers": 15}],
        "every layer": [every],
        "2.0": [{**refined, "broken": True}],
        "2.1": [refined],
        "two at once": [refined, every],
    }.items():
        held |= {f"{name}: {what}": value for what, value in compare(*kinds).items()}
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
