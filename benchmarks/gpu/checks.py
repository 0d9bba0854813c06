"""What is looked at, for one model on some devices."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .models import Model, conds

STEPS = 8
MIB = 2**20


class Seen(NamedTuple):
    """What was looked at, and what was found.

    Attributes:
        what: in words.
        found: a figure or a word.
        is_right: None where it is a figure.
    """

    what: str
    found: str
    is_right: bool | None = None


class Checks:
    """The checks of one file on some devices.

    Args:
        model: what is in the file.
        path: of the file.
        devices: of the workers, which are the stages.
    """

    def __init__(self, model: Model, path: Path, devices: tuple[str, ...]) -> None:
        import comfy.sd
        import torch

        self._devices = devices
        self._stock = comfy.sd.load_diffusion_model(str(path))
        self._conds = conds(model)
        draw = torch.Generator().manual_seed(2)
        self._latent = torch.zeros(model.latent)
        self._noise = torch.randn(model.latent, generator=draw)

    def run(self) -> Iterator[Seen]:
        """All of them, one after the other."""
        import torch

        from asyncdiff_core.comfyui.run.pool import POOL

        start = time.perf_counter()
        expected = self._sample(self._stock)
        seconds = self._seconds(self._stock)
        alone = self._stock.clone()
        alone.get_free_memory = lambda device: 0  # cond and uncond are evaluated by themselves
        apart = self._sample(alone)
        yield Seen("stock: first run, and one more", f"{time.perf_counter() - start:.1f} s")
        yield Seen("stock: numbers", *_judged(bool(torch.isfinite(expected).all())))
        self._give_back()
        exact = self._spread(STEPS)
        start = time.perf_counter()
        result = self._sample(exact)
        yield Seen("workers: first run", f"{time.perf_counter() - start:.1f} s")
        yield Seen("full warm-up has stock's bits", *_judged(torch.equal(result, expected)))
        model = self._spread(1)
        first = self._sample(model)
        yield Seen("twice the same bits", *_judged(torch.equal(self._sample(model), first)))
        again = self._seconds(model)
        yield Seen("speed-up over stock, warm-up 1", f"{seconds / again:.2f}x")
        yield from self._of_last_run()
        yield from self._memory()
        yield from self._lora(exact, expected)
        yield from self._cancel(model, first)
        yield from self._kill(model, first)
        yield from self._short((expected, apart))
        POOL.release()

    def _spread(self, warm_up: int) -> Any:
        from asyncdiff_core.algorithm.schedule import AsyncSchedule
        from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule

        plan = plan_for(",".join(self._devices))
        return with_schedule(parallelize(self._stock, plan), AsyncSchedule(warm_up))

    def _sample(self, model: Any, callback: Any = None) -> Any:
        import comfy.sample

        inputs = (self._noise, STEPS, 4.0, "euler", "simple", *self._conds, self._latent)
        how = {"seed": 1, "disable_pbar": True, "callback": callback}
        return comfy.sample.sample(model, *inputs, **how)

    def _seconds(self, model: Any) -> float:
        start = time.perf_counter()
        self._sample(model)
        return time.perf_counter() - start

    def _give_back(self) -> None:
        """Stock's weights leave the device, where workers need the room."""
        import comfy.model_management

        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
        gc.collect()

    def _of_last_run(self) -> Iterator[Seen]:
        from asyncdiff_core.comfyui.run.history import last_runs
        from asyncdiff_core.reports.timeline import (
            slowest_stage_busy_seconds,
            step_seconds_after_warm_up,
        )

        report = last_runs()[-1]
        step, slowest = step_seconds_after_warm_up(report), slowest_stage_busy_seconds(report)
        if step and slowest:
            yield Seen("a step against its slowest stage", f"{step / slowest:.3f}")
        shares = [
            sum(span["compute"] for span in worker["spans"]) / report["seconds"]
            for worker in report["workers"]
        ]
        yield Seen("computing, of the run", ", ".join(f"{share:.0%}" for share in shares))

    def _memory(self) -> Iterator[Seen]:
        from asyncdiff_core.comfyui.http_api import status

        for worker in status()["groups"][0]["workers"]:
            weights = worker["weight_bytes"] + worker["shared_bytes"]
            free = worker["free_bytes"]
            yield Seen(
                f"memory of {worker['device']}, stage {worker['stage'] + 1}",
                f"weights {weights / MIB:.0f} MiB, activations "
                f"{worker['activation_bytes'] / MIB:.0f} MiB, free "
                + ("unknown" if free is None else f"{free / MIB:.0f} MiB"),
            )

    def _lora(self, model: Any, expected: Any) -> Iterator[Seen]:
        import torch

        keys = [
            key
            for key, weight in self._stock.model.named_parameters()
            if weight.ndim == 2 and key.startswith("diffusion_model.")
        ][:: max(1, len(list(self._stock.model.named_parameters())) // 20)]
        draw = torch.Generator().manual_seed(3)
        shapes = {key: self._stock.model.get_parameter(key).shape for key in keys}
        patches = {
            key: ("diff", (torch.randn(shape, generator=draw) * 0.01,))
            for key, shape in shapes.items()
        }
        patched = []
        for one in (self._stock, model):
            clone = one.clone()
            clone.add_patches(patches, 1.0)
            patched.append(self._sample(clone))
            self._give_back()
        changed = not torch.equal(patched[0], expected)
        yield Seen("a LoRA changes the picture", *_judged(changed))
        yield Seen("and has stock's bits", *_judged(torch.equal(*patched)))
        yield Seen("and goes again", *_judged(torch.equal(self._sample(model), expected)))

    def _cancel(self, model: Any, first: Any) -> Iterator[Seen]:
        import comfy.model_management
        import torch

        canceled = comfy.model_management.InterruptProcessingException
        at = 0.0

        def stop(step: int, *_: Any) -> None:
            nonlocal at
            if step == STEPS // 2:
                at = time.perf_counter()
                comfy.model_management.interrupt_current_processing()
                # As ComfyUI's progress bar does.
                comfy.model_management.throw_exception_if_processing_interrupted()

        try:
            self._sample(model, stop)
            took = None
        except canceled:
            took = time.perf_counter() - at
        yield Seen("canceled", "never" if took is None else f"after {took:.2f} s", took is not None)
        yield Seen("the next has its bits", *_judged(torch.equal(self._sample(model), first)))

    def _kill(self, model: Any, first: Any) -> Iterator[Seen]:
        import torch

        from asyncdiff_core.comfyui.run.pool import POOL
        from asyncdiff_core.errors import WorkerError

        group = POOL.peek(model.remote.key)
        assert group is not None
        pid, at = group.members[-1].process.pid, 0.0

        def kill(step: int, *_: Any) -> None:
            nonlocal at
            if step == STEPS // 2:
                at = time.perf_counter()
                os.kill(pid, signal.SIGKILL)

        try:
            self._sample(model, kill)
            text, told = "no error", False
        except WorkerError as error:
            text = f"{type(error).__name__} after {time.perf_counter() - at:.1f} s"
            told = "SIGKILL" in str(error)
        yield Seen("a worker is killed", text, told)
        yield Seen("the next has its bits", *_judged(torch.equal(self._sample(model), first)))

    def _short(self, expected: tuple[Any, ...]) -> Iterator[Seen]:
        """With room for half of the weights at most; conds may then be evaluated by themselves."""
        import torch

        from asyncdiff_core.comfyui.run.pool import POOL

        weights = self._stock.model_size()
        activations = int(self._stock.model.memory_required(self._latent.shape))
        room: dict[str, float] = {}
        for device in self._devices:
            share = weights / 2 / len(self._devices)
            room[device] = room.get(device, 0.0) + (share + activations) / 2**30
        POOL.release()
        before = os.environ.get("ASYNCDIFF_MEMORY")
        os.environ["ASYNCDIFF_MEMORY"] = ",".join(f"{d}={gib:.6f}" for d, gib in room.items())
        try:
            model = self._spread(STEPS)
            result = self._sample(model)
            group = POOL.peek(model.remote.key)
            assert group is not None
            streamed = sum(member.loaded.streamed_bytes for member in group.members)
            seconds = self._seconds(model)
        finally:
            os.environ.pop("ASYNCDIFF_MEMORY")
            if before is not None:
                os.environ["ASYNCDIFF_MEMORY"] = before
        yield Seen("streamed with half the room", f"{streamed / MIB:.0f} MiB", streamed > 0)
        same = any(torch.equal(result, one) for one in expected)
        yield Seen("and has stock's bits", *_judged(same))
        yield Seen("a step of it", f"{seconds / STEPS:.3f} s")


def _judged(is_right: bool) -> tuple[str, bool]:
    return "yes" if is_right else "NO", is_right
