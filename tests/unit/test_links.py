"""Links between two workers: what is written at one end is what is read at the other one."""

from __future__ import annotations

import gc
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff_core.errors import LinkError
from asyncdiff_core.links import transport as transports
from asyncdiff_core.links.engines import Engine, Moment, Progress, Waits
from asyncdiff_core.links.link import Receiver, Sender
from asyncdiff_core.links.over_socket import SocketReceiver, SocketSender
from asyncdiff_core.links.peers import Peer
from asyncdiff_core.links.ring import NUM_COMING, RingReceiver, RingSender
from asyncdiff_core.links.staging import StagedReceiver, StagedSender
from asyncdiff_core.links.transport import Transport
from asyncdiff_core.settings import Backend
from asyncdiff_core.wire import shared_memory
from asyncdiff_core.wire.shared_memory import SharedMemory

CPU = torch.device("cpu")


class Pair:
    """Two workers' ends in this process."""

    def __init__(self, backend: Backend) -> None:
        self.sockets = socket.socketpair()
        self.peers = [Peer(1 - rank, sock) for rank, sock in enumerate(self.sockets)]
        nowhere = Path("unused")
        self.ends = [
            Transport(rank, {1 - rank: peer}, Engine(CPU), backend, nowhere)
            for rank, peer in enumerate(self.peers)
        ]

    def link(
        self, nbytes: int, num_kept: int = 1, told: Any = None, source: int = 0
    ) -> tuple[Sender, Receiver]:
        """A link from worker `source` to the other one."""
        sender = self.ends[source].open(1 - source, nbytes, num_kept, told)
        receiver, size, heard = self.ends[1 - source].accept(source, num_kept)
        assert (size, heard) == (nbytes, told)
        return sender, receiver


@pytest.fixture(params=["ring", "socket"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.param)
    yield pair
    for sock in pair.sockets:
        sock.close()


def fill(slot: torch.Tensor, number: int) -> None:
    slot.copy_(torch.arange(slot.numel()).add(number).to(torch.uint8))


def is_filled(slot: torch.Tensor, number: int) -> bool:
    return torch.equal(slot, torch.arange(slot.numel()).add(number).to(torch.uint8))


def send_all(sender: Sender, count: int, delays: random.Random) -> None:
    for number in range(count):
        time.sleep(delays.random() / 500)
        sender.free(number)
        fill(sender.slots[number % len(sender.slots)], number)
        sender.send(number)
    sender.drain()


def receive_all(receiver: Receiver, count: int, delays: random.Random) -> None:
    """Each message is there and, as long as it is kept, stays what it is."""
    for number in range(count):
        receiver.post(number)
        time.sleep(delays.random() / 500)
        kept = range(max(0, number - receiver.num_kept), number + 1)
        for one in delays.sample(kept, delays.randint(0, len(kept))):
            receiver.wait(one)
            assert is_filled(receiver.slots[one % len(receiver.slots)], one)
    receiver.drain()


# What comes is what was sent -----------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, 64, 4096, 2**20 + 3])
@pytest.mark.parametrize("num_kept", [1, 2, 5])
def test_messages_come_in_order_and_stay(pair: Pair, nbytes: int, num_kept: int) -> None:
    sender, receiver = pair.link(nbytes, num_kept)
    with ThreadPoolExecutor(2) as threads:
        sent = threads.submit(send_all, sender, 40, random.Random(1))
        threads.submit(receive_all, receiver, 40, random.Random(2)).result(60)
        sent.result(60)


def test_many_links_both_ways_at_once(pair: Pair) -> None:
    links = [pair.link(1000 + n, 1 + n % 3, told=n, source=n % 2) for n in range(12)]
    with ThreadPoolExecutor(24) as threads:
        ends = [
            threads.submit(send_all, link[0], 25, random.Random(n)) for n, link in enumerate(links)
        ]
        ends += [
            threads.submit(receive_all, link[1], 25, random.Random(-n))
            for n, link in enumerate(links)
        ]
        for end in ends:
            end.result(60)


def test_a_link_without_messages_tells_all_the_same(pair: Pair) -> None:
    sender, receiver = pair.link(0, told=["nothing", 1])
    sender.free(0)
    sender.send(0)
    receiver.post(0)
    receiver.wait(0)
    receiver.drain()
    sender.drain()


def test_a_ring_is_written_where_it_is_read() -> None:
    """One write and one read: nothing else touches the bytes of a message."""
    sender, receiver = Pair("ring").link(4096, num_kept=2)
    assert isinstance(sender, RingSender) and isinstance(receiver, RingReceiver)
    assert len(sender.slots) == len(receiver.slots) == 2 + NUM_COMING
    for number, slot in enumerate(sender.slots):
        fill(slot, number)
        assert is_filled(receiver.slots[number], number)  # before anything was sent
        receiver.slots[number].zero_()
        assert not slot.any()


def test_slots_begin_where_fresh_memory_does() -> None:
    """Some kernels give other bits for other alignments."""
    sender, receiver = Pair("ring").link(64 * 5)
    assert {slot.data_ptr() % 64 for slot in (*sender.slots, *receiver.slots)} == {0}


def test_a_sender_is_ahead_by_one_message_and_no_more() -> None:
    """It never waits for a receiver that is a round behind, and never writes what is kept."""
    sender, receiver = Pair("ring").link(8, num_kept=1)
    for number in range(3):
        sender.free(number)
        sender.send(number)
    behind = threading.Thread(target=sender.free, args=(3,), daemon=True)
    behind.start()
    for number in range(2):
        receiver.post(number)  # message 0 is kept
        receiver.wait(number)
    behind.join(0.2)
    assert behind.is_alive()
    receiver.post(2)  # now it is not
    behind.join(10)
    assert not behind.is_alive()


# The test of links ---------------------------------------------------------------------------


def both_test(pair: Pair) -> list[str]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda end: end.test(2.0), pair.ends))


def test_links_that_work(pair: Pair) -> None:
    assert both_test(pair) == ["", ""]
    there, back = pair.link(100), pair.link(100, source=1)  # which are not those of the test
    assert there[1] is not back[1]


def test_a_link_that_corrupts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for ends in (RingReceiver, SocketReceiver):
        wait = ends.wait

        def corrupt(self: Any, number: int, wait: Any = wait) -> None:
            wait(self, number)
            if self._peer.rank == 0:
                self.slots[0][5_000_000] += 1

        monkeypatch.setattr(ends, "wait", corrupt)
    assert both_test(pair) == ["", "what came from worker 0 is not what it sent"]


def test_a_link_by_which_nothing_comes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    for ends in (RingSender, SocketSender):
        monkeypatch.setattr(ends, "send", lambda self, number: None)
    found = both_test(pair)
    assert found == ["no message within 2 s"] * 2


def test_a_worker_that_ends_meanwhile(pair: Pair) -> None:
    pair.sockets[0].shutdown(socket.SHUT_RDWR)
    assert all("the link to worker" in trouble for trouble in both_test(pair))


def test_links_of_an_attempt_that_failed() -> None:
    """One worker opened them, and the other one had given up: they are nobody's."""
    pair = Pair("ring")
    pair.ends[0].open(1, 64, 1, "of before")
    again = [
        Transport(rank, {1 - rank: peer}, Engine(CPU), "socket", Path("unused"), attempt=1)
        for rank, peer in enumerate(pair.peers)
    ]
    again[0].open(1, 64, 1, "now")
    _, _, told = again[1].accept(0, 1)
    assert told == "now"


# Without shared memory -----------------------------------------------------------------------


def test_no_memory_to_share(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(nbytes: int) -> SharedMemory:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transports.SharedMemory, "create", refuse)
    sender, receiver = Pair("ring").link(5000, num_kept=2)
    assert "20000 bytes of memory cannot be shared" in caplog.text
    assert "No space left" in caplog.text
    with ThreadPoolExecutor(2) as threads:
        sent = threads.submit(send_all, sender, 10, random.Random(1))
        threads.submit(receive_all, receiver, 10, random.Random(2)).result(60)
        sent.result(60)


def test_more_than_there_is() -> None:
    """An error, and not a signal that ends the process at the first page that is missing."""
    with pytest.raises(OSError, match="bytes of memory are free"):
        SharedMemory.create(2**62)


def test_less_than_was_said() -> None:
    memory = SharedMemory.create(4096)
    (descriptor,) = memory.descriptors
    with pytest.raises(OSError, match="less than 4097 bytes"):
        SharedMemory.existing(4097, "", os.dup(descriptor))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_descriptors_are_not_kept() -> None:
    def held() -> tuple[int, int]:
        mapped = Path("/proc/self/maps").read_text().count("/memfd:asyncdiff")
        return len(os.listdir("/proc/self/fd")), mapped

    gc.collect()  # what other tests have left
    pair = Pair("ring")
    before = held()
    for _ in range(20):
        sender, receiver = pair.link(100)
        sender.drain()
        receiver.drain()
    del sender, receiver
    gc.collect()
    assert held() == before


def test_a_file_without_memfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on macOS: the file has no name either."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(shared_memory, "_CAN_SEAL", False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sender, receiver = Pair("ring").link(64)
    fill(sender.slots[0], 7)
    assert is_filled(receiver.slots[0], 7)
    assert list(tmp_path.iterdir()) == []


# What breaks ---------------------------------------------------------------------------------


def test_the_other_end_is_gone(pair: Pair) -> None:
    sender, receiver = pair.link(100_000)
    back, _ = pair.link(100_000, source=1)
    receiver.post(0)
    waits: list[Any] = [lambda: receiver.wait(0), lambda: pair.ends[1].accept(0, 1)]
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(wait) for wait in waits]
        time.sleep(0.1)
        pair.sockets[0].shutdown(socket.SHUT_RDWR)
        for one in waiting:
            with pytest.raises(LinkError, match="worker 0"):
                one.result(10)
    with pytest.raises(LinkError, match="worker 0"):
        send_all(back, 10, random.Random(0))
    with pytest.raises(LinkError, match="worker 1"):
        send_all(sender, 10, random.Random(0))


HEADER = struct.Struct("<4sIIQ")
OPENED = json.dumps({"attempt": 0, "nbytes": 8, "name": None, "told": 0}).encode()


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (b"GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n", "no message of a link"),
        (HEADER.pack(b"ADL2", 9, 0, 0), "no message of a link"),
        (HEADER.pack(b"ADL2", 1, 5, 1), "did not open"),
        (HEADER.pack(b"ADL2", 3, 5, 8) + bytes(8), "did not open"),
        (HEADER.pack(b"ADL2", 0, 0, 2**40), "a description of 1099511627776 bytes"),
        (HEADER.pack(b"ADL2", 0, 0, 3) + b"{{{", "a description that is none"),
        (HEADER.pack(b"ADL2", 0, 0, 2) + b"[]", "a link that is none"),
        (HEADER.pack(b"ADL2", 0, 0, 2) + b"{}", "a link that is none"),
        *(
            (
                HEADER.pack(b"ADL2", 0, 0, len(told)) + told,
                "a link that is none",
            )
            for told in (
                b'{"attempt": 0, "nbytes": -1, "name": null, "told": 0}',
                b'{"attempt": 0, "nbytes": true, "name": null, "told": 0}',
                b'{"attempt": 0, "nbytes": 1e9, "name": null, "told": 0}',
                b'{"attempt": 0, "nbytes": 8, "name": 8, "told": 0}',
                b'{"attempt": 0, "nbytes": 8, "name": ""}',
                b'{"attempt": null, "nbytes": 8, "name": null, "told": 0}',
            )
        ),
    ],
)
def test_what_is_no_message(frame: bytes, text: str) -> None:
    pair = Pair("socket")
    pair.sockets[0].sendall(frame)
    with pytest.raises(LinkError, match=text):
        pair.ends[1].accept(0, 1)


def test_a_ring_without_memory() -> None:
    """Its memory was said to come, and did not."""
    pair = Pair("ring")
    told = json.dumps({"attempt": 0, "nbytes": 8, "name": "", "told": 0}).encode()
    pair.sockets[0].sendall(HEADER.pack(b"ADL2", 0, 0, len(told)) + told)
    with pytest.raises(LinkError, match="worker 0"):
        pair.ends[1].accept(0, 1)


def test_a_message_of_another_size() -> None:
    pair = Pair("socket")
    pair.sockets[0].sendall(HEADER.pack(b"ADL2", 0, 0, len(OPENED)) + OPENED)
    receiver, *_ = pair.ends[1].accept(0, 1)
    receiver.post(0)
    pair.sockets[0].sendall(HEADER.pack(b"ADL2", 3, 0, 9) + bytes(9))
    with pytest.raises(LinkError, match="sent 9 bytes where 8 were to come"):
        receiver.wait(0)


# Two processes -------------------------------------------------------------------------------

OTHER = """
import random, socket, sys
from pathlib import Path
import torch
from asyncdiff_core.links.engines import Engine
from asyncdiff_core.links.peers import Peer
from asyncdiff_core.links.transport import Transport
sock = socket.socket(fileno=int(sys.argv[1]))
engine = Engine(torch.device("cpu"))
end = Transport(1, {0: Peer(0, sock)}, engine, sys.argv[2], Path("unused"))
delays = random.Random(int(sys.argv[3]))
links = []
print("here", flush=True)
while True:
    receiver, nbytes, told = end.accept(0, 1)
    back = end.open(0, nbytes, 1, told)
    for number in range(told):
        receiver.post(number)
        receiver.wait(number)
        back.free(number)
        back.slots[number % len(back.slots)].copy_(receiver.slots[number % len(receiver.slots)] + 1)
        back.send(number)
    receiver.drain()
    back.drain()
"""


@pytest.fixture
def echo(request: pytest.FixtureRequest) -> Iterator[tuple[Transport, subprocess.Popen[str]]]:
    """A process that sends back what it gets, plus 1, and this end of the links to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(theirs.fileno()), request.param, "1"],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    yield Transport(0, {1: Peer(1, ours)}, Engine(CPU), request.param, Path("unused")), process
    process.kill()
    process.wait()
    ours.close()


def there_and_back(end: Transport, nbytes: int, count: int) -> None:
    sender = end.open(1, nbytes, 1, count)
    receiver, *_ = end.accept(1, 1)
    for number in range(count):
        receiver.post(number)
        sender.free(number)
        fill(sender.slots[number % len(sender.slots)], number)
        sender.send(number)
        receiver.wait(number)
        assert is_filled(receiver.slots[number % len(receiver.slots)], number + 1)
    sender.drain()
    receiver.drain()


@pytest.mark.skipif(sys.platform == "win32", reason="gives descriptors to a process")
@pytest.mark.parametrize("echo", ["ring", "socket"], indirect=True)
def test_two_processes(echo: tuple[Transport, Any]) -> None:
    for nbytes, count in ((1, 50), (4096, 50), (8 * 2**20, 5), (100, 1)):
        there_and_back(echo[0], nbytes, count)


@pytest.mark.skipif(sys.platform == "win32", reason="gives descriptors to a process")
@pytest.mark.parametrize("echo", ["ring"] * 4, indirect=True)
def test_the_other_process_is_killed(
    echo: tuple[Transport, subprocess.Popen[str]], request: pytest.FixtureRequest
) -> None:
    end, process = echo
    seed = int(request.node.callspec.indices["echo"])
    threading.Timer(random.Random(seed).random() / 5, process.kill).start()
    with pytest.raises(LinkError, match="worker 1"):
        there_and_back(end, 10_000, 10**9)


# Through another memory ----------------------------------------------------------------------


class Later:
    """A moment that is reached when somebody waits for it, or when a test says so."""

    def __init__(self) -> None:
        self.work: list[Any] = []
        self.clock: float | None = None

    def reach(self, clock: float = 0.0) -> None:
        if self.clock is None:
            self.clock = clock
            for one in self.work:
                one()

    def synchronize(self) -> None:
        self.reach()

    def query(self) -> bool:
        return self.clock is not None


class LazyEngine(Engine):
    """A device that does everything as late as anybody allows it to.

    A copy is made where its moment is waited for, or where the computing follows it; what it
    reads must still be there then.
    """

    def __init__(self) -> None:
        super().__init__(CPU)
        self.num_copies = 0
        self.moments: list[Later] = []

    def here(self) -> Moment:
        self.moments.append(Later())
        return self.moments[-1]

    def clock(self, moment: Any) -> float:
        assert moment.query(), "nobody knows yet when it will be"
        return float(moment.clock)

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Sequence[Any]) -> Moment:
        moment = Later()

        def copy() -> None:
            for one in after:
                one.reach()
            self.num_copies += 1
            target.copy_(source)

        moment.work.append(copy)
        return moment

    def follow(self, moment: Any) -> None:
        moment.reach()


@pytest.mark.parametrize("num_kept", [1, 3])
def test_staged_messages(pair: Pair, num_kept: int) -> None:
    engine = LazyEngine()
    with torch.inference_mode():
        sender, receiver = pair.link(5000, num_kept)
        staged = StagedSender(sender, engine, sender.slots)
        unstaged = StagedReceiver(receiver, engine, receiver.slots)
    with ThreadPoolExecutor(2) as threads, torch.inference_mode():
        sent = threads.submit(torch.inference_mode()(send_all), staged, 40, random.Random(1))
        received = torch.inference_mode()(receive_all)
        threads.submit(received, unstaged, 40, random.Random(2)).result(60)
        sent.result(60)
    assert engine.num_copies == 80  # one away from a device, one to the other, per message


def test_a_staged_link_that_breaks(pair: Pair) -> None:
    engine = LazyEngine()
    sender, receiver = pair.link(5000)
    staged, unstaged = (
        StagedSender(sender, engine, sender.slots),
        StagedReceiver(receiver, engine, receiver.slots),
    )
    unstaged.post(0)
    pair.sockets[0].shutdown(socket.SHUT_RDWR)
    with pytest.raises(LinkError, match="worker 0"):
        unstaged.wait(0)
    with pytest.raises(LinkError, match="worker 1"):
        send_all(staged, 10, random.Random(0))


# What a device has done ----------------------------------------------------------------------


def test_progress_is_what_was_computed() -> None:
    """Not what was said: a GPU is told a thousand things in advance."""
    engine = LazyEngine()
    progress = Progress(engine)
    for _ in range(5):
        progress.told()
    assert progress.count() == 0
    for number, moment in enumerate(engine.moments, start=1):
        moment.reach()
        assert progress.count() == number
    on_cpu = Progress(Engine(CPU))
    on_cpu.told()
    assert on_cpu.count() == 1


def test_a_wait_begins_when_there_is_nothing_more_to_compute() -> None:
    """The host came to it at once; the device computed until 7, and had the message at 9."""
    engine = LazyEngine()
    waits = Waits(engine)
    with waits:
        assert waits.is_on
    assert not waits.is_on
    with waits:
        pass
    for moment, clock in zip(engine.moments, (7.0, 9.0, 12.0, 12.5), strict=True):
        moment.reach(clock)
    assert waits.number == 2
    assert waits.seconds(0, 1) == 2.0 and waits.seconds(0, 2) == 2.5 and waits.seconds(2, 2) == 0.0
