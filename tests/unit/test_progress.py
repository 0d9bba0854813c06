"""How far a run is, and how fast."""

import dataclasses

import pytest

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.reports.progress import gain, measured_speed_up, num_steps_done, phase
from asyncdiff_core.reports.report import Evaluated, RunReport


def run(
    sync: list[float], asynchronous: list[float], steps: int | None, lanes: int = 1
) -> RunReport:
    """A run whose steps took these seconds, with a pause of the sampler's in none of them."""
    report = RunReport("Toy", {}, dataclasses.asdict(AsyncSchedule(3)), start=0.0, cold=False)
    report.steps = steps
    clock = 0.0
    for index, seconds in enumerate([*sync, *asynchronous]):
        mode = "sync" if index < len(sync) else "async"
        for lane in range(lanes):
            report.evaluations.append(Evaluated(index, lane, mode, clock, clock + seconds))
        clock += seconds
    return report


@pytest.mark.parametrize(
    ("sync", "asynchronous", "steps", "text"),
    [
        ([9.0, 1.0], [], 30, "warm-up 2/3"),
        ([9.0], [], 2, "warm-up 1/2"),
        ([9.0, 1.0, 1.0], [0.5], 30, "async 1/27"),
        ([9.0, 1.0, 1.0], [0.5] * 14, 30, "async 14/27, 2.00x"),
        ([9.0, 1.0, 1.0], [0.5] * 14, None, "async 14, 2.00x"),
        ([9.0, 1.0, 1.0], [0.5] * 14, 10, "async 14, 2.00x"),
    ],
)
def test_phase(sync, asynchronous, steps, text):
    assert phase(run(sync, asynchronous, steps)) == text


def test_lanes_of_one_step_count_once():
    report = run([2.0, 2.0, 2.0], [1.0] * 4, 30, lanes=2)
    assert num_steps_done(report) == 7
    assert measured_speed_up(report) == pytest.approx(2.0)


def test_the_first_step_counts_only_where_there_is_no_other():
    assert measured_speed_up(run([3.0], [1.0, 1.0], 30)) == pytest.approx(3.0)
    assert measured_speed_up(run([9.0, 3.0], [1.0, 1.0], 30)) == pytest.approx(3.0)


def test_a_stride_is_measured_by_whole_rounds():
    """Two steps end together: one takes all the time of the round, the other none."""
    assert measured_speed_up(run([3.0, 3.0], [2.0, 0.0, 2.0, 0.0], 30)) == pytest.approx(3.0)


@pytest.mark.parametrize("asynchronous", [[], [1.0]])
def test_too_little_to_measure(asynchronous):
    assert measured_speed_up(run([3.0, 3.0, 3.0], asynchronous, 30)) is None


def ended(sync: list[float], asynchronous: list[float], **plan: int) -> RunReport:
    report = run(sync, asynchronous, len(sync) + len(asynchronous))
    report.plan = {"stages": 2, "replicas": 1, **plan}
    return report


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (ended([9.0, 1.0, 1.0], [0.5] * 27), "30 steps, 1.82x"),
        (ended([9.0, 1.0], []), "no gain: the warm-up was all of 2 steps"),
        (ended([9.0], []), "no gain: the warm-up was all of 1 step"),
        (ended([9.0] * 4, [], stages=1), "4 steps on one device, no gain"),
        (ended([9.0] * 4, [], stages=1, replicas=2), "4 steps on 2 replicas"),
        (ended([9.0, 1.0], [0.99] * 8), "10 steps, 1.01x: no gain on these devices"),
        (ended([9.0, 1.0], [0.5] * 8, replicas=2), "10 steps, 1.67x, on 2 replicas"),
        (ended([9.0, 1.0, 1.0], [0.5]), "4 steps, 1 of them asynchronous"),
    ],
)
def test_gain(report, text):
    assert gain(report) == text
