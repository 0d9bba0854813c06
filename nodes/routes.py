"""Routes of the pack on ComfyUI's server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web
from server import PromptServer

from ..asyncdiff_core.errors import AsyncDiffError
from ..asyncdiff_core.host.overview import release, status
from ..asyncdiff_core.host.reports import last_runs

routes = PromptServer.instance.routes


@routes.get("/asyncdiff/report")
async def get_report(request: web.Request) -> web.Response:
    """The reports of the last sampling runs, newest last."""
    return web.json_response({"runs": last_runs()})


@routes.get("/asyncdiff/status")
async def get_status(request: web.Request) -> web.Response:
    """All groups of workers, and what they do now."""
    # In a thread: it may have to wait for a worker's message to arrive whole.
    return web.json_response(await asyncio.to_thread(status))


@routes.post("/asyncdiff/release")
async def post_release(request: web.Request) -> web.Response:
    """End the workers of one group, or of all that are not sampling; or only free their weights."""
    try:
        body: Any = await request.json() if request.can_read_body else {}
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return web.json_response({"error": f"the body is no JSON: {error}"}, status=400)
    try:
        return web.json_response(await asyncio.to_thread(release, body))
    except AsyncDiffError as error:
        return web.json_response({"error": str(error)}, status=400)
