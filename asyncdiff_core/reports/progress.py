"""How far a run is, in a few words, and how fast against its own synchronous part. Pure."""

from __future__ import annotations

from statistics import fmean, median

from .report import RunReport


def num_steps_done(report: RunReport) -> int:
    """The evaluations of the lane that is furthest; conds in lanes of their own count once."""
    return 1 + max((one.index for one in report.evaluations), default=-1)


def phase(report: RunReport) -> str:
    """`warm-up 2/3`, or `async 14/27, 1.86x`; or `sync 29/30` where that is so behind it."""
    done, warm_up, steps = num_steps_done(report), report.schedule["warm_up"], report.steps
    if steps is not None and done > steps:
        steps = None  # several evaluations per step: how many there will be is not known
    if done <= warm_up:
        return f"warm-up {done}/{warm_up if steps is None else min(warm_up, steps)}"
    if report.evaluations[-1].mode == "sync":
        return f"sync {done}" + ("" if steps is None else f"/{steps}")
    text = f"async {done - warm_up}" + ("" if steps is None else f"/{steps - warm_up}")
    speed_up = measured_speed_up(report)
    return text if speed_up is None else f"{text}, {speed_up:.2f}x"


def gain(report: RunReport) -> str:
    """What a run has gained over one of synchronous steps alone, and why if that is nothing.

    Replicas, which make those faster too, do not show in the figure.
    """
    done = num_steps_done(report)
    replicas = report.plan.get("replicas", 1)
    num_async = len({one.index for one in report.evaluations if one.mode == "async"})
    beside = f", on {replicas} replicas" if replicas > 1 else ""
    if not num_async:
        if replicas > 1:
            return f"{_steps(done)} on {replicas} replicas"
        if report.plan.get("stages", 1) < 2:
            return f"{_steps(done)} on one device, no gain"
        number = len({one.lane for one in report.evaluations})
        if report.schedule["split_batch"] and number > 1:
            return f"{_steps(done)}, all synchronous, {number} latents one behind the other"
        if done <= report.schedule["warm_up"]:
            return f"no gain: the warm-up was all of {_steps(done)}"
        return f"no gain: all {_steps(done)} were synchronous, see cool_down and tolerance"
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
    is_sync: dict[int, bool] = {}
    for one in report.evaluations:
        ends[one.index] = max(one.end, ends.get(one.index, one.end))
        starts[one.index] = min(one.start, starts.get(one.index, one.start))
        is_sync[one.index] = one.mode == "sync" or is_sync.get(one.index, False)
    if len(ends) != max(ends, default=-1) + 1:
        return None
    sync = [ends[i] - ends[i - 1] for i in range(1, len(ends)) if is_sync[i]]
    # The rounds of a stride end together, so a single one of its steps says nothing.
    others = [ends[i] - ends[i - 1] for i in range(1, len(ends)) if not is_sync[i]]
    if len(others) < 2 or not is_sync[0]:
        return None
    seconds = fmean(others)
    return median(sync or [ends[0] - starts[0]]) / seconds if seconds > 0 else None
