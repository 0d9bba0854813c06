"""How much faster worker groups are than the stock sampler, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
from asyncdiff_core.comfyui.run.pool import POOL

from .settings import Setting
from .subjects import Subject

REPEATS = 3


def measured_speedups(
    subject: Subject, settings: Sequence[Setting], devices: Sequence[str]
) -> list[float]:
    """The speed-up of each setting over stock on the first device; on CPUs with one thread each.

    Stock and setting take turns, and the median of the ratios counts, since other load comes and
    goes.
    """
    batch = next(iter(subject.batches()))
    is_cpu = devices[0] == "cpu"
    threads = torch.get_num_threads()
    if is_cpu:
        torch.set_num_threads(1)

    def seconds(model: Any) -> float:
        started = time.perf_counter()
        subject.sampler.sample(model, *batch)
        return time.perf_counter() - started

    speedups = []
    try:
        for setting in settings:
            plan = plan_for(
                ",".join(devices[: setting.num_devices]),
                stages=setting.stages,
                replicas=setting.replicas,
                stride=setting.stride,
            )
            model = parallelize(subject.model, plan)
            model = with_schedule(model, setting.schedule)
            subject.sampler.sample(model, *batch, steps=max(3, setting.warm_up + 1))
            subject.sampler.sample(subject.model, *batch, steps=2)
            ratios = [seconds(subject.model) / seconds(model) for _ in range(REPEATS)]
            speedups.append(sorted(ratios)[len(ratios) // 2])
    finally:
        POOL.close()
        torch.set_num_threads(threads)
    return speedups
