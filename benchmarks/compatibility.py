"""Which models and which changes to models work, as a page: tried now, one after the other.

    python3 dev.py python -m benchmarks.compatibility [--out docs/compatibility.md]

Runs what tests/host/test_architectures.py and tests/host/test_features.py run, and writes down what
came of it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
STAGES = (2, 3, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "docs" / "compatibility.md")
    options = parser.parse_args()
    comfyui = options.comfyui.resolve()
    architectures = run_architectures(comfyui)
    features = run_features(comfyui)
    options.out.write_text(page(architectures, features, version_of(comfyui)))
    wrong = [row for row in (*architecture_rows(architectures), *features) if "no" in row]
    print(f"{len(architectures)} architectures, {len(features)} features; {options.out}")
    if wrong:
        sys.exit(f"not all of them are right: {wrong}")


def version_of(comfyui: Path) -> str:
    code = "import comfyui_version; print(comfyui_version.__version__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=comfyui, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_architectures(comfyui: Path) -> dict[str, Any]:
    from tests.host.processes import run

    return run("architecture_parity.py", comfyui, REPO_ROOT, timeout=1800)


def run_features(comfyui: Path) -> list[tuple[str, str, str]]:
    """(name, the model that it was tried on, what came of it) of each feature."""
    from demo import shapes
    from demo.comfy_server import ComfyServer
    from tests.host.features import FEATURES, outcome, write_files
    from tests.host.lab import ADAPTER_PACK, write_models

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        env, packs = {"OMP_NUM_THREADS": "1"}, [shapes.PACK, ADAPTER_PACK]
        with ComfyServer(comfyui, Path(folder), env=env, more_packs=packs) as server:
            write_models(server.models)
            write_files(server.models)
            for feature in FEATURES:
                try:
                    result = outcome(server, feature)
                except Exception as error:
                    result = f"no: {type(error).__name__}: {error}".splitlines()[0]
                rows.append((feature.name, feature.kind, result))
                print(*rows[-1], sep=": ", flush=True)
    return rows


def architecture_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for label, row in report.items():
        if "error" in row:
            rows.append((label, "", row["error"].splitlines()[-1], "no"))
            continue
        held = row["held"]
        exact = ["yes" if held[f"N={n}"] and held["cut anywhere"] else "no" for n in STAGES]
        is_async = held["async differs"] and all(held[f"N={n} async"] for n in STAGES)
        rows.append((label, f"`{row['class']}`", *exact, "yes" if is_async else "no"))
    return rows


def page(report: dict[str, Any], features: list[tuple[str, str, str]], version: str) -> str:
    """The tables as a document."""
    kinds = {"sd15": "SD 1.5", "sd3": "SD3", "flux": "Flux.1", "wan": "Wan 2.1"}
    lines = [
        "# Compatibility",
        "",
        f"What was tried with ComfyUI {version}, on the CPU, and what came of it. Made by",
        "",
        "    python3 dev.py python -m benchmarks.compatibility",
        "",
        "## Architectures",
        "",
        "Tiny models with random weights, of ComfyUI's own classes, in one process. *Exact*: with",
        "full warm-up, *N* stages one after the other give the bits of the plain forward; so do",
        "two stages with the cut at every other place. *Async*: with a warm-up of one the stages",
        "give the bits that the algorithm's definition gives, for N = 2, 3 and 4.",
        "",
        "| models | ComfyUI's class | exact, N=2 | N=3 | N=4 | async |",
        "|---|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in architecture_rows(report)),
        "",
        "## What people do to models",
        "",
        "Small models on a live server with two workers. *exact*: with full warm-up the result has",
        "the bits of the stock one, and is another one than without the feature. *refused*: an",
        "error names what is in the way.",
        "",
        "| what | tried on | result |",
        "|---|---|---|",
        *(f"| {name} | {kinds[kind]} | {result} |" for name, kind, result in features),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
