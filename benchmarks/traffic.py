"""What crosses the links in one evaluation, in bytes, for models of their real size; and what a
ControlNet adds to the messages of the host.

    python3 dev.py python -m benchmarks.traffic [--stages 2] [--batch 2]

The models are on the meta device: nothing is loaded and nothing computed. Cuts are those that the
workers would make (costs.py, cuts.py), links those of the layout.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Subject:
    """A model of its real size, and the inputs of one evaluation."""

    label: str
    path: str
    config: dict[str, Any]
    x: tuple[int, ...]  # without the batch
    context: tuple[int, int]
    inputs: Mapping[str, tuple[int, ...]]  # others, without the batch


SDXL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "transformer_depth_middle": 10,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 2048,
    "num_head_channels": 64,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "legacy": False,
}
FLUX = {
    **{"in_channels": 16, "out_channels": 16, "vec_in_dim": 768, "context_in_dim": 4096},
    **{"hidden_size": 3072, "mlp_ratio": 4.0, "num_heads": 24, "depth": 19},
    **{"depth_single_blocks": 38, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2},
    **{"qkv_bias": True, "guidance_embed": True, "txt_ids_dims": []},
}
WAN = {
    **{"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    **{"text_dim": 4096, "in_dim": 16, "out_dim": 16},
}
SUBJECTS = (
    Subject(
        "SDXL, 1024x1024",
        "modules.diffusionmodules.openaimodel:UNetModel",
        *(SDXL, (4, 128, 128), (77, 2048), {"y": (2816,)}),
    ),
    Subject(
        "Flux.1, 1024x1024",
        "flux.model:Flux",
        *(FLUX, (16, 128, 128), (256, 4096), {"y": (768,), "guidance": ()}),
    ),
    Subject(
        "Wan 2.1 14B, 832x480, 81 frames",
        "wan.model:WanModel",
        *(WAN, (16, 21, 60, 104), (512, 4096), {}),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2)
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    print("| model | N | from, to | what | MB per evaluation |\n|---|---|---|---|---|")
    for subject in SUBJECTS:
        for way, what, megabytes in traffic(subject, options.stages, options.batch):
            row = [subject.label, options.stages, way, what, f"{megabytes:.1f}"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


def traffic(subject: Subject, num_stages: int, batch: int) -> list[tuple[str, str, float]]:
    """(from and to which stage, what, megabytes) of each link, in fp16; for a UNet also of the
    residuals of a ControlNet, one for the middle and one for each skip."""
    import importlib

    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.ops
    import torch

    from asyncdiff_core.algorithm.stage import StagedModel
    from asyncdiff_core.algorithm.stages import links_between
    from asyncdiff_core.algorithm.trunk import Trunk
    from asyncdiff_core.comfyui.model.layouts import entry_of, layout_of, position_of
    from asyncdiff_core.planning.costs import measure_costs
    from asyncdiff_core.planning.cuts import cut
    from asyncdiff_core.wire.residuals import Residuals

    module, _, name = subject.path.partition(":")
    half: dict[str, Any] = {"dtype": torch.float16, "device": torch.device("meta")}
    with torch.inference_mode():
        cls = getattr(importlib.import_module(f"comfy.ldm.{module}"), name)
        how = {**half, "operations": comfy.ops.disable_weight_init}
        x = torch.empty(batch, *subject.x, **half)
        inputs = {key: torch.empty(batch, *shape, **half) for key, shape in subject.inputs.items()}
        inputs["context"] = torch.empty(batch, *subject.context, **half)
        args = x, torch.empty(batch, device="meta")
        kwargs = {**inputs, "transformer_options": {}}

        def model() -> torch.nn.Module:
            return cls(**subject.config, **how)

        measured = model()
        trunk = Trunk.of(measured, layout_of(measured))
        entry = entry_of(measured)
        costs = measure_costs(measured, trunk, args, kwargs, entry=entry, device_type="cuda")
        stages = cut(costs, [1.0] * num_stages, trunk.skips)
        whole = model()
        trunk = Trunk.of(whole, layout_of(whole))
        metas = StagedModel(whole, trunk, entry).run(args, kwargs)
    rows = []
    for link in links_between(stages, trunk.skips):
        nbytes = sum(meta.nbytes for unit in link.units for meta in metas[unit].tensors)
        names = ", ".join(trunk.units[unit].name for unit in link.units)
        rows.append((f"{link.source} -> {link.target}", names, nbytes / 1e6))
    residuals = Residuals.of(trunk, position_of(whole, "control"))
    if residuals is None or not trunk.skips:
        return rows

    def outputs(blocks: str) -> list[torch.Tensor]:
        tensors = (metas[last].tensors[0] for _, last in trunk.spans[blocks])
        return [torch.empty(tensor.shape, **half) for tensor in tensors]

    control = {"middle": outputs("middle_block"), "output": outputs("input_blocks")}
    for label, stage in (("all", ((0, len(trunk.units)),)), *enumerate(stages)):
        _, kept = residuals.for_stage(((), {"control": control}), stage)
        sizes = (r.nbytes for entries in kept["control"].values() for r in entries if r is not None)
        rows.append((f"host -> {label}", "control residuals", sum(sizes) / 1e6))
    return rows


if __name__ == "__main__":
    main()
