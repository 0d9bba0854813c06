"""What is left after SIGKILL of ComfyUI, of a worker, or of both at once, at every moment.

Each case has a server of its own, which is started for it. Processes, files in the folder for
temporary ones, and shared memory with a name are counted before and after.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import lab

from . import live
from .faults import MOMENTS, START_SECONDS, flow, is_loading
from .processes import WorkerSeen, left_of, wait_until, workers_of

VICTIMS = ("host", "worker", "both")
GONE_SECONDS = 15.0
SHARED = Path("/dev/shm")


def measure(
    comfyui: Path, folder: Path, victims: Sequence[str] = VICTIMS, moments: Sequence[str] = MOMENTS
) -> dict[str, Any]:
    """Each of `victims` at each of `moments`; what was left, in words."""
    problems = []
    cases = list(itertools.product(victims, moments))
    for number, (victim, moment) in enumerate(cases):
        base = folder / str(number)
        (base / "tmp").mkdir(parents=True)
        found = left(comfyui, base, victim, moment)
        problems += [f"{victim} at {moment}: {text}" for text in found]
    return {"cases": len(cases), "problems": problems}


def left(comfyui: Path, base: Path, victim: str, moment: str) -> Iterator[str]:
    """What is left of a server after its `victim` was killed at `moment`."""
    before = names(SHARED)
    temporary = base / "tmp"
    with live.serving(comfyui, base, TMPDIR=str(temporary)) as (server, watch):
        host = server.pid
        if moment == "idle":
            lab.latent(server, flow())
            workers = workers_of(host)
        else:
            long = 1 if moment == "async" else 1000
            prompt = watch.send(flow(long, seed=7, steps=1000))
            if moment in ("warm-up", "async"):
                prompt.step(3, START_SECONDS)
            workers = reach(host, moment)
        pids = [worker.pid for worker in workers]
        if victim in ("host", "both"):
            os.kill(host, signal.SIGKILL)
        if victim in ("worker", "both"):
            os.kill(pids[-1], signal.SIGKILL)
        doomed = [*pids, host] if victim in ("host", "both") else pids
        if living := left_of(doomed, GONE_SECONDS):
            yield f"{len(living)} processes after {GONE_SECONDS:g} s"
    # PyTorch makes the folder for its compiler's files when ComfyUI imports it.
    if files := {name for name in names(temporary) if not name.startswith("torchinductor_")}:
        yield f"temporary files: {sorted(files)}"
    if shared := names(SHARED) - before:
        yield f"shared memory: {sorted(shared)}"


def reach(host: int, moment: str) -> list[WorkerSeen]:
    """The workers of a server, as soon as there are two, and one of them is that far."""
    found: list[WorkerSeen] = []

    def look() -> bool:
        found[:] = workers_of(host)
        return len(found) == 2 and (moment != "load" or any(map(is_loading, found)))

    wait_until(look, START_SECONDS, 0.001)
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
