"""How far a run is, in a few words, and how fast against its own synchronous part. Pure."""

from __future__ import annotations

from statistics import median

from .report import RunReport


def num_steps_done(report: RunReport) -> int:
    """The evaluations of the lane that is furthest; conds in lanes of their own count once."""
    return 1 + max((index for index, *_ in report.evaluations), default=-1)


def phase(report: RunReport) -> str:
    """`warm-up 2/3`, or `async 14/27, 1.86x`."""
    done, warm_up, steps = num_steps_done(report), report.schedule["warm_up"], report.steps
    if steps is not None and done > steps:
        steps = None  # several evaluations per step: how many there will be is not known
    if done <= warm_up:
        return f"warm-up {done}/{warm_up if steps is None else min(warm_up, steps)}"
    text = f"async {done - warm_up}" + ("" if steps is None else f"/{steps - warm_up}")
    speed_up = measured_speed_up(report)
    return text if speed_up is None else f"{text}, {speed_up:.2f}x"


def gain(report: RunReport) -> str:
    """What a run has gained over one of synchronous steps alone, and why if that is nothing.

    Replicas, which make those faster too, do not show in the figure.
    """
    done = num_steps_done(report)
    replicas = report.plan.get("replicas", 1)
    num_async = len({index for index, _, mode, *_ in report.evaluations if mode == "async"})
    beside = f", on {replicas} replicas" if replicas > 1 else ""
    if not num_async:
        if replicas > 1:
            return f"{_steps(done)} on {replicas} replicas"
        if report.plan.get("stages", 1) < 2:
            return f"{_steps(done)} on one device, no gain"
        return f"no gain: the warm-up was all of {_steps(done)}"
    speed_up = measured_speed_up(report)
    if speed_up is None:
        return f"{_steps(done)}, {num_async} of them asynchronous{beside}"
    whole = done / (done - num_async + num_async / speed_up)
    if whole < 1.05:
        return f"{_steps(done)}, {whole:.2f}x{beside}: no gain on these devices"
    return f"{_steps(done)}, {whole:.2f}x{beside}"


def _steps(number: int) -> str:
    return f"{number} step" if number == 1 else f"{number} steps"


def measured_speed_up(report: RunReport) -> float | None:
    """How many times faster an asynchronous step of this run is than a synchronous one.

    Steps are measured at the sampler, from end to end, so that all that a step waits for is in
    them. The first one pays for what is done once, and counts only where there is no other.
    Replicas speed up both kinds of steps and do not show here. None where too little has run.
    """
    ends: dict[int, float] = {}
    starts: dict[int, float] = {}
    last_sync = -1
    for index, _, mode, start, end in report.evaluations:
        ends[index] = max(end, ends.get(index, end))
        starts[index] = min(start, starts.get(index, start))
        if mode == "sync":
            last_sync = max(last_sync, index)
    last = max(ends, default=-1)
    # The rounds of a stride end together, so a single one of its steps says nothing.
    if last_sync < 0 or last - last_sync < 2 or len(ends) != last + 1:
        return None
    sync = [ends[i] - ends[i - 1] for i in range(1, last_sync + 1)] or [ends[0] - starts[0]]
    seconds = (ends[last] - ends[last_sync]) / (last - last_sync)
    return median(sync) / seconds if seconds > 0 else None
