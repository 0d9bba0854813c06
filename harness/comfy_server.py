"""A real, headless ComfyUI with this pack linked in, driven over HTTP.

Used by the demo, the benchmarks and the host tests. Standard library only, and ComfyUI is never
imported here: it runs in a process of its own.

    with ComfyServer(Path("~/ComfyUI").expanduser(), Path("run")) as server:
        entry = server.run(prompt)          # an API-format workflow
        print(prompt_seconds(entry), server.files(entry))
"""

from __future__ import annotations

import atexit
import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parent.parent
PACK_FOLDER = "asyncdiff"  # under custom_nodes/; the browser sees it in /extensions/asyncdiff/

# A proxy set in the environment must not be asked for a loopback address.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ComfyServerError(RuntimeError):
    """The server did not start, died, or did not answer in time; ends with the log's last lines."""


class PromptRejected(ComfyServerError):
    """ComfyUI refused the prompt before running it."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.error: dict[str, Any] = body.get("error") or {}
        self.node_errors: dict[str, Any] = body.get("node_errors") or {}
        reasons = [f"{self.error.get('message')} {self.error.get('details', '')}".strip()]
        for node_id, node in self.node_errors.items():
            for reason in node.get("errors", []):
                text = f"{reason.get('message')}: {reason.get('details')}"
                reasons.append(f"{node.get('class_type')} (node {node_id}): {text}")
        super().__init__("; ".join(reasons))


class PromptFailed(ComfyServerError):
    """A node raised; the attributes are those of ComfyUI's `execution_error` message."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.node_id: str | None = message.get("node_id")
        self.node_type: str | None = message.get("node_type")
        self.exception_type: str = message.get("exception_type", "")
        self.exception_message: str = message.get("exception_message", "").strip()
        self.traceback = "".join(message.get("traceback", []))
        super().__init__(
            f"{self.node_type} (node {self.node_id}): "
            f"{self.exception_type}: {self.exception_message}"
        )


class PromptInterrupted(ComfyServerError):
    """The prompt was cancelled while a node ran."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.node_id: str | None = message.get("node_id")
        self.node_type: str | None = message.get("node_type")
        super().__init__(f"interrupted in {self.node_type} (node {self.node_id})")


class ComfyServer:
    """One ComfyUI process and its folder.

    `base_dir` becomes ComfyUI's --base-directory: models/, input/, output/, temp/, user/, and
    custom_nodes/ with links to this pack and to those of `more_packs`, under the names of their
    folders. `args` are further flags of ComfyUI's, `env` is added to this process's environment,
    `cwd` is the folder it is started in, by default ComfyUI's own.
    The port is a free one; nothing but loopback is listened on. Without a CUDA device --cpu is
    added; giving it saves the two seconds of looking for one.

    On Linux the server dies with the *thread* that called `start`, however that ends: start it from
    one that lives as long as the server is wanted.
    """

    def __init__(
        self,
        comfyui: Path,
        base_dir: Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        more_packs: Sequence[Path] = (),
        python: str = sys.executable,
        cwd: Path | None = None,
    ) -> None:
        self.comfyui = Path(comfyui).absolute()
        self.cwd = cwd or self.comfyui
        self.base_dir = Path(base_dir).absolute()
        self.args = list(args)
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        self.env.update(env or {})
        self.more_packs = [Path(pack).absolute() for pack in more_packs]
        self.python = python
        self.models = self.base_dir / "models"
        self.input = self.base_dir / "input"
        self.output = self.base_dir / "output"
        self.log_path = self.base_dir / "comfyui.log"
        self.url = ""
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    # Life

    def start(self, timeout: float = 180) -> ComfyServer:
        """Start the process and return once it answers."""
        if self.running:
            raise ComfyServerError(f"already running at {self.url}, process {self.pid}")
        for name in ("models", "input", "output", "temp", "user", "custom_nodes"):
            (self.base_dir / name).mkdir(parents=True, exist_ok=True)
        custom_nodes = self.base_dir / "custom_nodes"
        link_pack(REPO_ROOT, custom_nodes / PACK_FOLDER)
        for pack in self.more_packs:
            link_pack(pack, custom_nodes / pack.name)

        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [
            self.python,
            str(self.comfyui / "main.py"),
            "--listen",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += ["--base-directory", str(self.base_dir)]
        command += ["--database-url", f"sqlite:///{(self.base_dir / 'comfyui.db').as_posix()}"]
        command += ["--disable-auto-launch", "--disable-api-nodes", *self.args]
        if "--cpu" not in self.args and accelerator(self.python, self.env) != "cuda":
            command.append("--cpu")
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the server through `stop`, in order
                preexec_fn=_die_with_parent(),
            )
        atexit.register(self.stop)
        try:
            self.wait_until_ready(timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, timeout: float = 15) -> None:
        """End the process: SIGTERM, and SIGKILL for one that does not obey in time."""
        atexit.unregister(self.stop)
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, as an out-of-memory killer would."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> ComfyServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ComfyServerError("ComfyUI was not started")
        return self._process.pid

    def log_text(self) -> str:
        """What the server printed since `start`."""
        if not self.log_path.exists():
            return ""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode("utf-8", errors="replace")

    # Requests

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def post(self, path: str, body: Any) -> Any:
        """The parsed answer; None where ComfyUI answers with an empty one."""
        answer = self._request(path, json.dumps(body).encode())
        return json.loads(answer) if answer else None

    def get_bytes(self, path: str) -> bytes:
        return self._request(path, None)

    def submit(self, prompt: dict[str, Any], extra_data: dict[str, Any] | None = None) -> str:
        """Queue an API-format workflow; its prompt id. Raises PromptRejected."""
        body: dict[str, Any] = {"prompt": prompt}
        if extra_data is not None:
            body["extra_data"] = extra_data
        try:
            return self.post("/prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(json.loads(error.read())) from None

    def wait(self, prompt_id: str, timeout: float = 600) -> dict[str, Any]:
        """The history entry of a finished prompt. Raises PromptFailed, PromptInterrupted."""
        deadline = time.monotonic() + timeout
        pause = 0.02
        while not (entry := self.get(f"/history/{prompt_id}").get(prompt_id)):
            if time.monotonic() > deadline:
                raise self._error(f"prompt {prompt_id} did not end within {timeout:g} s")
            time.sleep(pause)
            pause = min(1.5 * pause, 0.1)  # the server's own cores are what is being measured
        messages = dict(entry["status"]["messages"])
        if "execution_interrupted" in messages:
            raise PromptInterrupted(messages["execution_interrupted"])
        if entry["status"]["status_str"] != "success":
            raise PromptFailed(messages.get("execution_error", {}))
        return entry

    def run(self, prompt: dict[str, Any], timeout: float = 600) -> dict[str, Any]:
        return self.wait(self.submit(prompt), timeout)

    def interrupt(self) -> None:
        """Cancel the running prompt, as the button in the browser does."""
        self.post("/interrupt", {})

    def files(self, entry: dict[str, Any]) -> list[Path]:
        """The files that the prompt of this history entry wrote, in the order of its nodes."""
        return [
            self.base_dir / item["type"] / item["subfolder"] / item["filename"]
            for node in entry["outputs"].values()
            for items in node.values()
            for item in items
            if isinstance(item, dict) and "filename" in item
        ]

    # Inside

    def wait_until_ready(self, timeout: float = 180) -> None:
        """Wait until the process answers, after a start or a restart."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                self.get("/system_stats")
                return
            except ComfyServerError:
                if not self.running:
                    raise
            if time.monotonic() > deadline:
                raise self._error(f"ComfyUI did not answer within {timeout:g} s")
            time.sleep(0.1)

    def _request(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with _http.open(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError:
            raise  # an answer, if an unwelcome one
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"no answer from {self.url}{path}: {error}") from None

    def _error(self, what: str) -> ComfyServerError:
        status = self._process.poll() if self._process is not None else None
        if status is not None:
            what = f"ComfyUI ended with status {status}"
        tail = "\n".join(self.log_text().splitlines()[-30:])
        return ComfyServerError(f"{what}. Its log, {self.log_path}, ends:\n{tail}")


def prompt_seconds(entry: dict[str, Any]) -> float:
    """How long the prompt of a history entry ran, by the server's clock."""
    messages = dict(entry["status"]["messages"])
    start = messages["execution_start"]["timestamp"]  # milliseconds
    return (messages["execution_success"]["timestamp"] - start) / 1000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def link_pack(pack: Path, link: Path) -> None:
    """Make `link` lead to `pack`, wherever it led before."""
    if os.path.realpath(link) == os.path.realpath(pack):
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(link):
        link.unlink()
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        import _winapi  # symbolic links want a privilege on Windows, junctions do not

        _winapi.CreateJunction(str(pack), str(link))


def accelerator(python: str, env: Mapping[str, str] | None = None) -> str:
    """What the torch of that interpreter can use: "cuda" (ROCm too), "xpu", "mps", or ""."""
    # In a process of its own: torch is slow to import, and may belong to another interpreter.
    code = (
        "import torch; backends = dict(cuda=torch.cuda, xpu=torch.xpu, mps=torch.backends.mps); "
        "print(next((name for name in backends if backends[name].is_available()), ''))"
    )
    result = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True)
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise ComfyServerError(f"{python} cannot import torch: {reason}")
    return result.stdout.strip()


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux, what makes the kernel end the child when its parent is gone, even by SIGKILL."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here: between fork and exec, do as little as can be
    parent = os.getpid()

    def in_child() -> None:
        prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_child
