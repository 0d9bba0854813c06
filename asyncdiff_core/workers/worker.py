"""A worker process: one stage of a model on one device. bootstrap.py starts it.

It is a program of its own, never a child of `multiprocessing`, and talks to ComfyUI only through
the socket that it inherited. When that socket closes, however ComfyUI ended, the worker ends too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib
import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..algorithm.schedule import Mode
from ..errors import (
    MAX_ERROR_TEXT,
    AsyncDiffError,
    ChannelClosedError,
    LinkError,
    UnspreadableError,
    text_of,
)
from ..links.engines import Moment, Progress, Waits, engine_for
from ..links.lane_links import LaneLinks
from ..links.peers import Peer
from ..links.transport import Transport
from ..log import get_logger
from ..reports.report import Span
from ..wire import requests
from ..wire.blocks import Lender
from ..wire.channel import Channel
from ..wire.inputs import InputDecoder
from ..wire.requests import from_wire, to_wire
from .lifeline import BEAT_SECONDS, Host, end_with_traceback
from .measure import device_rate
from .memory import ActivationMemory, device_memory, is_out_of_memory, resident_bytes
from .stage_model import StageModel


class Mark(NamedTuple):
    """A moment of a round, and how many waits lie before it."""

    moment: Moment
    num_waits: int


class Part(NamedTuple):
    """A part of a round: see report.Span, which is made of it when all moments are reached."""

    evaluation: int
    lane: int
    mode: Mode
    start: Mark
    computed: Mark
    end: Mark


class Worker:
    """Answers the host's requests, one at a time, in order."""

    def __init__(
        self, channel: Channel, config: requests.Configure, peers: Mapping[int, Peer]
    ) -> None:
        self._channel = channel
        self._config = config
        self._peers = peers
        self._device = torch.device(config.device)
        self._log = get_logger(config.name)
        module, _, function = config.builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
        self._model: StageModel = builder(config.spec, self._device)
        self._transport: Transport | None = None
        self._ticket = 0
        self._load = requests.Load(())
        self._is_new = False  # nothing has been evaluated yet with the weights that are held
        self._lanes: dict[int, tuple[InputDecoder, LaneLinks]] = {}
        self._parts: list[Part] = []
        self._turn: Mark | None = None  # of the round that goes on
        self._activations = ActivationMemory(self._device)
        self._engine = engine_for(self._device)
        self._progress = Progress(self._engine)
        self.waits = Waits(self._engine)
        self._handlers: dict[type, Callable[[Any], Any]] = {
            requests.MeasureCosts: self._measure,
            requests.Import: self._import,
            requests.Connect: self._connect,
            requests.Load: self._load_stage,
            requests.Unload: self._unload,
            requests.MeasureMemory: self._measure_memory,
            requests.Patch: self._patch,
            requests.Compile: self._compile,
            requests.Keep: self._keep,
            requests.Evaluate: self._evaluate,
            requests.EndRun: self._end_run,
        }

    def beat(self, doing: requests.Activity) -> requests.Beat:
        """What the host is told every second; for one thread."""
        return requests.Beat(self._progress.count(), doing, self._activations.bytes)

    def ready(self) -> requests.Ready:
        name, speed = device_rate(self._device)
        memory = 0
        if self._device.type == "cuda":
            memory = torch.cuda.get_device_properties(self._device).total_memory
        return requests.Ready(os.getpid(), name, speed, memory, tuple(sys.path))

    def handle(self, request: Any, ticket: int) -> Any:
        """Do what `request` asks; the answer, or None."""
        self._ticket = ticket
        return self._handlers[type(request)](request)

    def _measure(self, request: requests.MeasureCosts) -> requests.Costs:
        return requests.Costs(tuple(self._model.measure(request.args, request.kwargs)))

    def _import(self, request: requests.Import) -> requests.Imported:
        there = self._model.can_import(request.module, request.root, request.file)
        return requests.Imported(there)

    def _connect(self, request: requests.Connect) -> requests.Connected:
        self.close()
        config = self._config
        try:
            self._transport = Transport(
                *(config.rank, self._peers, self._engine),
                backend=request.backend,
                rendezvous=Path(config.rendezvous),
                attempt=request.attempt,
            )
            trouble = self._transport.test()
        except Exception as error:  # there may be another backend
            trouble = text_of(error)
        return requests.Connected(trouble[:MAX_ERROR_TEXT])

    def _load_stage(self, request: requests.Load) -> requests.Loaded:
        with self._activations.except_for():
            owned, shared, streamed = self._model.load(request.stage, request.budget)
        self._load, self._is_new = request, True
        return requests.Loaded(owned, shared, resident_bytes(), streamed)

    def _unload(self, request: requests.Unload) -> requests.Unloaded:
        self._load = requests.Load(())
        with self._activations.except_for():
            waiting_bytes = self._model.unload(request.waits)
        return requests.Unloaded(waiting_bytes)

    def _measure_memory(self, request: requests.MeasureMemory) -> requests.Memory:
        return requests.Memory(*device_memory(self._device))

    def _patch(self, request: requests.Patch) -> requests.Done:
        with self._activations.except_for():
            self._model.patch(request.payload)
        return requests.Done()

    def _compile(self, request: requests.Compile) -> requests.Done:
        self._model.compile(request.payload)
        return requests.Done()

    def _keep(self, request: requests.Keep) -> requests.Done:
        self._model.keep(request.key, request.payload)
        return requests.Done()

    def _evaluate(self, request: requests.Evaluate) -> None:
        load = self._load
        if not self._lanes:
            self._activations.begin_run()
            self._engine.begin()
        start = self._mark()
        if request.lane not in self._lanes:
            self._lanes[request.lane] = InputDecoder(self._device), self._new_links(load)
        decoder, links = self._lanes[request.lane]
        args, kwargs = decoder.decode(request.inputs, request.change)
        if request.change is None and request.entering is None:
            links.pass_over(request.goals)
            return  # this round has no use for it
        self._turn = None
        links.begin(request.goals, request.mode)
        if self._is_new:
            self._model.verify()
        staged, result = self._model.staged, None
        if request.entering is not None:
            entering = decoder.decode(request.inputs, request.entering)
            staged.run_stage(load.stage[:1], *entering, links, is_checked=self._is_new)
            links.turn()
        if request.change is not None:
            result = staged.run_stage(load.stage, args, kwargs, links, is_checked=self._is_new)
            self._is_new = False
        computed = self._mark()
        links.finish()
        if result is not None:
            # Before the bookkeeping below: the sampler waits for it.
            self._channel.send(to_wire(requests.Result(result, links.nbytes), self._ticket))
        else:
            self._engine.finish()  # an error of the device is that of this round

        # What prepares async rounds is a part of these, though it takes fresh messages.
        kind: Mode = "async" if request.goals[0] is None else request.mode
        which = request.evaluation, request.lane, kind
        if self._turn is not None:
            self._parts.append(Part(*which, start, self._turn, self._turn))
            start = self._turn
        self._parts.append(Part(*which, start, computed, self._mark()))

    def _new_links(self, load: requests.Load) -> LaneLinks:
        assert self._transport is not None
        return LaneLinks(self._transport, load, self.waits, self._progress, self._turned)

    def _turned(self) -> None:
        self._turn = self._mark()

    def _mark(self) -> Mark:
        return Mark(self._engine.here(), self.waits.number)

    def _span(self, part: Part) -> Span:
        evaluation, lane, mode, *marks = part
        start, computed, end = (self._engine.clock(mark.moment) for mark in marks)
        first, until, last = (mark.num_waits for mark in marks)
        compute = computed - start - self.waits.seconds(first, until)
        return Span(evaluation, lane, mode, start, self.waits.seconds(first, last), compute, end)

    def _end_run(self, request: requests.EndRun) -> requests.RunEnded:
        activation_bytes = self._activations.end_run()
        for _, links in self._lanes.values():
            links.drain()
        self._lanes.clear()
        self._model.forget_kept()
        if self._load.stage:
            self._model.staged.forget_scratch()
        if self._channel.lender is not None:
            self._channel.lender.forget()
        self._engine.finish()
        if request.gives_back and self._device.type == "cuda":
            torch.cuda.empty_cache()
        spans = [dataclasses.astuple(self._span(part)) for part in self._parts]
        self._parts.clear()
        self.waits.clear()
        return requests.RunEnded(spans, resident_bytes(), activation_bytes)

    def close(self) -> None:
        """Leave the group in good order."""
        if self._transport is not None:
            self._transport.close()


def serve(channel: Channel, host: Host, peers: Mapping[int, Peer]) -> None:
    """Read requests until the host says stop, and answer them.

    A thread of its own reads the socket, so that the host never waits for a busy worker to take a
    request, and so that the end of the host is noticed while the worker computes.
    """
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    config, ticket = from_wire(channel.receive())
    channel.borrower.cell, channel.lender = config.rank, Lender(1)

    def read() -> None:
        is_told = False
        try:
            while True:
                request, ticket = from_wire(channel.receive())
                is_told |= isinstance(request, requests.Stop)
                inbox.put((request, ticket))
        except ChannelClosedError:
            if not is_told:
                host.is_gone()
            os._exit(0)
        except BaseException:
            end_with_traceback()

    logging.basicConfig(level=logging.INFO, format=f"[{config.name}] %(levelname)s %(message)s")
    torch.set_num_threads(config.num_threads)
    threading.Thread(target=read, name="control", daemon=True).start()

    worker: Worker | None = None
    busy = threading.Event()
    was_busy = threading.Event()  # since the last beat

    def beat() -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            host.must_be_there()
            is_busy = busy.is_set()
            if not (is_busy or was_busy.is_set()):
                continue
            doing: requests.Activity = "nothing"
            if is_busy:
                doing = "waiting" if worker and worker.waits.is_on else "computing"
            else:
                was_busy.clear()  # this beat is the last one
            told = worker.beat(doing) if worker else requests.Beat(0, doing)
            try:
                channel.send(to_wire(told))
            except AsyncDiffError:
                return

    threading.Thread(target=beat, name="beat", daemon=True).start()
    request: Any = config
    answer: Any
    # The host runs every node under inference_mode, and so must the model here.
    with torch.inference_mode():
        while not isinstance(request, requests.Stop):
            busy.set()
            was_busy.set()
            try:
                if worker is None:
                    worker = Worker(channel, config, peers)
                    answer = worker.ready()
                else:
                    answer = worker.handle(request, ticket)
            except Exception as error:
                logging.getLogger("asyncdiff").exception("%s failed", type(request).__name__)
                answer = failure(error)
            if answer is not None:
                channel.send(to_wire(answer, ticket))
            busy.clear()
            request, ticket = inbox.get()
    if worker is not None:
        worker.close()


def failure(error: Exception) -> requests.Failed:
    """What the host is told of an error."""
    text = text_of(error)
    kind: requests.Failure = "error"
    if isinstance(error, LinkError):
        text, kind = str(error), "link"
    elif is_out_of_memory(error):
        kind = "memory"
    elif isinstance(error, UnspreadableError):
        text, kind = str(error), "refused"
    return requests.Failed(text[:MAX_ERROR_TEXT], kind, traceback.format_exc()[-MAX_ERROR_TEXT:])


def run(sock: socket.socket, host: Host, peers: Mapping[int, socket.socket]) -> None:
    """Serve `host` at the other end of `sock`, and end the process. `peers`: other workers."""
    faulthandler.enable()
    try:
        serve(Channel(sock), host, {rank: Peer(rank, peer) for rank, peer in peers.items()})
    except ChannelClosedError:
        host.is_gone()
    with contextlib.suppress(Exception):  # a full disk
        sys.stdout.flush()
        sys.stderr.flush()
    # Interpreter shutdown joins threads of libraries that may never end.
    os._exit(0)
