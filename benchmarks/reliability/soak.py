"""A long day of a server: prompts, cancels, other models, LoRAs, /free, releases and dead workers.

Every prompt that ends well must give the picture that the same prompt gave in peace, and no prompt
may fail but one whose worker was killed. After prompt 20 and at the end a census of the processes
is taken, each time after the same calm: memory, descriptors, threads, processes, temporary files.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch

from harness import lab
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow

from . import live
from .census import Census, compare, take
from .live import Outcome, Prompt, Watch

PEACE = 20  # prompts before the first census
ROUNDS = 3  # of a census
PATIENCE = 180.0
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)


def side_by_side(left: Workflow, right: Workflow) -> Workflow:
    """Both workflows as one graph."""

    def renamed(flow: Workflow, prefix: str) -> Workflow:
        def link(value: Any) -> Any:
            return [f"{prefix}{value[0]}", value[1]] if isinstance(value, list) else value

        return {
            f"{prefix}{name}": {**one, "inputs": {k: link(v) for k, v in one["inputs"].items()}}
            for name, one in flow.items()
        }

    return {**renamed(left, "left "), **renamed(right, "right ")}


def variants(steps: int = 4, is_stock: bool = False) -> dict[str, Workflow]:
    """What is asked of the server: three groups (more than it keeps), LoRAs, and two in a graph."""
    wan, sd15 = lab.workflow("wan", steps=steps), lab.workflow("sd15", steps=steps)
    if is_stock:
        return {
            "wan": wan,
            "wan, LoRA 1": lab.with_lora(wan, "wan"),
            "wan, LoRA 0.5": lab.with_lora(wan, "wan", 0.5),
            "sd15": sd15,
            "sd15, LoRA 1": lab.with_lora(sd15, "sd15"),
            "wan beside sd15": side_by_side(wan, sd15),
        }
    return {
        "wan": lab.asyncdiff(wan),
        "wan, LoRA 1": lab.asyncdiff(lab.with_lora(wan, "wan")),
        "wan, LoRA 0.5": lab.asyncdiff(lab.with_lora(wan, "wan", 0.5)),
        "sd15": lab.asyncdiff(sd15),
        "sd15, LoRA 1": lab.asyncdiff(lab.with_lora(sd15, "sd15")),
        "wan, 3 workers": lab.asyncdiff(wan, workers=3),
        "wan beside sd15": side_by_side(lab.asyncdiff(wan), lab.asyncdiff(sd15)),
    }


CALM = ("wan", "sd15")  # the prompts before a census


class Soak:
    """One seeded run.

    Args:
        names: of the variants; none: all.
        is_stock: ask for ComfyUI's own nodes, to see what its process holds without this pack.
    """

    def __init__(
        self,
        server: ComfyServer,
        watch: Watch,
        seed: int,
        names: Sequence[str] = (),
        is_stock: bool = False,
    ) -> None:
        self._server, self._watch = server, watch
        self._is_stock = is_stock
        self._chance = random.Random(seed)
        self._long = variants(40, is_stock)
        all_flows = variants(is_stock=is_stock)
        self._flows = {n: flow for n, flow in all_flows.items() if not names or n in names}
        self._expected: dict[str, list[torch.Tensor]] = {}
        self.done: Counter[str] = Counter()
        self.problems: list[str] = []
        self.num_prompts = 0
        self.num_kills = 0

    def run(self, num_prompts: int, peace: int = PEACE, rounds: int = ROUNDS) -> dict[str, Any]:
        """Send about `num_prompts` prompts; what was done, measured and found wrong."""
        self._rounds = rounds
        for name in self._flows:
            self._expected[name] = self._peaceful(name)
        acts: list[tuple[Callable[[], None], int]] = [
            (self._prompt, 8),
            (self._queue, 3),
            (self._cancel, 5),
            (self._free, 2),
        ]
        if not self._is_stock:
            acts += [(self._release, 2), (self._kill_busy, 2), (self._kill_idle, 1)]
        first: Census | None = None
        functions, weights = zip(*acts, strict=True)
        while self.num_prompts < num_prompts:
            if first is None and self.num_prompts >= peace:
                first = self._census()
            (act,) = self._chance.choices(functions, weights)
            before = self.num_prompts
            act()
            self.done[act.__name__.strip("_")] += 1
            print(f"{before:4} {act.__name__.strip('_')}", flush=True)
        last = self._census()
        if first is not None and not self._is_stock:  # what ComfyUI alone keeps is to compare with
            self.problems += compare(first, last, self.num_kills)
        return {
            "prompts": self.num_prompts,
            "acts": dict(self.done),
            "workers killed": self.num_kills,
            "first census": first.summary() if first else None,
            "last census": last.summary(),
            "problems": self.problems,
        }

    # Acts --------------------------------------------------------------------------------------

    def _prompt(self) -> None:
        self._finish(*self._send(self._any()))

    def _queue(self) -> None:
        for name, prompt in [self._send(self._any()) for _ in range(3)]:
            self._finish(name, prompt)

    def _cancel(self) -> None:
        name, prompt = self._send(self._any(), self._long)
        self._somewhere_in(prompt)
        self._server.post("/interrupt", {"prompt_id": prompt.id})
        outcome = prompt.end(PATIENCE)
        self._expect(name, outcome, "execution_interrupted", "execution_success")

    def _free(self) -> None:
        both = self._chance.random() < 0.5
        self._server.post("/free", {"unload_models": True, "free_memory": both})

    def _release(self) -> None:
        body = self._chance.choice([{}, {"keep_workers": True}])
        if self._chance.random() < 0.5:
            self._server.post("/asyncdiff/release", body)
            return
        name, prompt = self._send(self._any())  # while it runs: what is busy is left alone
        self._somewhere_in(prompt)
        self._server.post("/asyncdiff/release", body)
        self._finish(name, prompt)

    def _kill_busy(self) -> None:
        name, prompt = self._send(self._any(), self._long)
        self._somewhere_in(prompt)
        if not self._kill():
            self._finish(name, prompt, self._long)
            return
        outcome = prompt.end(PATIENCE)
        self._watch.forget(prompt)
        # It may have been a worker of another model, or the prompt may have been over.
        self._expect(name, outcome, "execution_error", "execution_success")
        if outcome.kind == "execution_error" and "was ended by signal" not in outcome.text:
            self.problems.append(f"{name}, a worker killed: {outcome}")

    def _kill_idle(self) -> None:
        if self._kill():
            self._prompt()

    # Parts -------------------------------------------------------------------------------------

    def _any(self) -> str:
        return self._chance.choice(list(self._flows))

    def _send(self, name: str, flows: dict[str, Workflow] | None = None) -> tuple[str, Prompt]:
        self.num_prompts += 1
        return name, self._watch.send(lab.fresh((flows or self._flows)[name]))

    def _finish(self, name: str, prompt: Prompt, flows: dict[str, Workflow] | None = None) -> None:
        """Wait for a prompt that must succeed, and look at its picture."""
        outcome = prompt.end(PATIENCE)
        self._expect(name, outcome, "execution_success")
        latents = self._latents(prompt)
        if outcome.kind != "execution_success" or flows is self._long:
            return
        expected = self._expected[name]
        if len(latents) != len(expected) or not all(map(torch.equal, latents, expected)):
            self.problems.append(f"{name}: the picture is another one (prompt {self.num_prompts})")

    def _latents(self, prompt: Prompt) -> list[torch.Tensor]:
        self._watch.forget(prompt)
        return lab.saved(self._server, self._server.get(f"/history/{prompt.id}")[prompt.id])

    def _expect(self, name: str, outcome: Outcome, *kinds: str) -> None:
        if outcome.kind not in kinds:
            self.problems.append(f"{name} (prompt {self.num_prompts}): {outcome}")

    def _somewhere_in(self, prompt: Prompt) -> None:
        """Wait for a random moment of the prompt, most often while it samples."""
        if self._chance.random() < 0.8:
            prompt.step(self._chance.randint(1, 10), PATIENCE)
        else:
            time.sleep(self._chance.uniform(0, 2))

    def _kill(self) -> bool:
        workers = live.workers(self._server)
        if not workers:
            return False
        victim = self._chance.choice(workers)
        try:
            os.kill(victim.pid, self._chance.choice(SIGNALS))
        except ProcessLookupError:
            return False
        self.num_kills += 1
        return True

    def _peaceful(self, name: str) -> list[torch.Tensor]:
        _, prompt = self._send(name)
        outcome = prompt.end(PATIENCE)
        self._expect(name, outcome, "execution_success")
        return self._latents(prompt)

    def _census(self) -> Census:
        """Count what there is, with the lowest memory of several rounds."""
        return reduce(Census.at_its_lowest, [self._count() for _ in range(self._rounds)])

    def _count(self) -> Census:
        """Count what there is, after the same prompts on weights that were loaded anew."""
        self._server.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1)
        for _ in range(2):
            for name in CALM:
                if name in self._flows:
                    self._finish(*self._send(name))
        return take(self._server)
