"""Patches of a model that are code, on their way to the workers.

ComfyUI keeps them in `transformer_options`: functions and objects that a model calls in its blocks
(FreeU, IP-Adapter, attention replacements). Each distinct set of them crosses once per run, see
pickling.py; evaluations refer to it by a key. Tensors go to the worker's device when the set
arrives.
"""

from __future__ import annotations

import dis
import random
import types
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from ...errors import UnsupportedPatchError, few, short_name
from ...wire.inputs import is_sendable
from ...wire.strides import place_of
from . import pickling
from .fingerprint import State
from .patch_models import brings_unknown_model, is_autoencoder, is_patcher
from .pickling import Payload, WorkerView
from .weight_hooks import HOOKS_MARK

# Marks, in transformer_options, what was kept.
_MARK = "asyncdiff_kept"

# Keys beside those of transformer_options: of object patches inside the diffusion model, and of
# functions in the place of ComfyUI's own.
OBJECTS, FUNCTIONS = "asyncdiff_objects", "asyncdiff_functions"

# Entries of transformer_options that ComfyUI's own code uses in its process only: wrappers and
# callbacks run around the remote forward, and so do the caches; a context window says which part of
# a video is evaluated; the others concern memory paging of local weights.
_HOST_ONLY = (
    *("wrappers", "callbacks", "easycache", "context_window"),
    *("prefetch_dynamic_vbars", "multigpu_thread_pool"),
)


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
    return tuple(f"{path}: {name_of(leaf)}" for path, leaf in _code_leaves(code, ""))


def name_of(leaf: Any) -> str:
    """A function or the class of an object, and its module; of a pack without its folder."""
    kind = leaf if hasattr(leaf, "__qualname__") else type(leaf)
    return f"{kind.__qualname__} of {short_name(str(kind.__module__))}"


def _code_leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key in (OBJECTS, FUNCTIONS):
                yield from value.items()
            else:
                yield from _code_leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _code_leaves(value, path)
    elif not is_sendable(tree):
        yield path, tree


class CodePatches:
    """The sets of patches of one run, each with the key that evaluations refer to it by.

    Args:
        view: the modules that workers have too.
    """

    def __init__(self, view: WorkerView) -> None:
        self._view = view
        self._known: list[tuple[State, str]] = []
        self._payloads: list[Payload] = []

    def _is_elsewhere(self, value: Any) -> bool:
        """Whether workers have `value`, or it is not what patches change."""
        is_known = self._view.name_of(value) is not None or self._view.is_config(value)
        return is_known or is_patcher(value) or is_autoencoder(value)

    def key_of(self, code: Mapping[str, Any]) -> tuple[str, Payload]:
        """The key of `code`, and what workers need to know for it.

        A set that is what it was is found without being pickled. One that changed is pickled, and
        is another set unless its pickle is that of a known one.

        Raises:
            UnsupportedPatchError: it cannot cross the process border; it is named.
        """
        state = State(code, self._is_elsewhere)
        for known, key in self._known:
            if state.equals(known):
                return key, self._payloads[int(key)]
        payload = pack(code, self._view)
        numbers = (n for n, known in enumerate(self._payloads) if _same_payload(known, payload))
        number = next(numbers, len(self._payloads))
        if number == len(self._payloads):
            self._payloads.append(payload)
        if state.is_complete:
            self._known.append((state, str(number)))
        return str(number), self._payloads[number]


def mark(options: Mapping[str, Any], key: str) -> dict[str, Any]:
    """`options` with a mark that `expand` replaces."""
    return {**options, _MARK: key}


def key_of(tree: Any) -> str | None:
    """The key of the patches in the arguments `tree`, if there are some."""
    marked = _marked(tree)
    return None if marked is None else marked[_MARK]


def patches_of(tree: Any, contents: Mapping[str, bytes]) -> Hashable:
    """What of the patches in the arguments `tree` may be baked into what is compiled, or None.

    Args:
        tree: the positional ones, and those by name.
        contents: each set of patches by its key, as bytes.
    """
    marked = _marked(tree)
    if marked is None:
        return None
    return contents[marked[_MARK]], tuple(marked.get("cond_or_uncond", ()))


def _marked(tree: Any) -> dict[str, Any] | None:
    args, kwargs = tree
    values = (*args, *kwargs.values())
    return next((x for x in values if isinstance(x, dict) and _MARK in x), None)


def expand(
    tree: Any, kept: Mapping[str, dict[str, Any]]
) -> tuple[Any, dict[str, Any], tuple[str, Any] | None]:
    """The arguments `tree` with the kept patches in place of their mark; these patches; and the
    mark of the hooks, see weight_hooks.py, if there is one."""
    found: dict[str, Any] = {}
    hooks: list[tuple[str, Any]] = []

    def put_in(value: Any) -> Any:
        if not isinstance(value, dict) or not (_MARK in value or HOOKS_MARK in value):
            return value
        value = dict(value)
        if HOOKS_MARK in value:
            hooks.append(value.pop(HOOKS_MARK))
        if _MARK in value:
            found.update(kept[value.pop(_MARK)])
        return {**value, **_new_containers(found)}

    args, kwargs = tree
    expanded = tuple(map(put_in, args)), {k: put_in(v) for k, v in kwargs.items()}
    return expanded, found, hooks[0] if hooks else None


def _new_containers(tree: Any) -> Any:
    """Models and patches write into the dicts and lists."""
    if isinstance(tree, dict):
        return {key: _new_containers(value) for key, value in tree.items()}
    return list(tree) if isinstance(tree, list) else tree


def _same_payload(some: Payload, other: Payload) -> bool:
    tensors = zip(some[1], other[1], strict=False)
    return some[0] == other[0] and all(place_of(a) == place_of(b) for a, b in tensors)


def pack(code: Mapping[str, Any], view: WorkerView | None = None) -> Payload:
    """`code` as plain data.

    Raises:
        UnsupportedPatchError: it cannot cross the process border; it is named.
    """
    for path, leaf in _code_leaves(code, ""):
        if brings_unknown_model(leaf):
            raise UnsupportedPatchError(
                f"This MODEL has a patch that brings a model of its own ({path}: {name_of(leaf)}), "
                "which cannot be taken to worker processes. Remove the node that adds it, or "
                "use the MODEL without AsyncDiff."
            )
    try:
        return pickling.pack(dict(code), view)
    except Exception as error:
        raise UnsupportedPatchError(
            f"This MODEL has patches that cannot be sent to worker processes ({error}): "
            f"{few(names_of(code))}. Remove the node that adds them, or use the MODEL without "
            "AsyncDiff."
        ) from error


def unpack(
    payload: tuple[bytes, Sequence[torch.Tensor]],
    device: torch.device,
    base_model: torch.nn.Module | None = None,
) -> dict[str, Any]:
    """What `pack` packed, in a worker, on its device."""
    data, tensors = payload
    on_device = [tensor.to(device) for tensor in tensors]
    code: dict[str, Any] = pickling.unpack((data, on_device), device, base_model)

    def to_device(tree: Any) -> Any:  # as ModelPatcher.model_patches_to
        if isinstance(tree, dict):
            return {key: to_device(value) for key, value in tree.items()}
        if isinstance(tree, list):
            return [to_device(value) for value in tree]
        can_move = callable(getattr(tree, "to", None)) and not isinstance(tree, type)
        return tree.to(device) if can_move else tree

    return {key: v if key in (OBJECTS, FUNCTIONS) else to_device(v) for key, v in code.items()}


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
                f"{few(names_of(self._code))}. Remove the node that adds it (a HyperTile with "
                "swap_size 1 draws none), or use the MODEL without AsyncDiff."
            )


def reporting_back(code: Mapping[str, Any], kept: Iterable[Any]) -> list[str]:
    """The names of the functions in `code` that leave something for a function of `kept`.

    They would leave it in a worker process, and the function of `kept` runs in ComfyUI's. Seen are
    variables of an enclosing function that both use and the one in `code` assigns to.
    """
    read = {id(cell) for f in kept for cell in getattr(f, "__closure__", None) or ()}
    return [
        name_of(f)
        for _, f in _code_leaves(code, "")
        if any(id(c) in read for c in _written_cells(f))
    ]


def _written_cells(function: Any) -> Iterator[Any]:
    if not isinstance(function, types.FunctionType):
        return
    written = {i.argval for i in dis.get_instructions(function) if i.opname == "STORE_DEREF"}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if name in written:
            yield cell
