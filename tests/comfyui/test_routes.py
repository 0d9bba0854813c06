"""What programs and the browser see beside ComfyUI's own routes, and the text on nodes."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from demo import shapes
from harness.comfy_server import ComfyServer
from harness.graphs import Workflow, node
from harness.lab import ADAPTER_PACK, asyncdiff, latent, workflow, write_models

from . import sockets


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


def group_of(lab: ComfyServer, run: tuple[dict[str, Any], sockets.Events]) -> dict[str, Any]:
    """The group that did `run`; there may be others of the same model."""
    [report] = lab.get(f"/asyncdiff/report/{run[0]['prompt'][1]}")["runs"]
    pids = {worker["pid"] for worker in report["workers"]}
    groups = lab.get("/asyncdiff/status")["groups"]
    [group] = [g for g in groups if pids == {worker["pid"] for worker in g["workers"]}]
    return group


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
    group = group_of(lab, run)
    assert group["workers"][1]["log_file"].endswith("worker-1.log")
    lab.get_bytes(f"/asyncdiff/log/{group['id']}/1")
    for path in (f"{group['id']}/2", f"{group['id']}/-1", f"{group['id']}/01", "g0/0"):
        assert refusal(lab, f"/asyncdiff/log/{path}")[0] == 404
    for path in (f"{group['id']}/..%2F..%2Fworker-0", f"..%2F{group['id']}/0"):
        assert refusal(lab, f"/asyncdiff/log/{path}")[0] == 404


def answer(server: ComfyServer, path: str, body: bytes, kind: str | None) -> tuple[int, Any]:
    """What a POST is answered, and its status."""
    request = urllib.request.Request(server.url + path, body, method="POST")
    if kind is not None:
        request.add_header("Content-Type", kind)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


JSON = "application/json"


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"{}", None, "content type"),  # urllib says that it is a form, as a foreign page could
        (b"", "text/plain", "content type"),
        (b'{"group": "x"}', "text/plain", "content type"),
        (b"{", JSON, "no JSON"),
        (b"\xff", JSON, "no JSON"),
        ("{}".encode("utf-16"), f"{JSON}; charset=utf-16", "no JSON"),
        (b"[" * 60_000, JSON, "no JSON"),
        (b'{"group": ' + b"9" * 5000 + b"}", JSON, "no JSON"),
        (b'{"group": ' + b"9" * 50 + b"}", JSON, "no group a number"),
        (b'{"group": "' + b"x" * 60_000 + b'"}', JSON, "no group 'xxx"),
        (b'{"' + b"x" * 60_000 + b'": 1}', JSON, "unknown fields"),
        (b'{"keep_workers": [1]}', JSON, "must be true or false"),
        (b"[]", JSON, "must be a JSON object"),
        (b" " * 24 * 2**20, JSON, "longer than"),
    ],
)
def test_what_is_no_request_to_release(
    lab: ComfyServer, run: Any, body: bytes, kind: str | None, words: str
) -> None:
    groups = len(lab.get("/asyncdiff/status")["groups"])
    status, told = answer(lab, "/asyncdiff/release", body, kind)
    assert status == 400 and words in told["error"]
    assert len(told["error"]) < 500
    assert len(lab.get("/asyncdiff/status")["groups"]) == groups


def test_the_charset_is_utf_8_whatever_is_said(lab: ComfyServer) -> None:
    status, told = answer(lab, "/asyncdiff/release", b"{", f"{JSON}; charset=no-such")
    assert status == 400 and "no JSON" in told["error"]


def test_long_numbers_in_addresses(lab: ComfyServer) -> None:
    for last in ("9" * 5000, "\u0661", "1" * 10):
        code, text = refusal(lab, f"/asyncdiff/report?last={urllib.parse.quote(last)}")
        assert code == 400 and len(text) < 500
    code, text = refusal(lab, f"/asyncdiff/report/{'x' * 5000}")
    assert code == 404 and len(text) < 500


def test_a_long_log_is_its_end(lab: ComfyServer, run: Any) -> None:
    group = group_of(lab, run)
    log = Path(group["workers"][0]["log_file"])
    with log.open("ab") as file:
        file.write(b"first line\n" + b"x" * 99 + b"\n" + b"y" * 2**21 + b"\nlast line\n")
    with urllib.request.urlopen(f"{lab.url}/asyncdiff/log/{group['id']}/0") as response:
        text = response.read().decode()
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers.get_content_type() == "text/plain"
    assert len(text) < 2**20 + 100 and text.startswith("[... ") and text.endswith("last line\n")


def test_visitors_from_elsewhere_see_no_folders(comfyui_path: Path, tmp_path: Path) -> None:
    """Of --listen; whoever is on this machine sees the paths."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        address = probe.getsockname()[0]
    args = ["--listen", "0.0.0.0"]
    env = {"OMP_NUM_THREADS": "1"}
    packs = [shapes.PACK, ADAPTER_PACK]
    with ComfyServer(comfyui_path, tmp_path, args=args, env=env, more_packs=packs) as server:
        write_models(server.models)
        latent(server, flow(7))
        here = json.dumps(server.get("/asyncdiff/status")) + json.dumps(
            server.get("/asyncdiff/report")
        )
        assert str(tmp_path) in here
        port = server.url.rpartition(":")[2]
        [group] = server.get("/asyncdiff/status")["groups"]
        log = Path(group["workers"][1]["log_file"])
        with log.open("a") as file:
            file.write(f"File '{tmp_path}/a b/c d.py', line 1\n")
        with urllib.request.urlopen(
            f"http://{address}:{port}/asyncdiff/log/{group['id']}/1"
        ) as response:
            text = response.read().decode()
        assert text.endswith("File 'c d.py', line 1\n") and str(tmp_path) not in text
        for path in ("status", "report"):
            with urllib.request.urlopen(f"http://{address}:{port}/asyncdiff/{path}") as response:
                text = response.read().decode()
            assert "worker-1.log" in text
            assert str(tmp_path) not in text and "/" not in text.replace("application/json", "")
