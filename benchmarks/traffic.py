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
from pathlib import Path

from benchmarks.full_size import SUBJECTS, Built, Subject

REPO_ROOT = Path(__file__).resolve().parents[1]


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
    for subject in SUBJECTS[:3]:
        for way, what, megabytes in traffic(subject, options.stages, options.batch):
            row = [subject.label, options.stages, way, what, f"{megabytes:.1f}"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


def traffic(subject: Subject, num_stages: int, batch: int) -> list[tuple[str, str, float]]:
    """(from and to which stage, what, megabytes) of each link, in fp16; for a UNet also of the
    residuals of a ControlNet, one for the middle and one for each skip."""
    import comfy.options

    comfy.options.enable_args_parsing()
    import torch

    from asyncdiff_core.algorithm.stage import StagedModel
    from asyncdiff_core.algorithm.stages import links_between
    from asyncdiff_core.comfyui.model.layouts import position_of
    from asyncdiff_core.planning.cuts import cut
    from asyncdiff_core.wire.residuals import Residuals

    with torch.inference_mode():
        built = Built(subject, batch)
        trunk = built.trunk
        stages = cut(built.costs, [1.0] * num_stages, trunk.skips)
        metas = StagedModel(built.model, trunk, built.entry).run(built.args, built.kwargs)
    rows = []
    for link in links_between(stages, trunk.skips):
        nbytes = sum(meta.nbytes for unit in link.units for meta in metas[unit].tensors)
        names = ", ".join(trunk.units[unit].name for unit in link.units)
        rows.append((f"{link.source} -> {link.target}", names, nbytes / 1e6))
    residuals = Residuals.of(trunk, position_of(built.model, "control"))
    if residuals is None or not trunk.skips:
        return rows

    def outputs(blocks: str) -> list[torch.Tensor]:
        tensors = (metas[last].tensors[0] for _, last in trunk.spans[blocks])
        return [torch.empty(tensor.shape, **built.half) for tensor in tensors]

    control = {"middle": outputs("middle_block"), "output": outputs("input_blocks")}
    for label, stage in (("all", ((0, len(trunk.units)),)), *enumerate(stages)):
        _, kept = residuals.for_stage(((), {"control": control}), stage)
        sizes = (r.nbytes for entries in kept["control"].values() for r in entries if r is not None)
        rows.append((f"host -> {label}", "control residuals", sum(sizes) / 1e6))
    return rows


if __name__ == "__main__":
    main()
