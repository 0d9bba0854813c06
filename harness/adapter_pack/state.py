"""A patch that reads a global variable of its module."""

from __future__ import annotations

from typing import Any

import torch

STEP = 0


def scaled_by_step(h: torch.Tensor, hsp: torch.Tensor, options: Any) -> tuple[torch.Tensor, ...]:
    return h * (1.0 - 0.02 * STEP), hsp
