"""Text on the node that runs, through ComfyUI's progress-text channel."""

from __future__ import annotations

from ..log import get_logger
from .reports import executing_context

log = get_logger()


def show_on_node(text: str) -> None:
    """Show `text` on the node that this thread executes; outside of one, nowhere."""
    context = executing_context()
    if context is None:
        return
    from server import PromptServer  # here, so that ComfyUI's classes can be used without a server

    server = PromptServer.instance
    server.send_progress_text(text, context.node_id, server.client_id)


def warn_on_node(text: str) -> None:
    """A warning: in the log, and on the node that this thread executes."""
    log.warning("%s", text)
    show_on_node(f"⚠ {text}")
