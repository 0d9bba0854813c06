"""Many short prompts on a small model: what grows with their number?"""

from __future__ import annotations

from collections import deque
from typing import Any

from harness import lab
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow, node

from .census import compare, take
from .live import Prompt, Watch

AT_ONCE = 8  # prompts in the queue
PATIENCE = 120.0
FIRST = 0.1  # of the prompts come before the first census


def measure(server: ComfyServer, watch: Watch, count: int) -> dict[str, Any]:
    """Send `count` prompts of one step each; what the processes held early on and at the end."""
    early = int(count * FIRST)
    problems = send(server, watch, range(early))
    first = take(server)
    problems += send(server, watch, range(early, count))
    last = take(server)
    return {
        "prompts": count,
        "first census": first.summary(),
        "last census": last.summary(),
        "problems": problems + compare(first, last, 0),
    }


def flow(seed: int) -> Workflow:
    """One step on the smallest latent. Its picture goes nowhere, so that nothing is written."""
    short = lab.asyncdiff(lab.workflow("sd15", steps=1, seed=seed))
    short["empty"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    del short["latent"]
    short["end"] = node("PreviewAny", source=["sampler", 0])
    return short


def send(server: ComfyServer, watch: Watch, seeds: range) -> list[str]:
    """Send a prompt for every seed; how those ended that did not succeed."""
    problems: list[str] = []
    waiting: deque[Prompt] = deque()

    def finish() -> None:
        prompt = waiting.popleft()
        outcome = prompt.end(PATIENCE)
        watch.forget(prompt)
        if outcome.kind != "execution_success":
            problems.append(str(outcome))

    for seed in seeds:
        waiting.append(watch.send(flow(seed)))
        if len(waiting) >= AT_ONCE:
            finish()
        if seed % 1000 == 0:
            server.post("/history", {"clear": True})  # ComfyUI keeps 10,000 of its own
            print(f"{seed} prompts", flush=True)
    while waiting:
        finish()
    return problems
