"""All of the fuzzing: the control channel, the nodes, the routes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.comfy_server import ComfyServer

from . import fuzz_channel, fuzz_server
from .live import Watch


def measure(server: ComfyServer, watch: Watch, count: int, seed: int = 0) -> dict[str, Any]:
    """How often what came of it; `count` mutations in each direction, fewer for what is slow."""
    results: dict[str, Any] = {}
    problems: list[str] = []

    def attempt(name: str, run: Callable[[], Any]) -> None:
        try:
            results[name] = dict(run().most_common())
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {error}")

    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        attempt("bytes to ComfyUI", lambda: fuzz_channel.to_host(count, seed, folder))
        attempt("bytes to a worker", lambda: fuzz_channel.to_reader(count, seed, folder))
        attempt("requests to a worker", lambda: fuzz_channel.to_worker(count, seed, folder))
    attempt("prompts", lambda: fuzz_server.to_nodes(server, watch, count, seed))
    attempt("release bodies", lambda: fuzz_server.to_routes(server, count, seed))
    return {**results, "problems": problems}
