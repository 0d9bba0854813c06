"""Every sampler of ComfyUI on a distributed model, as a table.

    python3 dev.py python -m benchmarks.samplers [--out docs/samplers.md] [--steps 6]

For each name: does it run to the end with finite output at stride 1 and at stride 2; is the result
with full warm-up the stock sampler's, bit for bit; and was the stride used, or refused because the
sampler does not evaluate the model once per step in the order of its sigmas.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "docs" / "samplers.md")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--names", nargs="*", help="only these samplers")
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"]
    rows, version = measure(options.steps, options.names)
    options.out.write_text(page(rows, options.steps, version))
    print(f"{len(rows)} samplers; {options.out}")
    if not all(row["runs"] and row["finite"] and row["exact"] for row in rows):
        sys.exit("not all of them are right")


def measure(steps: int, names: list[str] | None) -> tuple[list[dict[str, Any]], str]:
    """A row per sampler, and ComfyUI's version."""
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.samplers
    import comfyui_version
    import torch

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.run.history import last_runs
    from asyncdiff_core.comfyui.run.pool import POOL
    from harness.own_process import reduced_sdxl

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def conditioning() -> list[Any]:
        pooled = torch.randn(1, 1280, generator=generator)
        return [[torch.randn(1, 77, 128, generator=generator), {"pooled_output": pooled}]]

    positive, negative = conditioning(), conditioning()
    empty = torch.zeros(1, 4, 8, 8)
    noise = torch.randn(empty.shape, generator=generator)

    def sample(model: Any, name: str) -> torch.Tensor:
        inputs = (noise, steps, 4.0, name, "karras", positive, negative, empty)
        return comfy.sample.sample(model, *inputs, seed=5, disable_pbar=True)

    rows = []
    with torch.inference_mode():
        stock = reduced_sdxl.load()
        strided = parallelize(stock, plan_for("cpu,cpu,cpu", stages=2, stride=2))
        plain = parallelize(stock, plan_for("cpu,cpu", stages=2))
        for name in names or comfy.samplers.KSampler.SAMPLERS:
            row: dict[str, Any] = {"name": name, "runs": True, "finite": True, "exact": False}
            rows.append(row)
            try:
                expected = sample(stock, name)
                full = sample(with_schedule(plain, AsyncSchedule(10**6)), name)
                row["exact"] = torch.equal(full, expected)
                row["stride 1"] = torch.isfinite(
                    sample(with_schedule(plain, AsyncSchedule(2, prediction=True)), name)
                ).all()
                row["stride 2"] = torch.isfinite(
                    sample(with_schedule(strided, AsyncSchedule(2, prediction=True)), name)
                ).all()
                report = last_runs()[-1]
                row["stride"] = "refused" if report["refused_stride"] else "used"
                row["evaluations"] = len(report["evaluations"])
                row["finite"] = bool(row["stride 1"] and row["stride 2"])
            except Exception as error:
                row["runs"], row["why"] = False, f"{type(error).__name__}: {error}"
            print(row, flush=True)
    POOL.close()
    return rows, comfyui_version.__version__


def page(rows: list[dict[str, Any]], steps: int, version: str) -> str:
    """The table as a document."""
    lines = [
        "# Samplers",
        "",
        f"Every sampler of ComfyUI {version} on a distributed SDXL of reduced width with random",
        f"weights: {steps} steps, karras, CFG 4, warm-up 2; stride 1 on two workers, stride 2 on",
        "three. Made by",
        "",
        "    python3 dev.py python -m benchmarks.samplers",
        "",
        "*Exact*: with full warm-up the result is the stock sampler's, bit for bit. *Stride*:",
        "used, or refused, because the sampler does not evaluate the model once per step in the",
        "order of its sigmas; it then runs on with stride 1, and the log says so.",
        "",
        "| sampler | stride 1 | stride 2 | exact at full warm-up | stride | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["runs"]:
            lines.append(f"| {row['name']} | fails: {row['why']} | | | | |")
            continue
        finite = ["finite" if row[key] else "not finite" for key in ("stride 1", "stride 2")]
        exact = "yes" if row["exact"] else "no"
        cells = [row["name"], *finite, exact, row["stride"], str(row["evaluations"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
