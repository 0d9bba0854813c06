"""The pack costs next to nothing where it is installed and not used."""

from __future__ import annotations

import re

import psutil
import pytest

from demo.comfy_server import ComfyServer

# On a machine without other work it is 0.1 s. Other tests may run now, so this bound catches
# blunders, such as a large library that is imported without being used.
MOST_SECONDS = 1.0


@pytest.fixture(scope="module")
def unused(comfyui_path, tmp_path_factory) -> ComfyServer:
    with ComfyServer(comfyui_path, tmp_path_factory.mktemp("unused"), args=["--cpu"]) as server:
        yield server


def test_start_is_hardly_slower(unused: ComfyServer) -> None:
    (seconds,) = re.findall(r"([\d.]+) seconds.*custom_nodes.asyncdiff$", unused.log_text(), re.M)
    assert float(seconds) < MOST_SECONDS


def test_nothing_is_started(unused: ComfyServer) -> None:
    assert psutil.Process(unused.pid).children(recursive=True) == []
    assert unused.get("/asyncdiff/status")["groups"] == []
    assert unused.get("/asyncdiff/report")["runs"] == []
    # Asking what there is starts nothing either.
    unused.get("/asyncdiff/devices")
    assert psutil.Process(unused.pid).children(recursive=True) == []
