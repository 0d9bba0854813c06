"""A loader of a pack that only ComfyUI's own process can import."""

from __future__ import annotations

import sys
from typing import Any

from .loaders import load_weaker

if not str(getattr(sys.modules["__main__"], "__file__", "")).endswith("main.py"):
    raise RuntimeError("this module needs ComfyUI's server")


def load(path: str, factor: float, disable_dynamic: bool = False) -> Any:
    model = load_weaker(path, factor, disable_dynamic)
    model.cached_patcher_init = (load, (path, factor))
    return model
