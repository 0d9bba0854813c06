"""Which of ComfyUI's official templates can be spread, as a page: tried now, one after the other.

    python3 dev.py python -m benchmarks.templates [--out docs/templates.md] [--only PATTERN]

Takes half an hour on two cores: nearly every model needs workers of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.compatibility import REPO_ROOT, version_of

from .page import page
from .run import (
    DIFFERENT,
    PACKAGE,
    Row,
    Trial,
    by_family,
    judged,
    templates_folder,
    write_models,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--out", type=Path, default=REPO_ROOT / "docs" / "templates.md")
    parser.add_argument("--only", default="", help="names of templates, as a regular expression")
    options = parser.parse_args()
    folder = templates_folder()
    if folder is None:
        sys.exit(f"the package {PACKAGE.replace('_', '-')} is not installed")
    rows, idle, num_partner = run(options.comfyui.resolve(), folder, options.only)
    package = importlib.metadata.version(PACKAGE)
    text = page(rows, idle, num_partner, version_of(options.comfyui.resolve()), package)
    options.out.write_text(text, encoding="utf-8")
    wrong = [row.name for row in rows if any(o.kind == DIFFERENT for o in row.outcomes)]
    print(f"{len(rows)} templates; {options.out}")
    if wrong:
        sys.exit(f"not all of them are right: {wrong}")


def run(comfyui: Path, folder: Path, only: str) -> tuple[list[Row], list[str], int]:
    """What came of the templates; those that sample no model, and how many of partners do not."""
    from demo import shapes
    from harness.comfy_server import ComfyServer
    from harness.lab import ADAPTER_PACK

    packs = [shapes.PACK, ADAPTER_PACK]
    with (
        tempfile.TemporaryDirectory() as base,
        ComfyServer(comfyui, Path(base), env={"OMP_NUM_THREADS": "1"}, more_packs=packs) as server,
    ):
        every = judged(comfyui, folder, server.get("/object_info"), only)
        sampling = {name: its for name, its in every.items() if its.samplers}
        idle = [name for name, its in every.items() if not its.samplers and not its.partner]
        possible = [its for its in sampling.values() if not its.lacking]
        trial = Trial(server, write_models(server, possible))
        rows, models = {}, None
        for name in by_family(sampling):
            if models != (models := trial.files_of(sampling[name])):
                trial.release()
            rows[name] = row = trial.row(name, sampling[name])
            told = " / ".join(f"{outcome.kind} {outcome.why}".strip() for outcome in row.outcomes)
            print(f"{name}: {told}", flush=True)
    return [rows[name] for name in sampling], idle, len(every) - len(sampling) - len(idle)


if __name__ == "__main__":
    main()
