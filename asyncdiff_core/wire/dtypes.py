"""Types of tensors by name, for what crosses between processes."""

from __future__ import annotations

import torch

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES.values()}
