"""The pack costs next to nothing where it is installed and not used."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from harness.comfy_server import ComfyServer

# On a machine without other work it is 0.1 s. Other tests may run now, so this bound catches
# blunders, such as a large library that is imported without being used.
MOST_SECONDS = 1.0

WATCH_PACK = Path(__file__).parent / "watch_pack"


@pytest.fixture(scope="module")
def unused(comfyui_path, tmp_path_factory) -> ComfyServer:
    base_dir = tmp_path_factory.mktemp("unused")
    with ComfyServer(
        comfyui_path,
        base_dir,
        args=["--cpu"],
        env={"WATCHED_CALLS": str(base_dir / "calls.txt")},
        more_packs=[WATCH_PACK],
    ) as server:
        yield server


def cuda_calls(server: ComfyServer) -> list[list[str]]:
    """Calls of torch.cuda's functions: the name, and the file of the pack if it called it."""
    text = (server.base_dir / "calls.txt").read_text("utf-8")
    return [line.split(maxsplit=1) for line in text.splitlines()]


def test_start_is_hardly_slower(unused: ComfyServer) -> None:
    (seconds,) = re.findall(r"([\d.]+) seconds.*custom_nodes.asyncdiff$", unused.log_text(), re.M)
    assert float(seconds) < MOST_SECONDS


def test_nothing_is_started(unused: ComfyServer) -> None:
    assert psutil.Process(unused.pid).children(recursive=True) == []
    assert unused.get("/asyncdiff/status")["groups"] == []
    assert unused.get("/asyncdiff/report")["runs"] == []
    # No context on a GPU: the pack has not so much as asked for one.
    assert [call for call in cuda_calls(unused) if len(call) > 1] == []
    # Asking what there is starts nothing either.
    unused.get("/asyncdiff/devices")
    assert psutil.Process(unused.pid).children(recursive=True) == []


def test_calls_of_cuda_would_be_seen(unused: ComfyServer) -> None:
    """ComfyUI's own are."""
    assert [call for call in cuda_calls(unused) if len(call) == 1]
