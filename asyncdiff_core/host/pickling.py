"""Objects with code in them on their way to a worker: as a pickle, the tensors outside of it.

The pickle is made by cloudpickle. Code of modules that a worker cannot import crosses by value
(node packs have path-like module names), and functions that share a variable still share it.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import sysconfig
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import folder_paths
import torch

from .states import is_empty

COMFYUI_ROOT = Path(folder_paths.__file__).resolve().parent

Payload = tuple[bytes, list[torch.Tensor]]


def pack(value: Any) -> Payload:
    """`value` as plain data. Raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(value)
    finally:
        for module in pickler.by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue(), pickler.tensors


def unpack(payload: tuple[bytes, Sequence[torch.Tensor]], device: torch.device) -> Any:
    """What `pack` packed, in a worker that computes on `device`."""
    data, tensors = payload
    return _Unpickler(io.BytesIO(data), tensors, device).load()


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []
        self.by_value: list[types.ModuleType] = []
        self._seen: set[str] = set()

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) in (torch.Tensor, torch.nn.Parameter):
            self.tensors.append(obj.detach())
            return "tensor", len(self.tensors) - 1
        if isinstance(obj, torch.device) and obj.type != "cpu":
            return "device", None  # each worker has its own
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType | types.ModuleType | type):
            name = obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__
            module = sys.modules.get(name)
            if module is not None and name not in self._seen:
                self._seen.add(name)
                if not _is_importable(module):
                    cloudpickle.register_pickle_by_value(module)
                    self.by_value.append(module)
        if isinstance(obj, types.CellType):
            content = () if is_empty(obj) else (obj.cell_contents,)
            return types.CellType, (), content, None, None, _fill
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple):
            # cloudpickle gives every function variables of its own, but what one function of a
            # patch leaves in a variable is for another one of it (HyperTile, ToMe).
            make, arguments, (attributes, slots), *rest = reduced
            slots = {**slots, "__closure__": None}
            if obj.__module__ not in sys.modules or sys.modules[obj.__module__] in self.by_value:
                # torch.compile imports the module that globals name; those without a name it takes
                # as they are.
                arguments[1].pop("__name__", None)
            return make, (*arguments[:-1], obj.__closure__), (attributes, slots), *rest
        return reduced


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Any], device: torch.device) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._device = device

    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        kind, number = pid
        return self._device if kind == "device" else self._tensors[number]


def _fill(cell: types.CellType, content: tuple[Any, ...]) -> None:
    if content:
        cell.cell_contents = content[0]


def _is_importable(module: types.ModuleType) -> bool:
    """Whether a worker finds this module under its name: ComfyUI's, and installed ones."""
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names or hasattr(module, "__path__")
    return _is_found(module.__name__, file)


@functools.cache
def _is_found(name: str, file: str) -> bool:
    path = Path(file).resolve()
    for root in _worker_roots():
        if path.is_relative_to(root):
            parts = list(path.relative_to(root).parts)
            parts[-1] = parts[-1].partition(".")[0]
            if parts[-1] == "__init__":
                parts.pop()
            if parts == name.split("."):
                return True
    return False


@functools.cache
def _worker_roots() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = {sysconfig.get_path(kind) for kind in kinds}
    installed |= {str(Path(path) / "lib-dynload") for path in tuple(installed)}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return COMFYUI_ROOT, *(Path(path).resolve() for path in (*installed, *given) if path)
