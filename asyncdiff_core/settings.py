"""What environment variables set, with clear errors where they make no sense."""

from __future__ import annotations

import math
import os
import re
from typing import Literal

from .errors import SettingError


def timeout_seconds() -> float:
    """ASYNCDIFF_TIMEOUT: seconds without progress after which a worker counts as hung.

    Raises:
        SettingError: it is no positive number.
    """
    return _positive("ASYNCDIFF_TIMEOUT", 60.0)


def max_groups() -> int:
    """ASYNCDIFF_MAX_GROUPS: how many distributed models may stay in memory at a time.

    Raises:
        SettingError: it is no whole number of at least 1.
    """
    value = _positive("ASYNCDIFF_MAX_GROUPS", 2)
    if value != int(value):
        raise SettingError(f"ASYNCDIFF_MAX_GROUPS is {value}; set it to a whole number.")
    return int(value)


Backend = Literal["ring", "socket", "nccl"]


def backend() -> str:
    """ASYNCDIFF_BACKEND: what connects workers, see transport.backends_for."""
    return os.environ.get("ASYNCDIFF_BACKEND", "auto")


def folds() -> bool:
    """ASYNCDIFF_FOLD: whether the stages of a U-shaped trunk lie around each other.

    Raises:
        SettingError: it is neither 0 nor 1.
    """
    text = os.environ.get("ASYNCDIFF_FOLD", "1")
    if text not in ("0", "1"):
        raise SettingError(
            f"The environment variable ASYNCDIFF_FOLD is {text!r}; set it to 0 or 1, or not at all."
        )
    return text == "1"


def memory_limits() -> dict[str, int]:
    """ASYNCDIFF_MEMORY: how many bytes of a device workers may use, for weights and activations.

    Raises:
        SettingError: it is no list such as ``cuda:0=10,cpu=4``, in GiB.
    """
    limits = {}
    for part in filter(None, os.environ.get("ASYNCDIFF_MEMORY", "").split(",")):
        device, _, text = part.partition("=")
        device = device.strip().lower()
        try:
            gib = float(text)
        except ValueError:
            gib = math.nan
        if not (re.fullmatch(r"cpu|cuda:\d+", device) and 0 <= gib < math.inf):
            raise SettingError(
                f"The environment variable ASYNCDIFF_MEMORY has {part!r} in it; set it to devices "
                "and GiB, such as cuda:0=10,cuda:1=22.5, or not at all."
            )
        limits[device] = int(gib * 2**30)
    return limits


def _positive(name: str, default: float) -> float:
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise SettingError(
            f"The environment variable {name} is {text!r}; set it to a number above 0, or not at "
            "all."
        )
    return value
