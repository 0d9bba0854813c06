"""Routes of the pack on ComfyUI's server."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..asyncdiff_core.host.reports import last_runs


@PromptServer.instance.routes.get("/asyncdiff/report")
async def report(request: web.Request) -> web.Response:
    """The reports of the last sampling runs, newest last."""
    return web.json_response({"runs": last_runs()})
