"""What the processes of a server hold: memory, descriptors, threads, children, temporary files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.comfy_server import ComfyServer

from .processes import (
    children_of,
    num_descriptors,
    num_threads,
    resident_bytes,
    workers_of,
)

MAX_GROWTH = 1.05
# Threads that libraries start when they first need them, and keep: of asyncio's pool, of torch.
SPARE_THREADS = 8
SPARE_DESCRIPTORS = 4


@dataclass(frozen=True)
class Holding:
    """What one process holds."""

    bytes: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Holding:
        return cls(resident_bytes(pid), num_descriptors(pid), num_threads(pid))


@dataclass(frozen=True)
class Census:
    """What all processes of a server hold.

    Attributes:
        host: ComfyUI's process.
        workers: by the model's class and the worker's rank.
        num_children: processes that ComfyUI started and that run.
        folders: of groups, in ComfyUI's temporary folder.
        files: other temporary files.
    """

    host: Holding
    workers: dict[str, Holding]
    num_children: int
    folders: int
    files: int

    def at_its_lowest(self, other: Census) -> Census:
        """This census, with the memory that `other` saw where that is less.

        What the C library keeps for later comes and goes by some percent; a leak stays.
        """

        def lower(one: Holding, another: Holding | None) -> Holding:
            return replace(one, bytes=min(one.bytes, another.bytes)) if another else one

        workers = {name: lower(w, other.workers.get(name)) for name, w in self.workers.items()}
        return replace(self, host=lower(self.host, other.host), workers=workers)

    def summary(self) -> dict[str, Any]:
        """For people: memory in MiB."""

        def one(holding: Holding) -> dict[str, Any]:
            return {"MiB": round(holding.bytes / 2**20, 1), **asdict(holding), "bytes": None}

        def short(holding: Holding) -> dict[str, Any]:
            return {key: value for key, value in one(holding).items() if value is not None}

        return {
            "ComfyUI": short(self.host),
            "workers": {name: short(holding) for name, holding in self.workers.items()},
            "child processes": self.num_children,
            "group folders": self.folders,
            "temporary files": self.files,
        }


def take(server: ComfyServer) -> Census:
    """Count now."""
    names = {
        worker["pid"]: f"{group['model']} {worker['rank']}"
        for group in server.get("/asyncdiff/status")["groups"]
        for worker in group["workers"]
    }
    own = server.base_dir / "user" / "asyncdiff"
    folders = list(own.iterdir()) if own.exists() else []
    return Census(
        host=Holding.of(server.pid),
        workers={names[w.pid]: Holding.of(w.pid) for w in workers_of(server.pid)},
        num_children=len(children_of(server.pid)),
        folders=len(folders),
        files=len(_files(Path(server.env["TMPDIR"]))),
    )


def compare(first: Census, last: Census, num_faults: int) -> list[str]:
    """What `last` has too much of. Each fault may leave the folder with its group's logs."""
    problems = []
    if set(first.workers) != set(last.workers):
        problems.append(f"workers {sorted(first.workers)} became {sorted(last.workers)}")
    pairs = [("ComfyUI", first.host, last.host)]
    pairs += [(n, first.workers[n], last.workers[n]) for n in first.workers if n in last.workers]
    for name, before, after in pairs:
        if after.bytes > MAX_GROWTH * before.bytes:
            growth = after.bytes / before.bytes - 1
            problems.append(f"{name}: {growth:.1%} more memory than at the first census")
        if after.descriptors > before.descriptors + SPARE_DESCRIPTORS:
            problems.append(f"{name}: {before.descriptors} descriptors became {after.descriptors}")
        if after.threads > before.threads + SPARE_THREADS:
            problems.append(f"{name}: {before.threads} threads became {after.threads}")
    if last.num_children > first.num_children:
        problems.append(f"{first.num_children} child processes became {last.num_children}")
    if last.files > first.files:
        problems.append(f"{first.files} temporary files became {last.files}")
    if last.folders > first.folders + num_faults:
        problems.append(f"{first.folders} folders of groups became {last.folders}")
    return problems


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]
