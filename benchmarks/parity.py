"""The worker group against the oracle, bit for bit, in every combination.

    python3 dev.py python -m benchmarks.parity

An SDXL of reduced width through ComfyUI's own classes: the plans (N, S, R) = (2,2,1), (3,2,1),
(2,3,1), (1,1,2), (2,1,2), (2,2,2), with warm-up 1, 2, 3, euler and dpmpp_2m, 7 and 20 steps,
denoise 1 and 0.6; and what the tests compare besides. Prints what did not hold, and how many did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
SCRIPT = REPO_ROOT / "tests" / "host" / "own_process" / "sdxl_parity.py"


def main() -> int:
    comfyui = os.environ["COMFYUI_PATH"]  # dev.py sets it
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent)}
    env["TQDM_DISABLE"] = "1"  # thousands of bars
    command = [sys.executable, str(SCRIPT), comfyui, str(REPO_ROOT), "everything"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    held: dict[str, bool] = json.loads(done.stdout.splitlines()[-1])
    failed = [name for name, value in held.items() if not value]
    print("\n".join([*failed, f"{len(held) - len(failed)} of {len(held)} comparisons held"]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
