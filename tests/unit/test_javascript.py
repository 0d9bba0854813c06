"""What the browser runs: its types, and that it says the same as the server where both say it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import playwright
import pytest

from asyncdiff_core.errors import PlanError
from asyncdiff_core.planning.plan import parse_devices
from asyncdiff_core.reports.progress import phase
from asyncdiff_core.reports.report import Evaluated, RunReport
from asyncdiff_core.reports.timeline import tick_interval
from asyncdiff_core.workers.status import GroupState, WorkerState

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web"
TYPESCRIPT = "typescript@5.9.3"

# Playwright brings one, so that it is there wherever the tests are.
NODE = next(Path(playwright.__file__).parent.glob("driver/node*"), None)
CALL = """
    globalThis.document = { addEventListener() {} };
    const [url, name, calls] = JSON.parse(process.argv[1]);
    const { [name]: called } = await import(url);
    console.log(JSON.stringify(calls.map((call) => called(...call))));
"""


def in_javascript(module: str, name: str, calls: list[list[Any]]) -> list[Any]:
    """What a function of a module of web/ returns for each of these lists of arguments."""
    if NODE is None:
        pytest.skip("needs the Node.js that Playwright brings")
    arguments = json.dumps([(WEB / module).as_uri(), name, calls])
    command = [str(NODE), "--no-warnings", "--input-type=module", "--eval", CALL, arguments]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    answers: list[Any] = json.loads(result.stdout)
    return answers


def test_types() -> None:
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("needs npx, of Node.js, on the search path")
    tsc = [npx, "--yes", "--prefer-offline", "--package", TYPESCRIPT, "tsc"]
    there = subprocess.run([*tsc, "--version"], capture_output=True, text=True)
    if there.returncode:
        pytest.skip(f"npx cannot fetch {TYPESCRIPT}: {there.stderr.strip()[-200:]}")
    result = subprocess.run([*tsc, "--project", str(ROOT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_file_is_checked() -> None:
    """Also in an editor that does not know tsconfig.json."""
    for path in WEB.rglob("*.js"):
        assert path.read_text("utf-8").startswith("// @ts-check\n"), path


def test_comfyui_imports_no_types() -> None:
    """It imports every .js in web/. What is there for the check alone must have another name."""
    assert sorted({path.suffixes[-1] for path in (WEB / "types").iterdir()}) == [".ts"]


def test_the_types_name_the_states_that_the_server_has() -> None:
    text = (WEB / "types" / "server.d.ts").read_text("utf-8")
    states = [set(re.findall(r'"(\w+)"', line)) for line in re.findall(r"\bstate: .*;", text)]
    assert states == [set(get_args(WorkerState)), set(get_args(GroupState))]


def test_both_say_the_same_of_a_run() -> None:
    """The panel, and the node's text; of a speed-up only that tells."""
    runs = [
        {"evaluations": done, "warm_up": warm_up, "steps": steps, "mode": mode}
        for mode in ("sync", "async")
        for done in (1, 2, 3, 4, 9, 30)
        for warm_up in (1, 3, 8, 100)
        for steps in (None, 2, 3, 8, 30)
    ]
    expected = []
    for run in runs:
        report = RunReport("Toy", {}, {"warm_up": run["warm_up"]}, start=0.0, cold=False)
        report.steps = run["steps"]
        report.evaluations = [
            Evaluated(i, 0, run["mode"], 0.0, 0.0) for i in range(run["evaluations"])
        ]
        expected.append(phase(report))
    assert in_javascript("panel/words.js", "phaseWords", [[run] for run in runs]) == expected


def test_both_divide_an_axis_alike() -> None:
    lengths = (0.0004, 0.009, 0.1, 0.99, 1.0, 8.1, 13.0, 59.99, 600.0, 7200.0)
    calls = [[length, most] for length, most in itertools.product(lengths, (1, 3, 7.5, 12))]
    expected = [tick_interval(*call) for call in calls]
    assert in_javascript("panel/timeline.js", "tickInterval", calls) == expected


MACHINES = (("cpu",), ("cuda:0", "cpu"), ("cuda:0", "cuda:1", "cpu"))


def known(machine: tuple[str, ...]) -> dict[str, Any]:
    return {"devices": [{"name": name} for name in machine], "auto": []}


def is_accepted(text: str, machine: tuple[str, ...]) -> bool:
    try:
        parse_devices(text, machine)
    except PlanError:
        return False
    return True


def test_both_know_the_devices_of_a_machine() -> None:
    texts = [
        "auto",
        " AUTO ",
        "cpu",
        "cpu,cpu",
        "cuda",
        "cuda:0",
        "CUDA:0, cuda:0",
        "cuda:0,cuda:1",
    ]
    texts += [
        "cuda:1,cpu",
        "cuda:2",
        "cuda:-1",
        "cuda:00",
        "cuda1",
        "cpu:0",
        "mps",
        "xpu:0,cpu",
        "?",
    ]
    cases = list(itertools.product(texts, MACHINES))
    said = in_javascript("devices.js", "warning", [[text, known(m)] for text, m in cases])
    for (text, machine), warning in zip(cases, said, strict=True):
        assert (warning is None) == is_accepted(text, machine), (text, machine, warning)


@pytest.mark.parametrize("text", ["", "cpu,", "auto,cpu"])
def test_what_is_no_list_of_devices_is_left_to_the_server(text: str) -> None:
    """It is no text from another machine, so nothing takes its place: the server's error tells."""
    calls = [[text, known(machine)] for machine in MACHINES]
    assert in_javascript("devices.js", "warning", calls) == [None] * len(MACHINES)
    assert not any(is_accepted(text, machine) for machine in MACHINES)
