"""Routes of the pack on ComfyUI's server.

Nothing here waits on the server's event loop, which serves everybody: whatever may have to wait for
workers, for a lock or for a disk runs in threads of the pack's own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web
from server import PromptServer

from ..asyncdiff_core.comfyui.http_api import log_file, release, shown, status, without_folders
from ..asyncdiff_core.comfyui.run.history import last_runs, runs_of
from ..asyncdiff_core.comfyui.run.machine import describe_machine
from ..asyncdiff_core.errors import AsyncDiffError

routes = PromptServer.instance.routes

MAX_BODY = 64 * 2**10
LOG_BYTES = 2**20  # the end of a log, which is what is looked for

# Of its own, since those of the event loop are few, and other packs need them too. Releases can
# take minutes, and must not keep anybody from looking.
_looking = ThreadPoolExecutor(4, "asyncdiff")
_releasing = ThreadPoolExecutor(2, "asyncdiff release")


async def _in_thread(
    function: Callable[..., Any], *args: Any, threads: ThreadPoolExecutor = _looking
) -> Any:
    return await asyncio.get_running_loop().run_in_executor(threads, function, *args)


@routes.get("/asyncdiff/report")
async def get_report(request: web.Request) -> web.Response:
    """The reports of the last sampling runs, newest last; with `?last=N` only that many."""
    runs = last_runs()
    last = request.query.get("last")
    if last is not None:
        if not (last.isascii() and last.isdecimal() and len(last) < 10 and int(last) >= 1):
            return _refuse(f"last must be a whole number of at least 1, but is {shown(last)}")
        runs = runs[-int(last) :]
    return await _answer(request, lambda: {"runs": runs})


@routes.get("/asyncdiff/report/{prompt_id}")
async def get_report_of_prompt(request: web.Request) -> web.Response:
    """The reports of one prompt's sampling runs, in their order."""
    prompt_id = request.match_info["prompt_id"]
    runs = runs_of(prompt_id)
    if not runs:
        return _refuse(
            f"there is no report of prompt {shown(prompt_id)}: it did not sample on several "
            "devices, or it was answered from ComfyUI's cache, or many other runs came after it",
            status=404,
        )
    return await _answer(request, lambda: {"runs": runs})


@routes.get("/asyncdiff/status")
async def get_status(request: web.Request) -> web.Response:
    """All groups of workers, and what they do now."""
    return await _answer(request, status)


@routes.get("/asyncdiff/log/{group}/{rank}")
async def get_log(request: web.Request) -> web.Response:
    """The end of the log of one worker, as text."""
    group, rank = request.match_info["group"], request.match_info["rank"]
    is_local = _is_local(request.remote)

    def end() -> str:
        text = _end_of(log_file(group, rank))
        return text if is_local else without_folders(text)

    try:
        text = await _in_thread(end)
    except AsyncDiffError as error:
        return _refuse(str(error), status=404)
    except OSError as error:
        return _refuse(f"the log cannot be read: {error.strerror}", status=404)
    headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
    return web.Response(text=text, headers=headers)


@routes.get("/asyncdiff/devices")
async def get_devices(request: web.Request) -> web.Response:
    """What the input `devices` of a node can name on this machine."""
    return await _answer(request, describe_machine)


@routes.post("/asyncdiff/release")
async def post_release(request: web.Request) -> web.Response:
    """End the workers of one group, or of all that are not sampling; or only free their weights."""
    # A page of another site can post a form or plain text here, but JSON only if it is let.
    if request.content_type != "application/json":
        return _refuse("the content type must be application/json")
    data = await _body(request)
    if data is None:
        return _refuse(f"the body is longer than {MAX_BODY} bytes")
    try:
        body: Any = json.loads(data.decode("utf-8")) if data else {}
    except (ValueError, RecursionError) as error:
        return _refuse(f"the body is no JSON in UTF-8 ({type(error).__name__})")
    try:
        return web.json_response(await _in_thread(release, body, threads=_releasing))
    except AsyncDiffError as error:
        return _refuse(str(error))


async def _body(request: web.Request) -> bytes | None:
    """The body; None if it is too long."""
    data = b""
    while chunk := await request.content.read(MAX_BODY):
        data += chunk
        if len(data) > MAX_BODY:
            return None
    return data


def _end_of(path: Path) -> str:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        data = file.read(LOG_BYTES)
    text = data.decode("utf-8", "replace")
    if size <= LOG_BYTES:
        return text
    return f"[... {size - LOG_BYTES} bytes before ...]\n{text.partition(chr(10))[2]}"


async def _answer(request: web.Request, make: Callable[[], Any]) -> web.Response:
    """What `make` gives as JSON; for visitors from elsewhere without this machine's folders."""
    is_local = _is_local(request.remote)

    def text() -> str:
        value = make()
        return json.dumps(value if is_local else without_folders(value))

    return web.json_response(text=await _in_thread(text))


def _is_local(remote: str | None) -> bool:
    try:
        address = ipaddress.ip_address(remote or "")
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _refuse(text: str, status: int = 400) -> web.Response:
    return web.json_response({"error": text}, status=status)
