"""docs/api.md does what it says: its examples are run as they stand there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from harness.comfy_server import ComfyServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """The demo's graph, without its preview, so that the first picture is one of the model's."""
    flow = json.loads((ROOT / "workflows" / "api" / "asyncdiff_demo.json").read_text("utf-8"))
    flow["6"]["inputs"]["seed"] = int.from_bytes(os.urandom(4), "big")  # not from the cache
    path = tmp_path / "graph.json"
    path.write_text(json.dumps({key: flow[key] for key in flow if key not in ("9", "10")}))
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "run.py"
    path.write_text(blocks("python")[0], "utf-8")
    return path


def check_report(path: Path) -> None:
    [run] = json.loads(path.read_text("utf-8"))["runs"]
    assert len(run["workers"]) == 2 and len(run["evaluations"]) == 30


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the page says so")
def test_python(server: ComfyServer, graph: Path, program: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(program), server.url, str(graph), str(tmp_path / "results")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "step 30 of 30" in printed and printed.splitlines()[-1] == "success"
    assert re.search(r"node 6: async 27/27, [\d.]+x", printed)
    pictures = sorted((tmp_path / "results").glob("demo_*.png"))
    assert len(pictures) == 4
    assert all(Image.open(picture).size == (64, 64) for picture in pictures)
    check_report(tmp_path / "results" / "report.json")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the page says so")
def test_python_cancels(server: ComfyServer, graph: Path, program: Path, tmp_path: Path) -> None:
    flow = json.loads(graph.read_text("utf-8"))
    flow["6"]["inputs"]["steps"] = 1000
    graph.write_text(json.dumps(flow))
    command = [sys.executable, "-u", str(program), server.url, str(graph), str(tmp_path)]
    # A program inherits that Ctrl-C is ignored, as it is in the background of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        assert process.stdout is not None
        prompt_id = process.stdout.readline().split()[1]
        for line in process.stdout:
            if line.startswith("step "):
                process.send_signal(signal.SIGINT)
                break
        assert "canceled" in process.stdout.read()
    assert process.returncode == 1
    entry: dict[str, Any] = {}
    while not entry:
        entry = server.get(f"/history/{prompt_id}")
    messages = dict(entry[prompt_id]["status"]["messages"])
    assert "execution_interrupted" in messages


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl(server: ComfyServer, graph: Path, tmp_path: Path) -> None:
    script = "\n".join(["set -eu", *blocks("sh")])
    env = {**os.environ, "SERVER": server.url, "GRAPH": str(graph), "NO_PROXY": "127.0.0.1"}
    command = ["bash", "-o", "pipefail", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (64, 64)
    check_report(tmp_path / "report.json")
    assert '"released": ["g' in result.stdout
    assert server.get("/asyncdiff/status")["groups"] == []
