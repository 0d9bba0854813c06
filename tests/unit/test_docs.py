"""The documents list what there is, and show what was measured."""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncdiff_core import settings
from asyncdiff_core.host import reports
from asyncdiff_core.host.layouts import LAYOUTS, REFUSED
from asyncdiff_core.plan import ParallelPlan
from asyncdiff_core.report import RunReport, Span, WorkerReport
from asyncdiff_core.schedule import AsyncSchedule

ROOT = Path(__file__).parents[2]


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    pattern = rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of the rows of all tables in a text, without headings and rules."""
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not re.match(r"\|[-| :]+$", line) and "|---" not in after:
            yield [cell.strip() for cell in line.strip("|").split("|")]


# Environment variables --------------------------------------------------------------------------


def test_every_environment_variable_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [*(ROOT / "asyncdiff_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
    used = {
        name
        for path in sources
        for name in re.findall(r"\bASYNCDIFF_[A-Z_]+", path.read_text("utf-8"))
    }
    table = section(read("docs/environment.md"), "Of ComfyUI with this pack")
    defaults = {name.strip("`"): default.strip("`") for name, default, _ in rows(table)}
    assert defaults.keys() == used
    for name in used:
        monkeypatch.delenv(name, raising=False)
    assert float(defaults["ASYNCDIFF_TIMEOUT"]) == settings.timeout_seconds()
    assert int(defaults["ASYNCDIFF_MAX_GROUPS"]) == settings.max_groups()
    assert bool(int(defaults["ASYNCDIFF_FOLD"])) == settings.folds()


# Reports ----------------------------------------------------------------------------------------


def fields(heading: str) -> set[str]:
    """The names in the first column of a table in docs/api.md."""
    table = rows(section(read("docs/api.md"), heading))
    return {name for first, *_ in table for name in re.findall(r"`(\w+)`", first)}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run as `GET /asyncdiff/report` gives it."""
    report = RunReport("Chain", plan={}, schedule={}, start=1.0, cold=True)
    report.evaluations = [(0, 0, "sync", 1.0, 2.0)]
    report.workers = [
        WorkerReport(
            *(0, 0, 0, "cpu", 77),
            units=((0, 3),),
            unit_names=(("blocks.0", "blocks.2"),),
            num_units=6,
            weight_bytes=1000,
            shared_bytes=10,
            spans=[Span(0, 0, "sync", start=1.0, wait=0.0, compute=1.0, end=2.0)],
        )
    ]
    monkeypatch.setattr(reports, "_runs", deque())
    reports.record(report)
    [recorded] = reports.last_runs()
    return recorded


def test_every_field_of_a_report_is_documented(run: dict[str, Any]) -> None:
    assert fields("Of a run") == run.keys()
    assert fields("Of an evaluation") == run["evaluations"][0].keys()
    assert fields("Of a worker") == run["workers"][0].keys()
    assert fields("Of a span") == run["workers"][0]["spans"][0].keys()


def test_the_plan_and_the_schedule_of_a_report_are_documented() -> None:
    said = {row[0]: row[1] for row in rows(section(read("docs/api.md"), "Of a run"))}
    for field, kind in (("plan", ParallelPlan), ("schedule", AsyncSchedule)):
        names = {one.name for one in dataclasses.fields(kind)}
        assert set(re.findall(r"`(\w+)`", said[f"`{field}`"])) == names


# Models -----------------------------------------------------------------------------------------


def test_every_architecture_is_listed() -> None:
    table = section(read("docs/compatibility.md"), "Architectures")
    assert {row[1].strip("`") for row in rows(table)} == LAYOUTS.keys()


def test_every_refused_architecture_is_listed_with_its_reason() -> None:
    listed = {
        name: reason
        for _, names, reason in rows(section(read("docs/models.md"), "Refused by name"))
        for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == REFUSED
