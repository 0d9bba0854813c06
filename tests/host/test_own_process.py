"""ComfyUI's own classes without its server, in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.comfy_server import REPO_ROOT

FOLDER = Path(__file__).parent / "own_process"


@pytest.mark.timeout(900)
def test_reduced_sdxl(comfyui_path: Path) -> None:
    """SDXL's UNet: N = 2, 3, 4, batched and unbatched CFG, group against oracle and stock."""
    done = subprocess.run(
        [sys.executable, FOLDER / "sdxl_parity.py", comfyui_path, REPO_ROOT],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    held = json.loads(done.stdout.splitlines()[-1])
    assert len(held) == 2 * (3 * 5) + 2 + 6 * 3 + 1
    assert [name for name, value in held.items() if not value] == []
