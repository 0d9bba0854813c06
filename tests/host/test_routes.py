"""What programs and the browser see beside ComfyUI's own routes, and the text on nodes."""

from __future__ import annotations

import json
import urllib.error
from typing import Any

import pytest
from PIL import Image

from demo.comfy_server import ComfyServer
from demo.graphs import Workflow, node

from . import sockets
from .lab import asyncdiff, workflow


def refusal(server: ComfyServer, path: str) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.get(path)
    return caught.value.code, json.loads(caught.value.read())["error"]


def flow(seed: int, **options: Any) -> Workflow:
    """A run that ComfyUI has no answer to in its cache."""
    return asyncdiff(workflow("wan", seed=seed), **options)


def with_timeline(seed: int, width: int) -> Workflow:
    timeline = node("AsyncDiffTimeline", samples=["sampler", 0], width=width)
    save = node("SaveImage", images=["timeline", 0], filename_prefix="timeline")
    return {**flow(seed), "timeline": timeline, "picture": save}


@pytest.fixture(scope="module")
def run(lab: ComfyServer) -> tuple[dict[str, Any], sockets.Events]:
    """The history entry of a run with a timeline, and what the websocket told meanwhile."""
    events = sockets.run(lab, with_timeline(seed=101, width=900))
    (prompt_id,) = {data["prompt_id"] for _, data in events.messages}
    return lab.get(f"/history/{prompt_id}")[prompt_id], events


def test_report_of_a_prompt(lab, run):
    prompt_id = run[0]["prompt"][1]
    [report] = lab.get(f"/asyncdiff/report/{prompt_id}")["runs"]
    assert (report["prompt_id"], report["node_id"]) == (prompt_id, "sampler")
    assert lab.get("/asyncdiff/report?last=1")["runs"] == [report]
    assert len(lab.get("/asyncdiff/report")["runs"]) >= 1


def test_what_is_wrong_with_a_request_for_a_report(lab):
    assert refusal(lab, "/asyncdiff/report/none")[0] == 404
    for last in ("0", "-1", "x", ""):
        code, text = refusal(lab, f"/asyncdiff/report?last={last}")
        assert code == 400 and "last must be a whole number" in text


def test_timeline_is_a_picture_of_the_run(lab, run):
    [path] = [path for path in lab.files(run[0]) if path.name.startswith("timeline")]
    with Image.open(path) as picture:
        assert picture.width == 900
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0xD9, 0x8E, 0x32), (0x2F, 0x7F, 0xBF)} <= colours  # sync and async bars


def test_the_sampler_tells_phase_and_speed(run):
    texts = [text for node_id, text in run[1].texts if node_id == "sampler"]
    phases = [text.split(",")[0] for text in texts]
    steps = ["warm-up 1/1", "async 1/4", "async 2/4", "async 3/4", "async 4/4"]
    assert phases[-6:] == [*steps, "5 steps"]  # in the end what all of them gained
    for text in texts[-2:]:
        assert text.endswith("x") and float(text.split(", ")[1][:-1]) > 0


def test_devices(lab):
    machine = lab.get("/asyncdiff/devices")
    assert machine["auto"] == ["cpu", "cpu"]
    [cpu] = machine["devices"]
    assert cpu["name"] == "cpu" and cpu["memory_bytes"] > 2**30


def test_log_of_a_known_worker_only(lab, run):
    [group] = [g for g in lab.get("/asyncdiff/status")["groups"] if g["model"] == "WanModel"]
    assert group["workers"][1]["log_file"].endswith("worker-1.log")
    lab.get_bytes(f"/asyncdiff/log/{group['id']}/1")
    for path in (f"{group['id']}/2", f"{group['id']}/-1", f"{group['id']}/01", "g0/0"):
        assert refusal(lab, f"/asyncdiff/log/{path}")[0] == 404
    for path in (f"{group['id']}/..%2F..%2Fworker-0", f"..%2F{group['id']}/0"):
        assert refusal(lab, f"/asyncdiff/log/{path}")[0] == 404
