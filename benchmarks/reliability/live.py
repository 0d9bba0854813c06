"""A live server with small models in it, and prompts that are watched while they run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from harness import lab
from harness.comfy_server import ComfyServer, PromptRejected
from harness.graphs import Workflow

from .processes import WorkerSeen, workers_of

ENDS = ("execution_success", "execution_error", "execution_interrupted")


@dataclass(frozen=True)
class Event:
    """A message of ComfyUI's websocket, and when it came (`time.monotonic`)."""

    time: float
    kind: str
    data: dict[str, Any]


@dataclass
class Outcome:
    """How a prompt ended.

    Attributes:
        kind: execution_success, execution_error or execution_interrupted.
        seconds: from when it was sent to when that was told.
        data: the message that told it.
    """

    kind: str
    seconds: float
    data: dict[str, Any]

    @property
    def error(self) -> str:
        """The class of the exception that ended it, without its module."""
        return str(self.data.get("exception_type", "")).rpartition(".")[2]

    @property
    def text(self) -> str:
        return str(self.data.get("exception_message", "")).strip()

    def __str__(self) -> str:
        if self.kind != "execution_error":
            return self.kind.removeprefix("execution_")
        return f"{self.data.get('node_type')}: {self.error}: {self.text}"


class HungError(AssertionError):
    """Something did not happen within its time."""


@dataclass
class Prompt:
    """A prompt on its way."""

    id: str
    sent: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def first(self, condition: Callable[[Event], bool], timeout: float) -> Event:
        """The first event of which `condition` is true; waits for it.

        Raises:
            HungError: none came within `timeout` seconds.
        """
        found: list[Event] = []

        def look() -> bool:
            found.extend(e for e in self.events if condition(e))
            return bool(found)

        with self.changed:
            if not self.changed.wait_for(look, timeout):
                raise HungError(f"prompt {self.id}: nothing of the kind within {timeout:g} s")
        return found[0]

    def step(self, number: int, timeout: float) -> Event:
        """When the sampler has done `number` steps, or the prompt is over."""
        return self.first(
            lambda e: (e.kind == "progress" and e.data["value"] >= number) or e.kind in ENDS,
            timeout,
        )

    @property
    def steps_done(self) -> int:
        return max((e.data["value"] for e in self.events if e.kind == "progress"), default=0)

    @property
    def is_over(self) -> bool:
        return any(e.kind in ENDS for e in self.events)

    def over_within(self, seconds: float) -> bool:
        """Whether it ends within `seconds`."""
        with self.changed:
            return self.changed.wait_for(lambda: self.is_over, seconds)

    def end(self, timeout: float) -> Outcome:
        """Wait for its end, and for the server to be ready for the next one.

        Raises:
            HungError: it did not end within `timeout` seconds.
        """
        told = self.first(lambda e: e.kind in ENDS, timeout)
        self.first(lambda e: e.kind == "executing" and e.data["node"] is None, timeout)
        return Outcome(told.kind, told.time - self.sent, told.data)


class Watch:
    """Sends prompts to a server, and gathers what its websocket says about each of them."""

    def __init__(self, server: ComfyServer) -> None:
        self._server = server
        self._client = uuid.uuid4().hex
        self._prompts: dict[str, Prompt] = {}
        self._connected = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        if not self._connected.wait(30):
            raise HungError("the server's websocket did not open within 30 s")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(10)

    def send(self, flow: Workflow) -> Prompt:
        """Queue a workflow. Raises PromptRejected."""
        prompt = Prompt(str(uuid.uuid4()))
        self._prompts[prompt.id] = prompt
        body = {"prompt": flow, "client_id": self._client, "prompt_id": prompt.id}
        try:
            self._server.post("/prompt", body)
        except urllib.error.HTTPError as error:
            del self._prompts[prompt.id]
            if error.code != 400:
                raise
            raise PromptRejected(json.loads(error.read())) from None
        return prompt

    def forget(self, prompt: Prompt) -> None:
        """What it did is of no interest any more."""
        self._prompts.pop(prompt.id, None)

    async def _listen(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        parameters = {"clientId": self._client}
        async with (
            aiohttp.ClientSession(self._server.url) as http,
            http.ws_connect("/ws", params=parameters, max_msg_size=0) as socket,
        ):
            self._connected.set()
            closing = asyncio.ensure_future(self._closing.wait())
            while True:
                message = asyncio.ensure_future(socket.receive())
                await asyncio.wait({message, closing}, return_when=asyncio.FIRST_COMPLETED)
                if closing.done():
                    message.cancel()
                    return
                self._take(message.result())

    def _take(self, message: Any) -> None:
        if message.type is not aiohttp.WSMsgType.TEXT:
            return
        event = json.loads(message.data)
        prompt = self._prompts.get(event["data"].get("prompt_id"))
        if prompt is not None:
            prompt.add(Event(time.monotonic(), event["type"], event["data"]))


@contextlib.contextmanager
def serving(
    comfyui: Path, folder: Path, *args: str, **env: str
) -> Iterator[tuple[ComfyServer, Watch]]:
    """A server with the tests' small models, on one thread, on whose number the bits depend."""
    server = ComfyServer(comfyui, folder, args=args, env={"OMP_NUM_THREADS": "1", **env})
    lab.write_models(server.models)
    with server, Watch(server) as watch:
        yield server, watch


def workers(server: ComfyServer) -> list[WorkerSeen]:
    return workers_of(server.pid)


def release(server: ComfyServer) -> None:
    """Have the server end all groups that are not sampling."""
    server.post("/asyncdiff/release", {})
