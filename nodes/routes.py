"""Routes of the pack on ComfyUI's server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web
from server import PromptServer

from ..asyncdiff_core.errors import AsyncDiffError
from ..asyncdiff_core.host.machine import describe_machine
from ..asyncdiff_core.host.overview import log_file, release, status
from ..asyncdiff_core.host.reports import last_runs, runs_of

routes = PromptServer.instance.routes


@routes.get("/asyncdiff/report")
async def get_report(request: web.Request) -> web.Response:
    """The reports of the last sampling runs, newest last; with `?last=N` only that many."""
    runs = last_runs()
    last = request.query.get("last")
    if last is not None:
        if not last.isdecimal() or int(last) < 1:
            return _refuse(f"last must be a whole number of at least 1, but is {last!r}")
        runs = runs[-int(last) :]
    return await _answer_runs(runs)


@routes.get("/asyncdiff/report/{prompt_id}")
async def get_report_of_prompt(request: web.Request) -> web.Response:
    """The reports of one prompt's sampling runs, in their order."""
    prompt_id = request.match_info["prompt_id"]
    runs = runs_of(prompt_id)
    if not runs:
        return _refuse(
            f"there is no report of prompt {prompt_id!r}: it did not sample on several devices, or "
            "it was answered from ComfyUI's cache, or many other runs came after it",
            status=404,
        )
    return await _answer_runs(runs)


@routes.get("/asyncdiff/status")
async def get_status(request: web.Request) -> web.Response:
    """All groups of workers, and what they do now."""
    # In a thread: it may have to wait for a worker's message to arrive whole.
    return web.json_response(await asyncio.to_thread(status))


@routes.get("/asyncdiff/log/{group}/{rank}")
async def get_log(request: web.Request) -> web.Response:
    """The log of one worker, as text."""
    try:
        path = log_file(request.match_info["group"], request.match_info["rank"])
    except AsyncDiffError as error:
        return _refuse(str(error), status=404)
    text = await asyncio.to_thread(path.read_text, "utf-8", "replace")
    return web.Response(text=text, headers={"Cache-Control": "no-store"})


@routes.get("/asyncdiff/devices")
async def get_devices(request: web.Request) -> web.Response:
    """What the input `devices` of a node can name on this machine."""
    return web.json_response(describe_machine())


@routes.post("/asyncdiff/release")
async def post_release(request: web.Request) -> web.Response:
    """End the workers of one group, or of all that are not sampling; or only free their weights."""
    try:
        body: Any = await request.json() if request.can_read_body else {}
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return _refuse(f"the body is no JSON: {error}")
    try:
        return web.json_response(await asyncio.to_thread(release, body))
    except AsyncDiffError as error:
        return _refuse(str(error))


async def _answer_runs(runs: list[dict[str, Any]]) -> web.Response:
    # In a thread: runs of thousands of evaluations are megabytes, and this one serves everybody.
    return web.json_response(text=await asyncio.to_thread(json.dumps, {"runs": runs}))


def _refuse(text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": text}, status=status)
