"""The report of a run, as JSON."""

import dataclasses
import json

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.reports.report import Evaluated, RunReport, Span, WorkerReport


def make_report() -> RunReport:
    report = RunReport(
        model="Chain",
        plan={"devices": ["cpu", "cpu"], "stages": 2, "replicas": 1, "stride": 1},
        schedule=dataclasses.asdict(AsyncSchedule()),
        start=1000.0,
        cold=True,
    )
    report.first_step, report.end = 1002.0, 1004.0
    report.evaluations = [
        Evaluated(0, 0, "sync", 1000.5, 1002.0),
        Evaluated(1, 0, "async", 1002.0, 1003.5, error=0.25),
    ]
    report.workers = [
        WorkerReport(
            rank=0,
            stage=0,
            replica=0,
            device="cpu",
            pid=77,
            units=((0, 3),),
            unit_names=(("blocks.0", "blocks.2"),),
            num_units=6,
            weight_bytes=1000,
            shared_bytes=10,
            resident_bytes=5000,
            log_file="/tmp/worker-0.log",
            spans=[Span(0, 0, "sync", start=1000.5, wait=0.25, compute=0.5, end=1001.25)],
        )
    ]
    return report


def test_all_clocks_count_from_the_start_of_the_run() -> None:
    data = make_report().as_dict()
    assert data["seconds"] == 4.0 and data["seconds_to_first_step"] == 2.0
    assert data["evaluations"] == [
        {"index": 0, "lane": 0, "mode": "sync", "start": 0.5, "end": 2.0, "error": None},
        {"index": 1, "lane": 0, "mode": "async", "start": 2.0, "end": 3.5, "error": 0.25},
    ]
    assert data["workers"][0]["spans"] == [
        {"index": 0, "lane": 0, "mode": "sync", "start": 0.5, "wait": 0.25, "compute": 0.5,
         "end": 1.25}
    ]  # fmt: skip


def test_it_is_plain_data() -> None:
    data = make_report().as_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["workers"][0]["units"] == [[0, 3]]
    assert data["workers"][0]["weight_bytes"] == 1000
    assert data["plan"]["stages"] == 2 and data["cold"] is True


def test_it_can_be_made_twice() -> None:
    report = make_report()
    assert report.as_dict() == report.as_dict()


def test_a_run_without_an_evaluation() -> None:
    report = RunReport("Chain", {}, {}, start=5.0, cold=False, end=6.0)
    data = report.as_dict()
    assert data["seconds_to_first_step"] is None
    assert data["evaluations"] == [] and data["workers"] == []
    json.dumps(data)
