"""Loggers: children of ``asyncdiff``, without handlers of their own (the host decides)."""

import logging


def get_logger(name: str = "") -> logging.Logger:
    """The project's logger, or its child `name`."""
    return logging.getLogger(f"asyncdiff.{name}" if name else "asyncdiff")
