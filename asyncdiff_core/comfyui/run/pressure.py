"""What ComfyUI's other models need of its own device, and when all models are to be unloaded."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import comfy.model_management

from .pool import POOL

# The most that they have taken of a device at a time.
_others: Counter[str] = Counter()


def note_others(device: Any) -> None:
    """Note what other models take of `device` now, before ComfyUI makes room for one more."""
    loaded = comfy.model_management.current_loaded_models
    models = [one.model for one in loaded if one.device == device]
    taken = sum(m.model_size() for m in models if m is not None and not hasattr(m, "remote"))
    _others[str(device)] = max(_others[str(device)], int(taken))


def others_on(device: str) -> int:
    """The most bytes that other models were seen to take of `device`."""
    return _others[device]


def watch() -> None:
    """Have workers on all devices give their weights back when ComfyUI unloads all models.

    Its memory management knows of its own device alone: what a model gives back under pressure
    there is no reason to take it from other devices, and afterwards it knows nothing of these.
    """
    unload_all = comfy.model_management.unload_all_models
    if hasattr(unload_all, "asyncdiff_is_watched"):
        return

    @functools.wraps(unload_all)
    def unload_all_models(*args: Any, **kwargs: Any) -> Any:
        result = unload_all(*args, **kwargs)
        POOL.unload_all()
        return result

    unload_all_models.asyncdiff_is_watched = True  # type: ignore[attr-defined]
    comfy.model_management.unload_all_models = unload_all_models
