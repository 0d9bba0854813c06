"""The last sampling runs, and the last errors of workers."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any

from ...errors import MAX_ERROR_TEXT
from ...reports.progress import gain
from ...reports.report import RunReport

MAX_RUNS_BYTES = 32 * 2**20  # as JSON; a run of a thousand steps has some hundred KiB

_runs: deque[tuple[dict[str, Any], int]] = deque(maxlen=32)  # and their sizes as JSON
_errors: deque[dict[str, Any]] = deque(maxlen=8)


def name_run(report: RunReport) -> None:
    """Write into `report` to which prompt and node it belongs."""
    context = executing_context()
    if context is not None:
        report.prompt_id, report.node_id = context.prompt_id, context.node_id


def record(report: RunReport) -> None:
    """Keep `report`, of a run that ended well just now."""
    run = {**report.as_dict(), "gain": gain(report), "ended": time.time()}
    _runs.append((run, len(json.dumps(run))))
    while len(_runs) > 1 and sum(size for _, size in _runs) > MAX_RUNS_BYTES:
        _runs.popleft()


def record_error(model: str, error: Exception) -> None:
    """Keep the text of a worker's error."""
    _errors.append({"time": time.time(), "model": model, "text": str(error)[:MAX_ERROR_TEXT]})


def last_errors() -> list[dict[str, Any]]:
    """The last errors of workers as plain data, newest last."""
    return list(_errors)


def last_runs() -> list[dict[str, Any]]:
    """The last runs as plain data, newest last."""
    return [run for run, _ in _runs]


def last_run() -> dict[str, Any] | None:
    """Which run was the last to end well, and when (seconds since 1970); None if none did."""
    if not _runs:
        return None
    run, _ = _runs[-1]
    return {key: run[key] for key in ("prompt_id", "node_id", "ended")}


def runs_of(prompt_id: str) -> list[dict[str, Any]]:
    """Those of the last runs that belong to this prompt, in their order."""
    return [run for run in last_runs() if run["prompt_id"] == prompt_id]


def executing_context() -> Any:
    """The prompt and the node that this thread executes; None outside of one."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:  # ComfyUI before 0.3.50
        return None
    return get_executing_context()
