"""Whether a server answers while it is busy with something else."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from itertools import cycle
from typing import Any

from harness.comfy_server import ComfyServer

PERIOD = 0.05  # seconds
BOUND = 1.0
# What may wait for workers is asked for as well, so that the answer does not have to.
BESIDE = (
    ("GET", "/asyncdiff/status"),
    ("GET", "/asyncdiff/report"),
    ("GET", "/asyncdiff/devices"),
    ("GET", "logs"),
    ("POST", "/asyncdiff/release"),
)
BESIDE_PERIOD = 0.5

# A proxy set in the environment must not be asked for a loopback address.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Answers:
    """Asks a server for ``/system_stats`` every 50 ms, as long as it is entered.

    Meanwhile a second thread goes through the routes of this pack, and asks it to release what is
    idle but keep its processes.
    """

    def __init__(self, server: ComfyServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._sample, daemon=True),
            threading.Thread(target=self._ask_beside, daemon=True),
        ]
        self.seconds: list[float] = []
        self.num_beside = 0

    def __enter__(self) -> Answers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _sample(self) -> None:
        while not self._over.wait(PERIOD):
            began = time.monotonic()
            self._ask("GET", "/system_stats")
            self.seconds.append(time.monotonic() - began)

    def _ask_beside(self) -> None:
        for method, path in cycle(BESIDE):
            if self._over.wait(BESIDE_PERIOD):
                return
            for one in self._logs() if path == "logs" else (path,):
                self._ask(method, one)
                self.num_beside += 1

    def _logs(self) -> list[str]:
        status = json.loads(self._ask("GET", "/asyncdiff/status") or "{}")
        return [
            f"/asyncdiff/log/{group['id']}/{worker['rank']}"
            for group in status.get("groups", ())
            for worker in group["workers"]
        ]

    def _ask(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(self._server.url + path, method=method)
        if method == "POST":
            request.data = json.dumps({"keep_workers": True}).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with _http.open(request, timeout=60) as reply:
                content: bytes = reply.read()
                return content
        except urllib.error.HTTPError:
            return b""  # a log of a group that has ended meanwhile

    def summary(self) -> dict[str, Any]:
        """How many answers there were, and how long they took, in seconds."""
        ordered = sorted(self.seconds)
        return {
            "answers": len(ordered),
            "median": round(ordered[len(ordered) // 2], 4),
            "99 %": round(ordered[len(ordered) * 99 // 100], 4),
            "longest": round(ordered[-1], 4),
            "other questions meanwhile": self.num_beside,
        }

    def problems(self) -> list[str]:
        late = [seconds for seconds in self.seconds if seconds > BOUND]
        if not late:
            return []
        return [f"{len(late)} answers took longer than {BOUND:g} s, up to {max(late):.1f} s"]
