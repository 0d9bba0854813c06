"""Objects with code in them on their way to a worker: as a pickle, the tensors outside of it.

The pickle is made by cloudpickle. Code of modules that a worker cannot import crosses by value, and
functions that share a variable still share it.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import comfy.supported_models_base
import torch
from safetensors.torch import load_file

from ..model.absent import AbsentWeight
from ..model.replaced import COMFYUI_ROOT
from .fingerprint import is_empty
from .packs import add, globals_of, pack_of, set_globals
from .patch_models import (
    SentAutoencoder,
    SentPatcher,
    attributes_of,
    fill,
    hand_over,
    is_autoencoder,
    is_patcher,
    made_again,
    sent_model,
    state_of,
)

Payload = tuple[bytes, list[torch.Tensor]]


class WorkerView:
    """What workers have of their own, and what so crosses as its name.

    Attributes:
        search_path: where they find Python modules; empty while that is not known.
        can_import: asks one whether it can import a module of a pack, whose root and its file are
            told too.
    """

    def __init__(self) -> None:
        self.search_path: tuple[str, ...] = ()
        self.can_import: Callable[[str, str, str], bool] = lambda name, root, file: False
        self._names: dict[int, tuple[str, weakref.ref[torch.nn.Module]]] = {}
        self._configs: list[Any] = []

    def add(self, base_model: torch.nn.Module) -> None:
        """Let the modules of `base_model`, a BaseModel, and its configuration go by their names."""
        if (config := getattr(base_model, "model_config", None)) is not None:
            self._configs.append(config)
        for name, module in base_model.named_modules():
            self._names[id(module)] = name, weakref.ref(module)

    def name_of(self, value: Any) -> str | None:
        """The name of a module; None if `value` is none of these."""
        name, module = self._names.get(id(value), ("", _nothing))
        return name if value is not None and module() is value else None

    def is_config(self, value: Any) -> bool:
        """Whether `value` is the configuration of the model."""
        return any(config is value for config in self._configs)

    def has(self, module: types.ModuleType) -> bool:
        """Whether workers find this module under its name: ComfyUI's, and installed ones."""
        file = getattr(module, "__file__", None)
        if file is None:
            return module.__name__ in sys.builtin_module_names or hasattr(module, "__path__")
        return _is_found(module.__name__, file, self.search_path or _usual_search_path())


def _nothing() -> None:
    return None


def pack(value: Any, view: WorkerView | None = None) -> Payload:
    """`value` as plain data. Raises whatever pickling raises."""
    file = io.BytesIO()
    pickler = _Pickler(file, view or WorkerView())
    try:
        pickler.dump(value)
    finally:
        for module in pickler.by_value:
            cloudpickle.unregister_pickle_by_value(module)
    head = pickle.dumps((pickler.packs, {name: globals_of(name) for name in pickler.of_packs}))
    return head + file.getvalue(), pickler.tensors


def unpack(
    payload: tuple[bytes, Sequence[torch.Tensor]],
    device: torch.device,
    base_model: torch.nn.Module | None = None,
) -> Any:
    """What `pack` packed, in a worker that computes on `device`.

    Args:
        payload: what `pack` gave.
        device: where the tensors go.
        base_model: the worker's own, in which what crossed by its name is found.
    """
    data, tensors = payload
    file = io.BytesIO(data)
    packs, values = pickle.load(file)
    add(packs)
    set_globals(values)
    return _Unpickler(file, tensors, device, base_model).load()


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO, view: WorkerView) -> None:
        super().__init__(file, protocol=5)
        self._view = view
        self.tensors: list[torch.Tensor] = []
        self.by_value: list[types.ModuleType] = []
        self.packs: dict[str, str] = {}  # files of root modules
        self.of_packs: list[str] = []  # modules
        self._seen: set[str] = set()
        # Of the models of patches: where their tensors are, and the identities of their modules.
        self._handed_over: dict[int, tuple[str, str]] = {}
        self._models: set[int] = set()

    def persistent_id(self, obj: Any) -> Any:
        if self._view.is_config(obj):
            return "config", None
        if is_patcher(obj) and self._view.name_of(obj.model) is None:
            handed_over = hand_over(obj)
            self._handed_over.update(handed_over)
            self._models.update(map(id, obj.model.modules()))
            return "patcher", obj.model
        if id(obj) in self._handed_over:
            is_parameter = isinstance(obj, torch.nn.Parameter)
            return "parameter" if is_parameter else "buffer", self._handed_over[id(obj)]
        if type(obj) in (torch.Tensor, torch.nn.Parameter):
            self.tensors.append(obj.detach())
            return "tensor", len(self.tensors) - 1
        if isinstance(obj, torch.device) and obj.type != "cpu":
            return "device", None  # each worker has its own
        if isinstance(obj, torch.nn.Module):
            name = self._view.name_of(obj)
            return None if name is None else ("module", name)
        if isinstance(obj, AbsentWeight):
            return "weight", f"diffusion_model.{obj.name}"
        return None

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.FunctionType | types.ModuleType | type):
            name = obj.__name__ if isinstance(obj, types.ModuleType) else obj.__module__
            module = sys.modules.get(name)
            if module is not None and name not in self._seen:
                self._seen.add(name)
                if not self._view.has(module) and not self._is_of_a_pack(name):
                    cloudpickle.register_pickle_by_value(module)
                    self.by_value.append(module)
        if id(obj) in self._models:
            return made_again, (type(obj), attributes_of(obj))
        if is_autoencoder(obj):
            return SentAutoencoder.of(obj)
        if is_patcher(obj):  # of the MODEL itself, in a variable of the patch
            return sent_model, (obj.model,), state_of(obj), None, None, fill
        if isinstance(obj, comfy.supported_models_base.BASE):  # has every attribute, and so none
            return object.__new__, (type(obj),), vars(obj), None, None, fill
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

    def _is_of_a_pack(self, name: str) -> bool:
        pack = pack_of(name)
        if pack is None or not self._view.can_import(name, *pack):
            return False
        self.packs.update([pack])
        self.of_packs.append(name)
        return True


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        file: io.BytesIO,
        tensors: Sequence[Any],
        device: torch.device,
        base_model: torch.nn.Module | None,
    ) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._device = device
        self._base_model = base_model
        self._files: dict[str, dict[str, torch.Tensor]] = {}

    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        kind, which = pid
        if kind == "config" and self._base_model is not None:
            return self._base_model.model_config
        if kind == "patcher":
            return SentPatcher(which, self._device)
        if kind in ("parameter", "buffer"):
            path, name = which
            if path not in self._files:
                self._files[path] = load_file(path)
            tensor = self._files[path][name]
            return torch.nn.Parameter(tensor, False) if kind == "parameter" else tensor
        if kind == "tensor":
            return self._tensors[which]
        if kind == "device":
            return self._device
        if self._base_model is None:
            raise pickle.UnpicklingError(f"there is no model in which {which!r} could be found")
        if kind == "module":
            return self._base_model.get_submodule(which)
        module, _, name = which.rpartition(".")
        return getattr(self._base_model.get_submodule(module), name)


def _fill(cell: types.CellType, content: tuple[Any, ...]) -> None:
    if content:
        cell.cell_contents = content[0]


@functools.cache
def _is_found(name: str, file: str, search_path: tuple[str, ...]) -> bool:
    path = Path(file).resolve()
    for root in search_path:
        folder = Path(root).resolve()
        if root and path.is_relative_to(folder):
            parts = list(path.relative_to(folder).parts)
            parts[-1] = parts[-1].partition(".")[0]
            if parts[-1] == "__init__":
                parts.pop()
            if parts == name.split("."):
                return True
    return False


@functools.cache
def _usual_search_path() -> tuple[str, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = {sysconfig.get_path(kind) for kind in kinds}
    installed |= {str(Path(path) / "lib-dynload") for path in tuple(installed)}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return str(COMFYUI_ROOT), *installed, *given
