"""The worker group against the oracle, bit for bit, in every combination.

    python3 dev.py python -m benchmarks.parity

An SDXL of reduced width through ComfyUI's own classes: the plans (N, S, R) = (2,2,1), (3,2,1),
(2,3,1), (1,1,2), (2,1,2), (2,2,2), with warm-up 1, 2, 3, euler and dpmpp_2m, 7 and 20 steps,
denoise 1 and 0.6; and what the tests compare besides. Prints what did not hold, and how many did.
"""

from __future__ import annotations

import os
import sys

from harness.comfy_server import REPO_ROOT
from harness.processes import run

PATIENCE = 3600.0


def main() -> int:
    comfyui = os.environ["COMFYUI_PATH"]  # dev.py sets it
    held = run("sdxl_parity.py", comfyui, REPO_ROOT, "everything", timeout=PATIENCE)
    failed = [name for name, value in held.items() if not value]
    print("\n".join([*failed, f"{len(held) - len(failed)} of {len(held)} comparisons held"]))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
