"""The figures and the picture of a run, on a report made by hand."""

import dataclasses
from typing import Any

import pytest

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.reports.timeline import (
    ASYNC,
    SYNC,
    WAIT,
    draw_timeline,
    slowest_stage_busy_seconds,
    step_seconds_after_warm_up,
    tick_interval,
)


def span(index: int, mode: str, start: float, wait: float, compute: float, lane: int = 0) -> dict:
    end = start + wait + compute
    return {
        "index": index,
        "lane": lane,
        "mode": mode,
        "start": start,
        "wait": wait,
        "compute": compute,
        "end": end,
    }


def worker(stage: int, spans: list[dict], replica: int = 0) -> dict:
    return {
        "rank": stage,
        "stage": stage,
        "replica": replica,
        "device": "cpu",
        "pid": 100 + stage,
        "units": [[stage, stage + 1]],
        "unit_names": [["blocks.0", "blocks.0"]],
        "num_units": 2,
        "weight_bytes": 3 << 20,
        "shared_bytes": 1 << 20,
        "resident_bytes": 9 << 20,
        "spans": spans,
    }


def evaluation(index: int, mode: str, start: float, end: float, lane: int = 0) -> dict:
    error = 0.03 if mode == "async" else None
    return {
        "index": index,
        "lane": lane,
        "mode": mode,
        "start": start,
        "end": end,
        "error": error,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """Two stages of 2 s and 3 s: one evaluation of warm-up, three asynchronous ones."""
    first = [span(0, "sync", 0, 0, 2), *(span(i, "async", 2 + 3 * i, 0, 2) for i in (1, 2, 3))]
    second = [span(0, "sync", 0, 2, 3), *(span(i, "async", 2 + 3 * i, 0, 3) for i in (1, 2, 3))]
    return {
        "prompt_id": None,
        "node_id": "3",
        "model": "UNetModel",
        "plan": {"devices": ["cpu", "cpu"], "stages": 2, "replicas": 1, "stride": 1},
        "schedule": dataclasses.asdict(AsyncSchedule()),
        "seconds": 14.0,
        "seconds_to_first_step": 5.0,
        "cold": True,
        "evaluations": [
            evaluation(0, "sync", 0, 5),
            *(evaluation(i, "async", 2 + 3 * i, 5 + 3 * i) for i in (1, 2, 3)),
        ],
        "workers": [worker(0, first), worker(1, second)],
    }


def test_a_step_lasts_as_long_as_the_slowest_stage(report):
    assert step_seconds_after_warm_up(report) == 3
    assert slowest_stage_busy_seconds(report) == 3


def test_the_steps_of_a_round_share_its_time(report):
    """A stride of 2: rounds of 3 s, each for two steps, of which the first stage computes 2 s."""
    report["plan"]["stride"] = 2
    ends = ((0, "sync", 5), (1, "async", 8), (2, "async", 8), (3, "async", 11), (4, "async", 11))
    report["evaluations"] = [evaluation(i, mode, end - 3, end) for i, mode, end in ends]
    assert step_seconds_after_warm_up(report) == 1.5
    assert slowest_stage_busy_seconds(report) == 1.5
    report["refused_stride"] = True
    assert slowest_stage_busy_seconds(report) == 3


def test_the_step_that_fills_the_pipeline_does_not_count(report):
    report["evaluations"][1]["end"] += 1.5  # the first asynchronous one
    report["evaluations"] = report["evaluations"][:3]
    assert step_seconds_after_warm_up(report) == 1.5  # from the first to the second of them


def test_lanes_take_turns_within_a_step(report):
    """Two lanes double the work of a step, and what counts is from step to step of one lane."""
    report["evaluations"] = [
        evaluation(i, "async", start := 6 * i + 3 * lane, start + 3, lane)
        for i in range(3)
        for lane in (0, 1)
    ]
    spans = [span(i, "async", 6 * i + 3 * lane, 0, 3, lane) for i in range(3) for lane in (0, 1)]
    report["workers"] = [worker(0, spans)]
    assert step_seconds_after_warm_up(report) == 6
    assert slowest_stage_busy_seconds(report) == 6


def test_a_run_without_asynchronous_evaluations_has_no_step_time(report):
    report["evaluations"] = report["evaluations"][:1]
    for one in report["workers"]:
        one["spans"] = one["spans"][:1]
    assert step_seconds_after_warm_up(report) is None
    assert slowest_stage_busy_seconds(report) is None
    draw_timeline(report)


def test_bars_stand_where_the_work_was_done(report):
    image = draw_timeline(report, width=1420)  # 1190 pixels beside the labels

    def colours(seconds: float, row: int) -> set[str]:
        """The colours of a pixel column of the row's bar."""
        x, top = 210 + round(seconds * 1190 / 14), 98 + 46 * row + 7
        return {"#" + bytes(image.getpixel((x, y))).hex() for y in range(top, top + 32)}

    assert SYNC in colours(0.5, row=0)
    assert WAIT in colours(1.0, row=1)
    assert SYNC in colours(4.0, row=1)
    assert ASYNC in colours(5.5, row=0)
    assert not {SYNC, ASYNC, WAIT} & colours(7.5, row=0)  # idle: done before the slower stage
    assert ASYNC in colours(7.5, row=1)


@pytest.mark.parametrize("width", [400, 1200])
def test_any_width_and_number_of_workers(report, width):
    report["workers"] *= 3
    report["plan"]["replicas"] = 3
    assert draw_timeline(report, width).size == (width, 98 + 46 * 6 + 44)


def test_a_run_that_was_cancelled_at_once(report):
    report.update(seconds=0.0, seconds_to_first_step=None, evaluations=[])
    for one in report["workers"]:
        one["spans"] = []
    draw_timeline(report)


@pytest.mark.parametrize(
    ("seconds", "interval"), [(0.009, 0.001), (1.0, 0.1), (8.1, 1), (13, 2), (600, 50)]
)
def test_tick_interval(seconds, interval):
    assert tick_interval(seconds) == pytest.approx(interval)
