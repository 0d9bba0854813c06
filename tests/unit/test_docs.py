"""The documents list what there is, and show what was measured."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncdiff_core import settings
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.comfyui.model.layouts import LAYOUTS, REFUSED
from asyncdiff_core.comfyui.run import history
from asyncdiff_core.planning.plan import ParallelPlan
from asyncdiff_core.planning.planner import predicted_speedup
from asyncdiff_core.reports.report import Evaluated, RunReport, Span, WorkerReport
from dev import COMMANDS
from harness.module_table import CORE, FOLDERS, put_into

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for folder in (".", "docs", "web/docs")
    for path in (ROOT / folder).glob("*.md")
)


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


# Links and commands -----------------------------------------------------------------------------


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What links into a page can lead to, as GitHub names headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page: str) -> None:
    text = read(page)
    assert set(re.findall(r"python3 dev\.py (\w+)", text)) <= COMMANDS.keys()
    for module in re.findall(r"-m ((?:benchmarks|demo|tests)[\w.]*)", text):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for script in re.findall(r"dev\.py python (\S+\.py)", text):
        assert (ROOT / script).is_file(), script


def test_the_readme_leads_to_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#]*\.md)", read("README.md")))
    # The changelog is found by its name; a link to it may stand there as well.
    assert links | {"CHANGELOG.md"} == {*PAGES} - {"README.md"}


def test_the_readme_names_the_nodes() -> None:
    nodes = json.loads(read("locales/en/nodeDefs.json"))
    table = rows(section(read("README.md"), "The nodes"))
    named = {re.sub(r"\[(\w+)\].*", r"\1", page): f"{name} (AsyncDiff)" for name, page, _ in table}
    assert named == {node_id: node["display_name"] for node_id, node in nodes.items()}


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
    report.evaluations = [Evaluated(0, 0, "sync", 1.0, 2.0)]
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
    monkeypatch.setattr(history, "_runs", deque())
    history.record(report)
    [recorded] = history.last_runs()
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


# Figures ----------------------------------------------------------------------------------------

FIGURE = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:x| dB| MB| s)(?!\w)")


def test_figures_of_the_readme_are_measured_ones() -> None:
    there = {
        *FIGURE.findall(read("docs/measurements.md")),
        *FIGURE.findall(read("docs/quality.md")),
    }
    shown = {figure for figure in FIGURE.findall(read("README.md")) if not figure.endswith(" s")}
    assert len(shown) > 5
    assert shown - there == set()


def by_setting(text: str) -> dict[str, dict[str, str]]:
    """The rows of a table of settings, each cell by the heading of its column."""
    heading, _, _ = text[text.index("| setting") :].partition("\n")
    columns = [cell.strip() for cell in heading.strip("| ").split("|")]
    return {
        row[0]: dict(zip(columns, (cell.strip("*") for cell in row), strict=True))
        for row in rows(text)
    }


def test_the_settings_that_the_readme_shows() -> None:
    quality = read("docs/quality.md")
    results = by_setting(section(quality, "All settings"))
    heading = "At equal ideal time: AsyncDiff / the stock sampler with fewer steps"
    fewer = by_setting(section(quality, heading))
    shown = list(rows(section(read("README.md"), "What speed-up to expect, and what it costs")))
    assert len(shown) > 3
    for devices, setting, ideal, psnr, accuracy, baseline in shown:
        name = re.match("`(.*?)`", setting)[1]
        cells = results[name]
        columns = "devices", "ideal", "PSNR (dB)", "accuracy"
        assert [devices, ideal, psnr, accuracy] == [cells[column] for column in columns]
        if name in fewer:
            both, right = (fewer[name][c].split(" / ")[1] for c in ("PSNR (dB)", "accuracy"))
            assert baseline == f"{fewer[name]['steps']}: {both}, {right}"
        else:
            assert baseline == ""


def test_the_measured_speed_up_of_the_readme() -> None:
    table = rows(section(read("docs/measurements.md"), "Step time and speed-up"))
    two, stride = {}, {}
    for _, key, *cells in table:
        two[key.strip("`")], stride[key.strip("`")] = cells
    text = section(read("README.md"), "What speed-up to expect, and what it costs")
    assert FIGURE.findall(text[text.index("Measured by") :]) == [
        *(two["speedup"], two["ideal_speedup"], stride["speedup"], stride["ideal_speedup"]),
        f"{two['stock_whole_machine_seconds']} s",
        f"{two['asyncdiff_seconds']} s",
    ]


def test_the_ideal_times_follow_from_the_formula() -> None:
    runs = ((30, 1), (30, 3), (50, 3), (50, 9))  # steps, warm-up
    table = list(rows(section(read("docs/algorithm.md"), "Ideal time")))
    assert len(table) == 7
    for devices, shape, *speedups in table:
        stages, stride, replicas = map(int, shape.removesuffix(" (with CFG)").split(", "))
        plan = ParallelPlan(("cpu",) * int(devices), stages, replicas, stride)
        ideal = [
            predicted_speedup(plan, num_conds=2, steps=steps, num_sync=warm_up, costs=[1.0] * 12)
            for steps, warm_up in runs
        ]
        assert speedups == [f"{speedup:.2f}x" for speedup in ideal]


def test_every_module_has_its_line() -> None:
    """In docs/architecture.md; what stands there is what the module says of itself."""
    page = read("docs/architecture.md")
    assert page == put_into(page)
    folders = {str(p.parent.relative_to(CORE)) for p in CORE.rglob("*.py")}
    assert folders == {".", *FOLDERS}


# Words ------------------------------------------------------------------------------------------

# What has a better word: see docs/architecture.md. ComfyUI's own methods are named as they are.
OLD_WORDS = {
    r"attach(?!ments?\()|\battached\b": "keep, code patch",
    r"\bdata_?flow\b": "chain check",
    r"\boverview\b": "HTTP API",
    r"\bstage_weights\b": "stage model",
    r"\bskipped_blocks\b": "block patches",
    r"\basyncdiff_core[./]host\b|\bhost/\w+\.py": "comfyui",
    r"\bmessages\.(py|[A-Z]\w+)|\bcontrol message": "request, answer",
    r"\bdeal(s|ing)?\b|\bdealt\b": "scatter, gather",
    r"\bentry\.py\b": "bootstrap, lifeline",
}


@pytest.mark.parametrize("old", OLD_WORDS, ids=OLD_WORDS.values())
def test_one_word_for_one_thing(old: str) -> None:
    folders = ("asyncdiff_core", "nodes", "harness", "benchmarks", "demo", "docs")
    paths = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in {".py", ".md"}]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (*pages, *paths)
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(old, line)
    ]
    assert found == []
