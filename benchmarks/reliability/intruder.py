"""Another user of the machine, who tries to join the workers of groups while they start and run.

In a network namespace of its own, so that it reaches no listener of anybody else. It needs root,
for the namespace and for becoming another user. The intruder connects to whatever listens on TCP
or on an abstract or named Unix socket, sends what once made a worker load a library of its choice,
and waits for an answer; it opens what it can of the processes' files in /proc. A listener that this
command itself opens shows that it would find one.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

NOBODY = 65534
CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
LISTENS = "0A"  # state in /proc/net/tcp
ACCEPTS = 1 << 16  # flag in /proc/net/unix

# Sequence number 0, and a description of outputs that names a library to be loaded.
_LAYOUT = {"type": "__enum__", "context": "ctypes:cdll", "children": ["/tmp/intruder.so"]}
FORGED = bytes(8) + struct.pack("<q", 4096) + json.dumps([1, _LAYOUT]).encode()


def measure(folder: Path, count: int) -> dict[str, Any]:
    """Start `count` groups in a chain and `count` in a fold beside the intruder.

    Raises:
        PermissionError: not root.
    """
    if os.geteuid() != 0:
        raise PermissionError("a network namespace, and a process of another user, need root")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        error = ctypes.get_errno()
        raise PermissionError(error, f"no network namespace: {os.strerror(error)}")
    _bring_up_loopback()
    with _intruder() as found:  # before anything here has threads
        with socket.create_server(("127.0.0.1", 0)) as decoy:
            decoy.settimeout(30)
            visitor, _ = decoy.accept()
            visitor.close()
        result = _start_groups(folder, count)
    seen = found()
    decoys = seen.pop("listeners found", 0)
    result["listeners that the intruder found, of one that was there for it"] = decoys
    for what in ("connections", "bytes received", "files of workers opened"):
        result[f"{what}, by the intruder"] = seen.pop(what, 0)
    result["processes of workers that it looked at"] = seen.pop("workers", 0)
    if decoys != 1:
        result["problems"].append(f"the intruder found {decoys} listeners in place of one")
    if result["connections, by the intruder"] != 1:
        result["problems"].append("the intruder was connected to a worker")
    if result["bytes received, by the intruder"]:
        result["problems"].append("the intruder received bytes")
    if result["files of workers opened, by the intruder"]:
        result["problems"].append("the intruder opened files of workers in /proc")
    if not result["processes of workers that it looked at"]:
        result["problems"].append("the intruder saw no worker at all")
    return result


def _start_groups(folder: Path, count: int) -> dict[str, Any]:
    import torch  # the intruder was forked before it

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.workers.process import socket_mesh
    from harness.groups import equal, make_group, plain, run, unbatched

    torch.set_num_threads(1)
    problems: list[str] = []
    starts: Counter[str] = Counter()
    seconds = []
    for _ in range(1000):
        began = time.perf_counter()
        with socket_mesh(4):
            seconds.append(time.perf_counter() - began)
    for name, kind in (("chain", "chain"), ("skipnet", "fold")):
        calls = unbatched(name, 4)
        expected = plain(name, calls)
        for number in range(count):
            group = make_group(name, 2, folder / f"{kind} {number}")
            try:
                group.start()
                outputs, _ = run(group, AsyncSchedule(warm_up=4), calls)
                starts[f"{kind}: normal runs"] += equal(outputs, expected)
                if (kind == "fold") != (max(map(len, group.holdings.stages)) > 1):
                    problems.append(f"{kind}: the stages are {group.holdings.stages}")
            except Exception as error:
                problems.append(f"{kind} {number}: {error}")
            finally:
                group.close()
        if starts[f"{kind}: normal runs"] != count:
            problems.append(f"{kind}: not every group gave what the model gives")
    return {
        **starts,
        "ms to make the sockets of 4 workers": round(1e3 * median(seconds), 3),
        "problems": problems,
    }


# The intruder --------------------------------------------------------------------------------


@contextmanager
def _intruder() -> Iterator[Callable[[], dict[str, int]]]:
    """A process of another user that attacks what it finds; at the end, what it did."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            theirs.setblocking(False)
            theirs.sendall(json.dumps(_attack(theirs)).encode())
        finally:
            os._exit(0)
    theirs.close()
    told: list[bytes] = []

    def found() -> dict[str, int]:
        return json.loads(told[0]) if told and told[0] else {}

    try:
        yield found
    finally:
        ours.sendall(b"end")
        ours.settimeout(60)
        told.append(ours.recv(2**16))
        ours.close()
        os.waitpid(pid, 0)


def _attack(control: socket.socket) -> dict[str, int]:
    done: Counter[str] = Counter()
    known: set[Any] = set()
    workers: set[str] = set()
    while not _is_over(control):
        for address in (*_tcp_listeners(), *_unix_listeners()):
            if address not in known:
                known.add(address)
                done["listeners found"] += 1
            _connect(address, done)
        for pid in _workers():
            workers.add(pid)
            done["files of workers opened"] += _open_files_of(pid)
        time.sleep(0.002)
    return {**done, "workers": len(workers)}


def _is_over(control: socket.socket) -> bool:
    try:
        return bool(control.recv(16))
    except BlockingIOError:
        return False


def _connect(address: Any, done: Counter[str]) -> None:
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    with socket.socket(family) as sock:
        sock.settimeout(0.2)
        try:
            sock.connect(address)
            done["connections"] += 1
            sock.sendall(FORGED)
            done["bytes received"] += len(sock.recv(4096))
        except OSError:
            pass


def _tcp_listeners() -> Iterator[tuple[str, int]]:
    for table in ("tcp", "tcp6"):
        for line in _lines(f"/proc/net/{table}"):
            fields = line.split()
            if fields[3] == LISTENS:
                yield "127.0.0.1", int(fields[1].rpartition(":")[2], 16)


def _unix_listeners() -> Iterator[str]:
    for line in _lines("/proc/net/unix"):
        fields = line.split(maxsplit=7)
        if int(fields[3], 16) & ACCEPTS and len(fields) == 8:
            yield fields[7].replace("@", "\0", 1) if fields[7].startswith("@") else fields[7]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()[1:]
    except OSError:
        return []


def _workers() -> Iterator[str]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if b"--sockets=" in command:
                yield folder.name


def _open_files_of(pid: str) -> int:
    number = 0
    for name in ("environ", "maps", "fd/0", "fd/3", "fd/4", "fd/5"):
        try:
            descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
        except OSError:
            continue
        # Of a process that has ended, and is still there, anybody may open what is empty.
        with suppress(OSError):
            number += name.startswith("fd/") or bool(os.read(descriptor, 1))
        os.close(descriptor)
    return number


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


if __name__ == "__main__":  # a process of its own, whose network is taken away
    found = measure(Path(sys.argv[1]), int(sys.argv[2]))
    print(json.dumps(found))
