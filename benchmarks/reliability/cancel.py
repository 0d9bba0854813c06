"""How long a cancel takes: from POST /interrupt to `execution_interrupted`, at random moments.

The bound is one evaluation, the slowest of the same workflow without a cancel, and 200 ms. The
model must stay warm: the same processes, nothing loaded again, the same bits.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any

import torch

from harness import lab
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow

from .live import Watch

MARGIN_SECONDS = 0.2
STEPS = 24
WARM_UP = 8  # so that a third of the cancels meet synchronous evaluations


def flow(seed: int) -> Workflow:
    return lab.asyncdiff(lab.workflow("sd15", seed=seed, steps=STEPS), warm_up=WARM_UP)


def measure(server: ComfyServer, watch: Watch, count: int, seed: int = 0) -> dict[str, Any]:
    """Cancel `count` prompts; the latencies, in seconds, and what should not have been."""
    chance = random.Random(seed)
    problems: list[str] = []
    expected = lab.latent(server, flow(1))
    slowest, duration = _calm(server)
    pids, loads = _pids(server), _loads(server)
    latencies: list[float] = []
    too_late = 0
    while len(latencies) < count:
        if latencies and len(latencies) % 10 == 0:
            slowest = max(slowest, _evaluations(server)[0])
        prompt = watch.send(flow(1000 + len(latencies) + too_late))
        prompt.step(1, 120)
        time.sleep(chance.uniform(0, 0.9 * duration))
        asked = time.monotonic()
        server.post("/interrupt", {"prompt_id": prompt.id})
        outcome = prompt.end(120)
        watch.forget(prompt)
        if outcome.kind == "execution_interrupted":
            latencies.append(outcome.seconds + prompt.sent - asked)
        elif outcome.kind == "execution_success":
            too_late += 1
        else:
            problems.append(f"a canceled prompt ended with {outcome}")
            break
    if not torch.equal(lab.latent(server, flow(1)), expected):
        problems.append("the picture after the cancels is another one")
    slowest = max(slowest, _evaluations(server)[0])
    if _pids(server) != pids:
        problems.append("the workers are other processes than before")
    if _loads(server) != loads:
        problems.append("the workers loaded their weights again")
    return {
        "cancels": len(latencies),
        "ended before the cancel": too_late,
        "slowest evaluation": round(slowest, 4),
        "bound": round(slowest + MARGIN_SECONDS, 4),
        "latency": {
            "median": round(statistics.median(latencies), 4) if latencies else None,
            "longest": round(max(latencies, default=0.0), 4),
        },
        "problems": problems,
    }


def late(result: dict[str, Any]) -> list[str]:
    """The promise about the latency, where `measure` found it broken."""
    longest, bound = result["latency"]["longest"], result["bound"]
    return [f"a cancel took {longest:.2f} s, with a bound of {bound:.2f} s"] * (longest > bound)


def _calm(server: ComfyServer) -> tuple[float, float]:
    """The slowest evaluation and the duration of the workflow on warm workers."""
    runs = []
    for _ in range(2):
        lab.latent(server, flow(1))
        runs.append(_evaluations(server))
    return max(slowest for slowest, _ in runs), min(seconds for _, seconds in runs)


def _evaluations(server: ComfyServer) -> tuple[float, float]:
    report = lab.last_report(server)
    return max(e["end"] - e["start"] for e in report["evaluations"]), report["seconds"]


def _pids(server: ComfyServer) -> list[int]:
    return [worker["pid"] for worker in lab.last_report(server)["workers"]]


def _loads(server: ComfyServer) -> int:
    return server.log_text().count("UNetModel cut into")
