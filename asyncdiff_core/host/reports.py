"""The reports of the last sampling runs, for `GET /asyncdiff/report`."""

from __future__ import annotations

from collections import deque
from typing import Any

from ..report import RunReport

_KEEP = 32
_runs: deque[dict[str, Any]] = deque(maxlen=_KEEP)


def record(report: RunReport) -> None:
    """Keep `report`, with the prompt and the node that it belongs to."""
    context = executing_context()
    if context is not None:
        report.prompt_id, report.node_id = context.prompt_id, context.node_id
    _runs.append(report.as_dict())


def last_runs() -> list[dict[str, Any]]:
    """The last runs as plain data, newest last."""
    return list(_runs)


def runs_of(prompt_id: str) -> list[dict[str, Any]]:
    """Those of the last runs that belong to this prompt, in their order."""
    return [run for run in _runs if run["prompt_id"] == prompt_id]


def executing_context() -> Any:
    """The prompt and the node that this thread executes; None outside of one."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:  # ComfyUI before 0.3.50
        return None
    return get_executing_context()
