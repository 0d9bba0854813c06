"""What Linux tells about the processes of a live server, from outside of them.

Nothing here asks the server, so that what it says about itself can be checked against it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SOCKETS = "--sockets="
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class WorkerSeen:
    """A worker process, as its command line and its log file show it.

    Attributes:
        pid: the process.
        rank: its place in the group.
        folder: the group's folder, which no two groups share.
        control: the number of its end of the control channel, in its own process.
        links: those of its sockets to other workers.
    """

    pid: int
    rank: int
    folder: Path
    control: int
    links: tuple[int, ...]

    @property
    def log_file(self) -> Path:
        return self.folder / f"worker-{self.rank}.log"


def workers_of(server_pid: int) -> list[WorkerSeen]:
    """The workers of a server that are up to reading their command line, group by group."""
    found = (_worker(pid) for pid in children_of(server_pid))
    return sorted((w for w in found if w is not None), key=lambda w: (w.folder, w.rank))


def _worker(pid: int) -> WorkerSeen | None:
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        log = Path(os.readlink(f"/proc/{pid}/fd/1"))
    except OSError:
        return None  # it has ended
    told = [a.removeprefix(_SOCKETS) for a in arguments if a.startswith(_SOCKETS)]
    if not told or not log.name.startswith("worker-"):
        return None
    control, *links = (int(part.partition(":")[2]) for part in told[0].split(","))
    return WorkerSeen(pid, int(log.stem.rpartition("-")[2]), log.parent, control, tuple(links))


def children_of(pid: int) -> list[int]:
    """The processes that this one started and that have not ended."""
    pids: set[int] = set()
    for task in _entries(f"/proc/{pid}/task"):
        try:
            pids.update(map(int, (task / "children").read_text().split()))
        except OSError:
            continue  # a thread that has ended
    return sorted(child for child in pids if is_alive(child))


def is_alive(pid: int) -> bool:
    """Whether the process is there, and more than an entry that its parent has yet to read."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], object], seconds: float, pause: float = 0.005) -> bool:
    """Whether `condition` comes true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


def left_of(pids: Iterable[int], seconds: float) -> list[int]:
    """Those of `pids` that are still alive after `seconds`."""
    pids = list(pids)
    wait_until(lambda: not any(map(is_alive, pids)), seconds, 0.05)
    return [pid for pid in pids if is_alive(pid)]


def resident_bytes(pid: int) -> int:
    """Memory of the process that is in RAM and its own: without pages of files.

    Raises:
        OSError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * PAGE_BYTES


def virtual_bytes(pid: int) -> int:
    """The size of the address space of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE_BYTES


def num_threads(pid: int) -> int:
    return len(list(_entries(f"/proc/{pid}/task")))


def num_descriptors(pid: int) -> int:
    return len(list(_entries(f"/proc/{pid}/fd")))


def has_mapped(pid: int, name: str) -> bool:
    """Whether a file of this name is mapped into the process's memory."""
    try:
        return name in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def _entries(folder: str) -> Iterator[Path]:
    try:
        yield from Path(folder).iterdir()
    except OSError:
        return
