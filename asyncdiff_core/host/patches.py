"""Weight patches (LoRA and the like) and model patches, on their way to the workers.

Weight patches are what `ModelPatcher.add_patches` collects per key: tensors inside ComfyUI's own
weight adapter classes, which every worker can import, and sometimes functions. They cross as a
pickle made by cloudpickle, with the tensors outside of it, and each worker gets those of the keys
that it holds. The worker applies them with ComfyUI's own code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterable, Mapping, Sequence
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


# Entries of transformer_options that ComfyUI's own code uses in its process only: wrappers and
# callbacks run around the remote forward, the others concern memory paging of local weights.
_HOST_ONLY = ("wrappers", "callbacks", "prefetch_dynamic_vbars", "multigpu_thread_pool")


def portable_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """`transformer_options` as the workers get them.

    Raises:
        UnsupportedPatchError: they hold patches that are functions; these are named.
    """
    functions = list(_functions(options.get("patches", {}), "patches"))
    functions += _functions(options.get("patches_replace", {}), "patches_replace")
    if functions:
        raise UnsupportedPatchError(
            "This MODEL has patches that cannot run in worker processes yet: "
            f"{'; '.join(functions)}. Remove the node that adds them, or use ComfyUI's own loader "
            "for this MODEL."
        )
    skip = (*_HOST_ONLY, "patches", "patches_replace")
    return {key: value for key, value in options.items() if key not in skip}


def _functions(tree: Any, path: str) -> Iterable[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _functions(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _functions(value, path)
    else:
        kind = tree if hasattr(tree, "__qualname__") else type(tree)
        yield f"{path}: {kind.__qualname__} of {kind.__module__}"
