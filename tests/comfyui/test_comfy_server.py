"""The driver of the live server: what the other host tests stand on."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest

from harness.comfy_server import (
    REPO_ROOT,
    ComfyServer,
    ComfyServerError,
    PromptFailed,
    PromptInterrupted,
    PromptRejected,
    link_pack,
    prompt_seconds,
)


def image_prompt(size: int = 64, blurs: int = 0) -> dict:
    """Make an image, blur it some times, save it: a prompt that needs no model."""
    nodes = {"0": ("EmptyImage", {"width": size, "height": size, "batch_size": 1, "color": 255})}
    for i in range(blurs):
        inputs = {"image": [str(i), 0], "blur_radius": 31, "sigma": 10.0}
        nodes[str(i + 1)] = ("ImageBlur", inputs)
    nodes["save"] = ("SaveImage", {"images": [str(blurs), 0], "filename_prefix": "test"})
    return {key: {"class_type": name, "inputs": inputs} for key, (name, inputs) in nodes.items()}


def test_server_answers_and_has_the_stock_nodes(server: ComfyServer) -> None:
    assert server.running
    assert "KSampler" in server.get("/object_info/KSampler")
    assert server.get("/system_stats")["system"]["comfyui_version"]
    assert "To see the GUI" in server.log_text()


def test_server_tries_to_load_the_pack(server: ComfyServer) -> None:
    link = server.base_dir / "custom_nodes" / "asyncdiff"
    assert link.resolve() == REPO_ROOT
    assert str(link) in server.log_text()  # among the import times of custom nodes


def test_run_returns_the_history_entry(server: ComfyServer) -> None:
    entry = server.run(image_prompt())
    (image,) = server.files(entry)
    assert image.parent == server.output
    assert image.read_bytes().startswith(b"\x89PNG")
    assert server.get_bytes(f"/view?filename={image.name}") == image.read_bytes()
    assert 0 <= prompt_seconds(entry) < 60


def test_rejected_prompt_names_the_node_and_the_reason(server: ComfyServer) -> None:
    prompt = image_prompt()
    prompt["0"]["inputs"]["width"] = "wide"
    with pytest.raises(PromptRejected, match=r"EmptyImage.*width") as caught:
        server.submit(prompt)
    assert caught.value.error["type"] == "prompt_outputs_failed_validation"
    assert caught.value.node_errors["0"]["class_type"] == "EmptyImage"


def test_failed_prompt_names_the_node_and_the_exception(server: ComfyServer) -> None:
    checkpoints = server.models / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    (checkpoints / "broken.safetensors").write_bytes(b"no such thing")
    prompt = {
        "load": {
            "class_type": "CheckpointLoaderSimple",
            "inputs": {"ckpt_name": "broken.safetensors"},
        },
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "decode": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["latent", 0], "vae": ["load", 2]},
        },
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["decode", 0], "filename_prefix": "test"},
        },
    }
    with pytest.raises(PromptFailed, match=r"CheckpointLoaderSimple.*header") as caught:
        server.run(prompt)
    assert (caught.value.node_id, caught.value.node_type) == ("load", "CheckpointLoaderSimple")
    assert caught.value.exception_type and caught.value.exception_message
    assert "load_checkpoint" in caught.value.traceback
    assert server.run(image_prompt())  # and the server goes on


def test_interrupted_prompt(server: ComfyServer) -> None:
    prompt_id = server.submit(image_prompt(size=1024, blurs=60))
    while not server.get("/queue")["queue_running"]:
        time.sleep(0.01)
    time.sleep(0.3)
    server.interrupt()
    with pytest.raises(PromptInterrupted) as caught:
        server.wait(prompt_id)
    assert caught.value.node_type in ("EmptyImage", "ImageBlur")


def test_unwelcome_answer_is_an_http_error(server: ComfyServer) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/no/such/path")


def test_time_out_leaves_the_server_running(server: ComfyServer) -> None:
    with pytest.raises(ComfyServerError, match="did not end within 0 s"):
        server.wait("00000000-0000-0000-0000-000000000000", timeout=0)
    assert server.running


# Below, a program of a few lines plays ComfyUI: what matters is how a process starts and ends.

QUIET = "import time\nprint('quiet', flush=True)\ntime.sleep(600)\n"
SERVING = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")
port = int(sys.argv[sys.argv.index("--port") + 1])
print(*sys.argv, flush=True)
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


def fake_server(folder: Path, program: str, **options: object) -> ComfyServer:
    (folder / "ComfyUI").mkdir(exist_ok=True)
    (folder / "ComfyUI" / "main.py").write_text(program)
    return ComfyServer(folder / "ComfyUI", folder / "base", args=["--cpu"], **options)


def test_early_exit_shows_the_log(tmp_path: Path) -> None:
    server = fake_server(tmp_path, "print('before'); raise SystemExit('no such flag')")
    with pytest.raises(ComfyServerError, match=r"ended with status 1(?s:.*)before\nno such flag"):
        server.start()
    assert not server.running


def test_silent_server_is_ended_after_the_time_out(tmp_path: Path) -> None:
    server = fake_server(tmp_path, QUIET)
    with pytest.raises(ComfyServerError, match=r"did not answer within 1 s(?s:.*)quiet"):
        server.start(timeout=1)
    assert not server.running


def test_killed_server_is_reported_and_starts_again(tmp_path: Path) -> None:
    server = fake_server(tmp_path, SERVING)
    with server:
        first = server.pid
        server.kill()
        with pytest.raises(ComfyServerError, match="ended with status -9"):
            server.wait("a prompt")
        server.start()
        assert server.running and server.pid != first
        with pytest.raises(ComfyServerError, match="already running"):
            server.start()
        assert server.log_text().count("main.py") == 1  # of this start only
    assert not server.running


def test_arguments_and_environment_reach_the_server(tmp_path: Path) -> None:
    program = "import os; print(os.environ['MARK'], flush=True)" + SERVING
    with fake_server(tmp_path, program, env={"MARK": "here"}) as server:
        log = server.log_text()
    assert log.startswith("here")
    assert f"--base-directory {server.base_dir}" in log
    assert log.count("--cpu") == 1


def test_more_packs_are_linked_under_their_own_names(tmp_path: Path) -> None:
    pack = tmp_path / "more"
    pack.mkdir()
    with fake_server(tmp_path, SERVING, more_packs=[pack]) as server:
        links = {link.name: link.resolve() for link in (server.base_dir / "custom_nodes").iterdir()}
    assert links == {"asyncdiff": REPO_ROOT, "more": pack}


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_server_dies_with_a_killed_parent(tmp_path: Path) -> None:
    fake_server(tmp_path, SERVING)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path;"
            "from harness.comfy_server import ComfyServer;"
            "server = ComfyServer(Path(sys.argv[1]), Path(sys.argv[2]), args=['--cpu']).start();"
            "print(server.pid, flush=True); time.sleep(600)",
            str(tmp_path / "ComfyUI"),
            str(tmp_path / "base"),
        ],
        cwd=REPO_ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(pid):
        assert time.monotonic() < deadline, "the server outlived its parent"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Alive, and not a zombie that its new parent has yet to bury."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_link_follows_the_pack(tmp_path: Path) -> None:
    for name in ("one", "two", "two"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "name.json").write_text(json.dumps(name))
        link_pack(tmp_path / name, tmp_path / "custom_nodes" / "asyncdiff")
        assert json.loads((tmp_path / "custom_nodes/asyncdiff/name.json").read_text()) == name
