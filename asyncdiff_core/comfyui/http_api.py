"""What programs see of the worker groups, and how they release them. See docs/api.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import RequestError, few
from ..settings import max_groups, timeout_seconds
from ..workers.status import group_status
from .run.history import last_errors, last_run
from .run.machine import describe_machine
from .run.pool import POOL


def status() -> dict[str, Any]:
    """All groups and their workers, the last run and errors, and the limits, as plain data."""
    groups = [{**group_status(group), "references": number} for group, number in POOL.groups()]
    if groups:
        free = {one["name"]: one["free_bytes"] for one in describe_machine()["devices"]}
        for group in groups:
            for worker in group["workers"]:
                worker["free_bytes"] = free.get(worker["device"])
    return {
        "groups": groups,
        "last_run": last_run(),
        "last_errors": last_errors(),
        "limits": {"max_groups": max_groups(), "timeout_seconds": timeout_seconds()},
    }


def release(body: Any) -> dict[str, list[str]]:
    """Do what the body of `POST /asyncdiff/release` asks.

    Args:
        body: ``{"group": id, "keep_workers": bool}``, both optional.

    Raises:
        RequestError: the body is something else, or there is no such group.
    """
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, but is {shown(body)}")
    unknown = sorted(body.keys() - {"group", "keep_workers"})
    if unknown:
        raise RequestError(
            f"unknown fields {few([*map(shown, unknown)])}; there are 'group' and 'keep_workers'"
        )
    group, keep_workers = body.get("group"), body.get("keep_workers", False)
    if not isinstance(keep_workers, bool):
        raise RequestError(f"keep_workers must be true or false, but is {shown(keep_workers)}")
    ids = [each.id for each, _ in POOL.groups()]
    if group is not None and group not in ids:
        raise RequestError(f"there is no group {shown(group)}; there are {ids}")
    released = POOL.release(group, keep_workers=keep_workers)
    return {"released": released.released, "busy": released.busy}


def shown(value: Any) -> str:
    """A value that somebody sent, as it may stand in an error."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else value[:80] + "...")
    if isinstance(value, bool | None):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "a list"}
    return kinds.get(type(value), "a number")


# A folder in a text, up to what lies in it. Its name may have spaces, so that words between two
# paths may go as well.
_FOLDER = re.compile(r"(?:[A-Za-z]:)?[\\/](?:[^\\/\r\n:'\"]+[\\/])+")


def without_folders(value: Any) -> Any:
    """Plain data without the folders of this machine: of each path the last part is left."""
    if isinstance(value, str):
        return _FOLDER.sub("", value)
    if isinstance(value, dict):
        return {key: without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(part) for part in value]
    return value


def log_file(group_id: str, rank: str) -> Path:
    """The log of the worker `rank` of a group, also of one that broke.

    Raises:
        RequestError: there is no such group or worker, or its log is gone.
    """
    groups = {group.id: group for group, _ in POOL.groups()}
    if group_id not in groups:
        raise RequestError(f"there is no group {shown(group_id)}; there are {list(groups)}")
    group = groups[group_id]
    ranks = [str(place.rank) for place in group.plan.placements()]
    if rank not in ranks:
        raise RequestError(
            f"group {group_id} has no worker {shown(rank)}; it has {', '.join(ranks)}"
        )
    path = group.folder / f"worker-{rank}.log"
    if not path.is_file():
        raise RequestError(f"the log of worker {rank} of group {group_id} is gone")
    return path
