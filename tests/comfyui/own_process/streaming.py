"""Run in a process of its own: stages of which a part stays in the file, against whole ones.

    python streaming.py COMFYUI PACK FOLDER

Prints one JSON object: what was compared, and whether it held.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

DEPTH = 8
MIB = 2**20


def main(comfyui: str, pack: str, folder: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch
    from safetensors.torch import save_file

    from asyncdiff_core.algorithm.stage import Neighbours
    from asyncdiff_core.comfyui.model.loading import Loader
    from asyncdiff_core.comfyui.model.skeleton import build_skeleton
    from asyncdiff_core.comfyui.model.streaming import Streaming
    from asyncdiff_core.comfyui.patches.pickling import WorkerView
    from asyncdiff_core.comfyui.patches.weight_patches import WeightChanges, pack_changes
    from asyncdiff_core.comfyui.run.launch import spec_of
    from asyncdiff_core.comfyui.stage_model import build
    from asyncdiff_core.workers.memory import _in_status, give_memory_back
    from harness import checkpoints

    torch.set_num_threads(1)
    file = Path(folder) / "sd3.safetensors"
    save_file({k: v.float() for k, v in checkpoints.sd3(DEPTH).items()}, file)
    loader = Loader("comfy.sd:load_diffusion_model", (str(file), {}))
    skeleton = build_skeleton(loader)
    spec, whole = spec_of(skeleton.model, loader), ((0, DEPTH),)
    width = checkpoints.TEXT_WIDTH
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(1, 16, 16, 16, generator=draw), torch.full((1,), 500.0)
    context = {
        "context": torch.randn(1, 7, width, generator=draw),
        "y": torch.randn(1, width, generator=draw),
    }
    units = tuple(f"joint_blocks.{index}" for index in range(DEPTH))

    def changes(strength: float) -> Any:
        """A LoRA on some layers of every block."""
        patches = {}
        for key, weight in skeleton.model.named_parameters():
            if key.endswith(("x_block.attn.qkv.weight", "x_block.mlp.fc1.bias")):
                draw = torch.Generator().manual_seed(len(patches))
                value = torch.randn(weight.shape, generator=draw)
                patches[key] = [(strength, ("diff", (value,)), 1.0, None, None)]
        assert len(patches) == 2 * DEPTH
        told = WeightChanges(str(strength), patches if strength else {})
        return pack_changes(told, units, whole, WorkerView())

    def anonymous() -> int:
        gc.collect()
        give_memory_back()
        return _in_status("RssAnon")

    def outputs(stages: Any) -> list[torch.Tensor]:
        """As loaded, with a LoRA, with another one, and as loaded once more."""
        found = []
        for strength in (None, 0.1, -0.3, 0.0):
            if strength is not None:
                stages.patch(changes(strength))
            found.append(stages.staged.run_stage(whole, inputs, context, Neighbours()))
        return found

    held, limits = {}, {}
    with torch.inference_mode():
        stages = build(spec, torch.device("cpu"))
        wanted: list[torch.Tensor] = []
        for budget in (None, 0, 60 * MIB, 200 * MIB):
            before = anonymous()
            owned, shared, streamed = stages.load(whole, budget)
            stages.verify()
            name = "all" if budget is None else f"{budget // MIB} MiB"
            grown = anonymous() - before
            found = outputs(stages)
            if budget is None:
                wanted = found
                held["nothing is streamed"] = streamed == 0
                held["patches do something"] = not torch.equal(found[0], found[1])
                held["and go again"] = torch.equal(found[0], found[3])
            else:
                stays = owned + shared - streamed
                # Position tables and the like cannot be streamed.
                held[f"{name}: no more stays"] = stays <= budget + 4 * MIB
                held[f"{name}: not much less"] = stays >= budget - 40 * MIB
                held[f"{name}: memory"] = grown <= stays + 16 * MIB
                for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
                    held[f"{name}: bits {step}"] = torch.equal(one, other)
            # What leaves a device may wait in the host's memory; here as if this were no CPU.
            stages._may_wait = lambda: True
            stages.patch(changes(0.1))
            held[f"{name}: waits"] = stages.unload(waits=True) == owned + shared
            loader_of, stages._loader = stages._loader, None  # nothing is read again
            held[f"{name}: the same bytes"] = stages.load(whole, budget) == (
                *(owned, shared, streamed),
            )
            stages._loader = loader_of
            for step, (one, other) in enumerate(zip(outputs(stages), wanted, strict=True)):
                held[f"{name}: bits {step} after it came back"] = torch.equal(one, other)
            held[f"{name}: another stage is read"] = (
                stages.unload(waits=True) > stages.load(((0, 2),), budget)[0] > 0
            )
            limits[name] = (owned + shared, streamed, grown)
            stages.unload()
    # Of another type, it goes straight to a device that has its own memory.
    layer = torch.nn.Linear(2, 3)
    for budget, kind in ((None, "meta"), (5, "cpu")):
        other = Streaming(torch.device("meta"), budget)
        value = other.value(layer, "weight", layer.weight.data.half(), layer.weight)
        held[f"another type, {budget}: where it is made"] = value.device.type == kind
        value = other.value(layer, "weight", layer.weight.data, layer.weight)
        held[f"its own type, {budget}: stays in the file"] = (
            value.data_ptr() == layer.weight.data_ptr()
        )
    print({k: [x // MIB for x in v] for k, v in limits.items()}, file=sys.stderr)
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
