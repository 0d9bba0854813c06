"""Routes of the pack on ComfyUI's server."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..asyncdiff_core.host.machine import describe_machine
from ..asyncdiff_core.host.reports import last_runs, runs_of

routes = PromptServer.instance.routes


@routes.get("/asyncdiff/report")
async def report(request: web.Request) -> web.Response:
    """The reports of the last sampling runs, newest last; with `?last=N` only that many."""
    runs = last_runs()
    last = request.query.get("last")
    if last is not None:
        if not last.isdecimal() or int(last) < 1:
            return _refuse(f"last must be a whole number of at least 1, but is {last!r}.")
        runs = runs[-int(last) :]
    return web.json_response({"runs": runs})


@routes.get("/asyncdiff/report/{prompt_id}")
async def report_of_prompt(request: web.Request) -> web.Response:
    """The reports of one prompt's sampling runs, in their order."""
    prompt_id = request.match_info["prompt_id"]
    runs = runs_of(prompt_id)
    if not runs:
        return _refuse(
            f"No run of prompt {prompt_id!r} is known. Reports of the last runs are kept; a prompt "
            "that was answered from the cache, or sampled on one device, has none.",
            status=404,
        )
    return web.json_response({"runs": runs})


@routes.get("/asyncdiff/devices")
async def devices(request: web.Request) -> web.Response:
    """What the input `devices` can name on this machine."""
    return web.json_response(describe_machine())


def _refuse(text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": text}, status=status)
