"""Run a script of `own_process/`: ComfyUI's classes without its server, in their own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "own_process"
# ComfyUI has a package `tests` as well, so what is in ours goes by its own name.
PATHS = str(FOLDER), str(Path(__file__).parents[1])


def run(script: str, *arguments: str | Path, timeout: float) -> dict[str, Any]:
    """The JSON object that the script printed: what it compared, and whether it held."""
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(PATHS)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-4000:]}")
    held: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return held
