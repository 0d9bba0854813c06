"""Short versions of what benchmarks/reliability does at length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.reliability import cancel, fuzz_server, marathon
from benchmarks.reliability.faults import ENVIRONMENT, Faults
from benchmarks.reliability.kinds import KINDS
from benchmarks.reliability.live import Watch, serving
from benchmarks.reliability.soak import Soak
from harness.comfy_server import ComfyServer

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")

# Every kind of moment, and every kind of fault that does not end as a signal does.
CASES = [
    ("SIGSEGV", "start"),
    ("control", "warm-up"),
    ("link", "load"),
    ("hang", "async"),
    ("memory", "async"),
    ("garbage", "idle"),
    ("hang", "idle"),
]


@pytest.fixture(scope="module")
def impatient(
    lab: ComfyServer, comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ComfyServer, Watch]]:
    """A server that takes a silent worker for a hung one after five seconds."""
    folder = tmp_path_factory.mktemp("impatient")
    (folder / "tmp").mkdir()
    (folder / "models").symlink_to(lab.models)
    env = {**ENVIRONMENT, "TMPDIR": str(folder / "tmp")}
    with serving(comfyui_path, folder, **env) as running:
        yield running


@pytest.fixture(scope="module")
def faults(impatient: tuple[ComfyServer, Watch]) -> Faults:
    return Faults(*impatient)


@pytest.mark.parametrize(("kind", "moment"), CASES)
def test_a_fault_is_told_and_the_next_prompt_works(faults: Faults, kind: str, moment: str) -> None:
    (known,) = [one for one in KINDS if one.name == kind]
    case = faults.run(known, moment, rank=1)
    assert case.problems == ()


def test_a_short_soak(impatient: tuple[ComfyServer, Watch]) -> None:
    names = ("wan", "wan, LoRA 1", "sd15")
    result = Soak(*impatient, seed=3, names=names).run(14, peace=5, rounds=1)
    assert result["problems"] == []
    assert result["first census"] is not None


def test_cancel_takes_no_longer_than_an_evaluation(lab: ComfyServer) -> None:
    """The median, since a busy machine may hold up any single one; the benchmark wants them all."""
    with Watch(lab) as watch:
        result = cancel.measure(lab, watch, count=5)
    assert result["problems"] == []
    assert result["cancels"] == 5
    assert result["latency"]["median"] <= result["bound"]


def test_nonsense_in_prompts(lab: ComfyServer) -> None:
    with Watch(lab) as watch:
        found = fuzz_server.to_nodes(lab, watch, 40, seed=5)
    assert found.total() == 40 and found["refused"] and found["success"]


def test_nonsense_to_the_routes(lab: ComfyServer) -> None:
    found = fuzz_server.to_routes(lab, 100, seed=5)
    assert found["200"] and found["400"]


def test_many_short_prompts(lab: ComfyServer) -> None:
    with Watch(lab) as watch:
        problems = marathon.send(lab, watch, range(40))
    assert problems == []
