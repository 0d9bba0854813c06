"""What ComfyUI sends over its websocket while a prompt runs."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from harness.comfy_server import ComfyServer
from harness.graphs import Workflow

PREVIEW_IMAGE = 1  # first four bytes of a binary message, big-endian; then the format; then a file
TEXT = 3  # the length of the node's id as four bytes, the id, the text
MESSAGE_HEADER_BYTES = 8


@dataclass
class Events:
    """The messages of one prompt."""

    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)  # node id and text on the node

    def progress(self) -> list[tuple[int, int]]:
        """(step, steps) of each progress message."""
        return [(d["value"], d["max"]) for kind, d in self.messages if kind == "progress"]

    def names(self) -> list[str]:
        return [kind for kind, _ in self.messages]


def run(
    server: ComfyServer, flow: Workflow, *, interrupt_at: int | None = None, **extra_data: Any
) -> Events:
    """Run the workflow to its end, interrupting it at progress `interrupt_at` if given."""
    return asyncio.run(_run(server, flow, interrupt_at, extra_data))


async def _run(
    server: ComfyServer, flow: Workflow, interrupt_at: int | None, extra_data: dict[str, Any]
) -> Events:
    events = Events()
    client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
    body = {"prompt": flow, "client_id": client_id, "prompt_id": prompt_id}
    async with (
        aiohttp.ClientSession(server.url) as http,
        http.ws_connect("/ws", params={"clientId": client_id}) as socket,
    ):
        async with http.post("/prompt", json={**body, "extra_data": extra_data}) as reply:
            assert reply.status == 200, await reply.text()
        while True:
            message = await socket.receive(timeout=120)
            if message.type is aiohttp.WSMsgType.BINARY:
                kind = int.from_bytes(message.data[:4], "big")
                if kind == PREVIEW_IMAGE:
                    events.previews.append(message.data[MESSAGE_HEADER_BYTES:])
                elif kind == TEXT:
                    end = 8 + int.from_bytes(message.data[4:8], "big")
                    events.texts.append((message.data[8:end].decode(), message.data[end:].decode()))
                continue
            event = json.loads(message.data)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            events.messages.append((kind, data))
            if kind == "progress" and interrupt_at is not None and data["value"] >= interrupt_at:
                interrupt_at = None
                async with http.post("/interrupt", json={"prompt_id": prompt_id}):
                    pass
            if kind == "executing" and data["node"] is None:
                return events
