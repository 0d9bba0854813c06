"""Loggers, and the folders with the logs of workers."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

_PREFIX = "asyncdiff-"
_WRECK = "broken"  # a file that says so
_WORKERS = "workers"  # a file with the numbers of their processes


def get_logger(name: str = "") -> logging.Logger:
    """The project's logger, or its child `name`. They have no handlers: the host decides."""
    return logging.getLogger(f"asyncdiff.{name}" if name else "asyncdiff")


def make_folder(folders: Path | None) -> Path:
    """A new folder below `folders` (or among the system's temporary ones), of this process.

    Several ComfyUIs may share `folders`, even on several machines.
    """
    if folders is not None:
        folders.mkdir(mode=0o700, parents=True, exist_ok=True)
    prefix = f"{_PREFIX}{_machine()}-{os.getpid()}-"
    return Path(tempfile.mkdtemp(prefix=prefix, dir=folders))


def note_workers(folder: Path, pids: Sequence[int]) -> None:
    """Write down which processes belong to the group of this folder."""
    with contextlib.suppress(OSError):  # on a full disk it is not worth an error
        (folder / _WORKERS).write_text(" ".join(map(str, pids)))


def leave_folder(folder: Path, *, is_wreck: bool) -> None:
    """The group of this folder has ended: its logs stay if it broke, and nothing else does."""
    if not is_wreck:
        shutil.rmtree(folder, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix != ".log":
                path.unlink()
        (folder / _WRECK).touch()


def prune_folders(folders: Path, in_use: Collection[Path], keep: int = 8) -> None:
    """Remove what nobody needs: of groups that broke, all but the last `keep`, whose logs may be
    read; of those whose ComfyUI ended without a word, or became another program, everything.

    Folders of other processes that still run are left alone.
    """
    old = [path for path in folders.glob(f"{_PREFIX}*") if path not in in_use and _is_ours(path)]
    wrecks = [path for path in old if (path / _WRECK).exists()]
    wrecks.sort(key=lambda path: path.stat().st_mtime)
    for path in {*old} - {*wrecks[-keep:]}:
        _reap(path)
        shutil.rmtree(path, ignore_errors=True)


def _reap(folder: Path) -> None:
    """Take note of the end of workers that this process had before it became this program."""
    try:
        pids = [int(pid) for pid in (folder / _WORKERS).read_text().split()]
    except (OSError, ValueError):
        return
    if hasattr(os, "waitpid"):
        for pid in pids:
            with contextlib.suppress(OSError):  # not a child, or not any more
                os.waitpid(pid, getattr(os, "WNOHANG", 0))


_TELLING = re.compile(r"Error\b|\berror\b|^Fatal|Killed|cannot|can't")


def last_line(log: Path) -> str:
    """The last line of a log that says what went wrong, shortened.

    Where none does, the last one with something in it; or nothing.
    """
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in reversed(lines) if line.strip()]
    # A fatal error of Python's has more lines behind it, about its state and its threads.
    text = next(filter(_TELLING.search, lines), next(iter(lines), ""))
    return text if len(text) <= 300 else text[:300] + " ..."


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", platform.node()) or "here"


def _is_ours(folder: Path) -> bool:
    machine, _, rest = folder.name.removeprefix(_PREFIX).partition("-")
    pid = rest.partition("-")[0]
    if machine != _machine() or not pid.isdecimal():
        return False
    return int(pid) == os.getpid() or not _exists(int(pid))


def _exists(pid: int) -> bool:
    """Whether there is such a process."""
    if sys.platform == "win32":
        import psutil  # one of ComfyUI's requirements; os.kill would end the process

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's
    return True
