"""Run a script of `own_process/`: ComfyUI's classes without its server, in their own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "own_process"


def run(script: str | Path, *arguments: str | Path, timeout: float) -> dict[str, Any]:
    """The JSON object that the script printed: what it compared, and whether it held.

    A script that stands elsewhere is given by its path. What lies beside a script goes by its own
    name, also in workers.
    """
    path = FOLDER / script
    done = subprocess.run(
        [sys.executable, path, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path.parent)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        raise RuntimeError(f"{script} failed: {done.stderr[-4000:]}")
    held: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return held
