"""What /free gives back, of what the workers of a model hold.

The model is an SD3 of 250 million parameters, so that weights are most of what there is. Measured
is the memory of the processes as Linux counts it, file pages left out: before the weights are
loaded, after a prompt, and after /free.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from harness import checkpoints, lab
from harness.comfy_server import ComfyServer

from . import live
from .live import Watch
from .processes import resident_bytes, wait_until

DEPTH = 12
SETTLE_SECONDS = 60.0
MIN_SHARE = 0.95  # of what was held


def measure(server: ComfyServer, watch: Watch, depth: int = DEPTH) -> dict[str, Any]:
    """Bytes before, with and after; the share that came back; what should not have been."""
    file = server.models / "diffusion_models" / f"sd3-{depth}.safetensors"
    checkpoints.write_sd3(file, depth=depth)
    flow = lab.asyncdiff(lab.workflow("sd3", steps=3))
    flow["model"]["inputs"]["unet_name"] = file.name
    live.release(server)
    # Canceled while its workers start, so that they come up and hold nothing.
    prompt = watch.send(flow)
    wait_until(lambda: live.workers(server), SETTLE_SECONDS)
    server.post("/interrupt", {"prompt_id": prompt.id})
    ended = prompt.end(SETTLE_SECONDS).kind
    problems = [] if ended == "execution_interrupted" else [f"the first prompt: {ended}"]
    _settle(server)
    before = _resident(server)

    expected = lab.latent(server, flow)
    loaded = _resident(server)
    lab.free(server, SETTLE_SECONDS)
    _settle(server)
    after = _resident(server)
    if not torch.equal(lab.latent(server, flow), expected):
        problems.append("the picture after /free is another one")
    pids = [sorted(figures) for figures in (before, loaded, after)]
    if not pids[0] == pids[1] == pids[2]:
        problems.append(f"the workers are other processes than before: {pids}")
        return {"problems": problems}
    held = sum(loaded[pid] - before[pid] for pid in loaded)
    given_back = sum(loaded[pid] - after[pid] for pid in loaded)
    if given_back < MIN_SHARE * held:
        problems.append(f"/free gave back {given_back / held:.1%} of what the workers held")
    return {
        "MiB before": _mib(before),
        "MiB loaded": _mib(loaded),
        "MiB after /free": _mib(after),
        "given back": round(given_back / held, 4),
        "MiB reloaded": _mib(_resident(server)),
        "problems": problems,
    }


def _settle(server: ComfyServer) -> None:
    """Wait until the workers' memory stands still for two seconds."""
    deadline = time.monotonic() + SETTLE_SECONDS
    last, since = _resident(server), time.monotonic()
    while time.monotonic() - since < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
        now = _resident(server)
        if now != last:
            last, since = now, time.monotonic()


def _resident(server: ComfyServer) -> dict[int, int]:
    return {worker.pid: resident_bytes(worker.pid) for worker in live.workers(server)}


def _mib(figures: dict[int, int]) -> list[int]:
    return [round(size / 2**20) for _, size in sorted(figures.items())]
