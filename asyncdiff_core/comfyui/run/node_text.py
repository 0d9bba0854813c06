"""Text on the node that runs, through ComfyUI's progress-text channel."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

from ...reports.progress import phase
from ...workers.group import WorkerGroup
from .history import executing_context

_preparing = threading.local()  # `text` and `group` of the run that this thread prepares


# The browser shows what comes so at the border of the page: newer ones take a node's text away when
# its prompt has ended.
EVENT = "asyncdiff"


def show_on_node(text: str, *, is_told: bool = False) -> None:
    """Show `text` on the node that this thread executes; outside of one, nowhere.

    Args:
        text: what it says.
        is_told: the browser shows it at the border of the page as well, once.
    """
    context = executing_context()
    if context is None:
        return
    from server import PromptServer  # here, so that ComfyUI's classes can be used without a server

    server = PromptServer.instance
    # `5:7` is node 7 of the subgraph that is node 5, which shows it as well.
    parts = context.node_id.split(":")
    for depth in range(len(parts), 0, -1):
        server.send_progress_text(text, ":".join(parts[:depth]), server.client_id)
    if is_told:
        told = {"node_id": context.node_id, "text": text}
        server.send_sync(EVENT, told, server.client_id)


def poll() -> None:
    """What a group calls while it waits.

    Raises:
        InterruptProcessingException: the prompt was canceled.
    """
    comfy.model_management.throw_exception_if_processing_interrupted()
    text: RunText | None = getattr(_preparing, "text", None)
    if text is not None:
        text.show(preparation(_preparing.group))


class RunText:
    """What the node of one sampling run says."""

    def __init__(self) -> None:
        self._shown = ""

    @contextmanager
    def prepares(self, group: WorkerGroup) -> Iterator[None]:
        """While workers start and load in here, the node says how many of them have."""
        _preparing.text, _preparing.group = self, group
        try:
            yield
        finally:
            _preparing.text = _preparing.group = None

    def show_phase(self, group: WorkerGroup) -> None:
        """After an evaluation: say how far the run is."""
        if group.report is not None and group.report.evaluations:
            self.show(phase(group.report))

    def show(self, text: str) -> None:
        """Show `text`, unless it is there already or empty."""
        if text and text != self._shown:
            self._shown = text
            show_on_node(text, is_told="no gain" in text)


def preparation(group: WorkerGroup) -> str:
    """`starting 1/2 workers`, `loading 3/4 stages`, or nothing to say."""
    num = len(group.members)
    num_ready = sum(member.process.ready is not None for member in group.members)
    if num_ready < num:
        return f"starting {num_ready}/{num} workers"
    if group.holdings.are_loading:
        return f"loading {group.holdings.num_loaded}/{num} stages"
    return ""
