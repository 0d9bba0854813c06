"""Weight patches (LoRA and the like) on their way to the workers.

Weight patches are what `ModelPatcher.add_patches` collects per key: tensors inside ComfyUI's own
weight adapter classes, which every worker can import, and sometimes functions. They cross as a
pickle made by cloudpickle, with the tensors outside of it, and each worker gets those of the keys
that it holds. The worker applies them with ComfyUI's own code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle
import torch

from ..errors import UnsupportedPatchError

MODEL_PREFIX = "diffusion_model."


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) not in (torch.Tensor, torch.nn.Parameter):
            return None
        self.tensors.append(obj.detach())
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> torch.Tensor:
        return self._tensors[pid]


def pack_patches(
    patches: Mapping[str, Any], units: Sequence[str], start: int, stop: int
) -> tuple[bytes, list[torch.Tensor]]:
    """The patches of the keys that a worker with the units [start, stop) holds, as plain data.

    Raises:
        UnsupportedPatchError: one of them cannot cross the process border; its key is named.
    """
    foreign = tuple(f"{MODEL_PREFIX}{name}." for name in (*units[:start], *units[stop:]))
    own = {key: value for key, value in patches.items() if not key.startswith(foreign)}
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(own)
    except Exception as error:
        raise UnsupportedPatchError(
            f"A weight patch of this MODEL cannot be sent to worker processes: {error}. Its keys "
            f"begin with {next(iter(own))!r}. Apply it before the model is saved, and load that."
        ) from error
    return file.getvalue(), pickler.tensors


def unpack_patches(payload: tuple[bytes, Sequence[torch.Tensor]]) -> dict[str, Any]:
    """What `pack_patches` packed, in the worker."""
    data, tensors = payload
    patches: dict[str, Any] = _Unpickler(io.BytesIO(data), tensors).load()
    return patches
