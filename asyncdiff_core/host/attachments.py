"""Patches of a model that are code, on their way to the workers.

ComfyUI keeps them in `transformer_options`: functions and objects that a model calls in its blocks
(FreeU, IP-Adapter, attention replacements). Each distinct set of them crosses once per run, as a
pickle made by cloudpickle with the tensors outside of it; evaluations refer to it by a key. Code of
modules that a worker cannot import crosses by value. Tensors go to the worker's device when the set
arrives.
"""

from __future__ import annotations

import dis
import io
import os
import pickle
import random
import sys
import sysconfig
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import folder_paths
import torch
from torch.utils import _pytree as pytree

from ..errors import UnsupportedPatchError
from ..inputs import is_sendable

COMFYUI_ROOT = Path(folder_paths.__file__).resolve().parent

# Marks, in transformer_options, what was attached.
_MARK = "asyncdiff_attached"

# Entries of transformer_options that ComfyUI's own code uses in its process only: wrappers and
# callbacks run around the remote forward, and so do the caches; a context window says which part of
# a video is evaluated; the others concern memory paging of local weights.
_HOST_ONLY = (
    *("wrappers", "callbacks", "easycache", "context_window"),
    *("prefetch_dynamic_vbars", "multigpu_thread_pool"),
)

Payload = tuple[bytes, list[torch.Tensor]]


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`transformer_options` as the workers get them: what is plain data, and what holds code."""
    plain: dict[str, Any] = {}
    code: dict[str, Any] = {}
    for key, value in options.items():
        if key in _HOST_ONLY:
            continue
        is_plain = all(is_sendable(leaf) for leaf in pytree.tree_leaves(value))
        (plain if is_plain else code)[key] = value
    return plain, code


def names_of(code: Mapping[str, Any]) -> tuple[str, ...]:
    """What `code` holds, one line each: where, and which function or class of which module."""
    return tuple(f"{path}: {_name(leaf)}" for path, leaf in _code_leaves(code, ""))


def _name(leaf: Any) -> str:
    kind = leaf if hasattr(leaf, "__qualname__") else type(leaf)
    return f"{kind.__qualname__} of {kind.__module__}"


def _code_leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _code_leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _code_leaves(value, path)
    elif not is_sendable(tree):
        yield path, tree


class Attachments:
    """The sets of patches of one run, each with the key that evaluations refer to it by."""

    def __init__(self) -> None:
        self._sets: list[Payload] = []

    def key_of(self, code: Mapping[str, Any]) -> tuple[str, Payload]:
        """The key of `code`, and what workers need to know for it.

        Raises:
            UnsupportedPatchError: it cannot cross the process border; it is named.
        """
        payload = pack(code)
        for number, known in enumerate(self._sets):
            if known[0] == payload[0] and _same_tensors(known[1], payload[1]):
                return str(number), known
        self._sets.append(payload)
        return str(len(self._sets) - 1), payload


def mark(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`options` with a mark that `expand` replaces."""
    return {**options, _MARK: key}


def patches_of(tree: Any, contents: Mapping[str, bytes]) -> Hashable:
    """What of the patches in the arguments `tree` may be baked into what is compiled, or None.

    Args:
        contents: each set of patches by its key, as bytes.
    """
    args, kwargs = tree
    for value in (*args, *kwargs.values()):
        if isinstance(value, dict) and _MARK in value:
            return contents[value[_MARK]], tuple(value.get("cond_or_uncond", ()))
    return None


def expand(tree: Any, attached: Mapping[str, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    """The arguments `tree` with the attached patches in place of their mark; and these patches."""
    found: dict[str, Any] = {}

    def put_in(value: Any) -> Any:
        if not isinstance(value, dict) or _MARK not in value:
            return value
        value = dict(value)
        found.update(attached[value.pop(_MARK)])
        return {**value, **_new_containers(found)}

    args, kwargs = tree
    return (tuple(map(put_in, args)), {k: put_in(v) for k, v in kwargs.items()}), found


def _new_containers(tree: Any) -> Any:
    """Models and patches write into the dicts and lists."""
    if isinstance(tree, dict):
        return {key: _new_containers(value) for key, value in tree.items()}
    return list(tree) if isinstance(tree, list) else tree


def _same_tensors(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


# Pickling ------------------------------------------------------------------------------------


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[torch.Tensor] = []
        self.by_value: list[types.ModuleType] = []
        self._seen: set[str] = set()

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) in (torch.Tensor, torch.nn.Parameter):
            self.tensors.append(obj)
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
            content = () if _is_empty(obj) else (obj.cell_contents,)
            return types.CellType, (), content, None, None, _fill
        reduced = super().reducer_override(obj)
        if isinstance(obj, types.FunctionType) and isinstance(reduced, tuple):
            # cloudpickle gives every function variables of its own, but what one function of a
            # patch leaves in a variable is for another one of it (HyperTile, ToMe).
            make, arguments, (attributes, slots), *rest = reduced
            slots = {**slots, "__closure__": None}
            return make, (*arguments[:-1], obj.__closure__), (attributes, slots), *rest
        return reduced


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - raises for an empty one
    except ValueError:
        return True
    return False


def _fill(cell: types.CellType, content: tuple[Any, ...]) -> None:
    if content:
        cell.cell_contents = content[0]


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: Sequence[Any], device: torch.device) -> None:
        super().__init__(file)
        self._tensors = tensors
        self._device = device

    def persistent_load(self, pid: tuple[str, Any]) -> Any:
        kind, number = pid
        return self._device if kind == "device" else self._tensors[number]


def pack(code: Mapping[str, Any]) -> Payload:
    """`code` as plain data.

    Raises:
        UnsupportedPatchError: it cannot cross the process border; it is named.
    """
    for path, leaf in _code_leaves(code, ""):
        models = getattr(leaf, "models", None)
        if callable(models) and not isinstance(leaf, type) and models():
            raise UnsupportedPatchError(
                f"This MODEL has a patch that brings a model of its own ({path}: {_name(leaf)}), "
                "which cannot be taken to worker processes. Remove the node that adds it, or use "
                "ComfyUI's own loader for this MODEL."
            )
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(dict(code))
    except Exception as error:
        raise UnsupportedPatchError(
            f"This MODEL has patches that cannot be sent to worker processes ({error}): "
            f"{'; '.join(names_of(code))}. Remove the node that adds them, or use ComfyUI's own "
            "loader for this MODEL."
        ) from error
    finally:
        for module in pickler.by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue(), pickler.tensors


def unpack(payload: tuple[bytes, Sequence[torch.Tensor]], device: torch.device) -> dict[str, Any]:
    """What `pack` packed, in a worker, on its device."""
    data, tensors = payload
    on_device = [tensor.to(device) for tensor in tensors]
    code: dict[str, Any] = _Unpickler(io.BytesIO(data), on_device, device).load()

    def to_device(tree: Any) -> Any:  # as ModelPatcher.model_patches_to
        if isinstance(tree, dict):
            return {key: to_device(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [to_device(value) for value in tree]
        can_move = callable(getattr(tree, "to", None)) and not isinstance(tree, type)
        return tree.to(device) if can_move else tree

    return {key: to_device(value) for key, value in code.items()}


def _is_importable(module: types.ModuleType) -> bool:
    """Whether a worker finds this module under its name: ComfyUI's, and installed ones."""
    file = getattr(module, "__file__", None)
    if file is None:
        return module.__name__ in sys.builtin_module_names or hasattr(module, "__path__")
    path = Path(file).resolve()
    for root in _worker_roots():
        if path.is_relative_to(root):
            parts = list(path.relative_to(root).parts)
            parts[-1] = parts[-1].partition(".")[0]
            if parts[-1] == "__init__":
                parts.pop()
            if parts == module.__name__.split("."):
                return True
    return False


def _worker_roots() -> list[Path]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    installed = {sysconfig.get_path(kind) for kind in kinds}
    installed |= {str(Path(path) / "lib-dynload") for path in tuple(installed)}
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [COMFYUI_ROOT, *(Path(path).resolve() for path in (*installed, *given) if path)]


# What cannot work in another process -----------------------------------------------------------


class NoRandomness:
    """Refuses patches that draw random numbers: a worker would draw other ones than ComfyUI."""

    def __init__(self, code: Mapping[str, Any], device: torch.device) -> None:
        self._code = code
        self._device = device

    def _state(self) -> tuple[Any, ...]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return (*(state.numpy().tobytes() for state in states), random.getstate())

    def __enter__(self) -> None:
        self._before = self._state()

    def __exit__(self, *_: Any) -> None:
        if self._state() != self._before:
            raise UnsupportedPatchError(
                "A patch of this MODEL draws random numbers. A worker process would draw other "
                "ones than ComfyUI, and so give another picture. It is one of these: "
                f"{'; '.join(names_of(self._code))}. Remove the node that adds it (a HyperTile "
                "with swap_size 1 draws none), or use ComfyUI's own loader for this MODEL."
            )


def reporting_back(code: Mapping[str, Any], kept: Iterable[Any]) -> list[str]:
    """The names of the functions in `code` that leave something for a function of `kept`.

    They would leave it in a worker process, and the function of `kept` runs in ComfyUI's. Seen are
    variables of an enclosing function that both use and the one in `code` assigns to.
    """
    read = {id(cell) for f in kept for cell in getattr(f, "__closure__", None) or ()}
    return [
        _name(f) for _, f in _code_leaves(code, "") if any(id(c) in read for c in _written_cells(f))
    ]


def _written_cells(function: Any) -> Iterator[Any]:
    if not isinstance(function, types.FunctionType):
        return
    written = {i.argval for i in dis.get_instructions(function) if i.opname == "STORE_DEREF"}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in written:
            yield cell
