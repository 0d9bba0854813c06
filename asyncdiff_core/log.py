"""Loggers, and the folders with the logs of workers."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection
from pathlib import Path


def get_logger(name: str = "") -> logging.Logger:
    """The project's logger, or its child `name`. They have no handlers: the host decides."""
    return logging.getLogger(f"asyncdiff.{name}" if name else "asyncdiff")


def prune_folders(folders: Path, in_use: Collection[Path], keep: int = 8) -> None:
    """Remove the folders of groups that broke, but for the last `keep`, whose logs may be read."""
    old = [path for path in folders.glob("asyncdiff-*") if path not in in_use]
    old.sort(key=lambda path: path.stat().st_mtime)
    for path in old[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
