"""Weight patches (LoRA and the like) on their way to the workers.

Weight patches are what `ModelPatcher.add_patches` collects per key: tensors inside ComfyUI's own
weight adapter classes, which every worker can import, and sometimes functions. They cross as
pickling.py says, and each worker gets those of the keys that it holds. The worker applies them with
ComfyUI's own code.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.weight_adapter

from ...algorithm.stages import Stage, units_of
from ...errors import UnsupportedPatchError
from ..model import replaced
from ..model.layouts import MODEL_PREFIX
from ..model.streaming import Streaming
from . import pickling
from .pickling import Payload, WorkerView

# Those that ComfyUI's calculate_weight knows beside its adapters.
_KINDS = ("diff", "set", "model_as_lora")


@dataclass(frozen=True)
class WeightChanges:
    """All that a MODEL changes about its weights.

    Attributes:
        uuid: names them; the same again means the same changes.
        patches: weight patches by key, as ModelPatcher collects them.
        wrappers: functions by key that a weight goes through whenever it is used.
        casts: whether weights are cast whenever they are used, to `compute_dtype`.
        functions: by their places, those that change weights in the place of ComfyUI's own.
    """

    uuid: str
    patches: Mapping[str, Any] = field(default_factory=dict)
    wrappers: Mapping[str, Any] = field(default_factory=dict)
    casts: bool = False
    compute_dtype: Any = None
    functions: Mapping[str, Any] = field(default_factory=dict)

    def by(self, functions: Mapping[str, Any]) -> WeightChanges:
        """The same changes, made by these functions."""
        if not functions:
            return self
        identities = (f"{place} {id(value)}" for place, value in functions.items())
        uuid = " ".join((self.uuid, *identities))
        return dataclasses.replace(self, uuid=uuid, functions=dict(functions))


def pack_changes(
    changes: WeightChanges, units: Sequence[str], stage: Stage, view: WorkerView
) -> Payload:
    """What a worker with this stage needs of `changes`, as plain data; see `put_in_force`.

    Raises:
        UnsupportedPatchError: one of them cannot cross the process border; its key is named.
    """
    patches, wrappers = (_of_stage(x, units, stage) for x in (changes.patches, changes.wrappers))
    value = patches, wrappers, changes.casts, changes.compute_dtype, dict(changes.functions)
    return _pack(value, view, patches, wrappers, changes.functions)


def pack_patches(
    patches: Mapping[str, Any], units: Sequence[str], stage: Stage, view: WorkerView
) -> Payload:
    """The patches of the keys that a worker with this stage holds, as plain data.

    Raises:
        UnsupportedPatchError: one of them cannot cross the process border; its key is named.
    """
    own = _of_stage(patches, units, stage)
    return _pack(own, view, own)


def put_in_force(patcher: Any, payload: Any, device: Any, streaming: Streaming) -> None:
    """In a worker: have the weights of `patcher` as `pack_changes` was told."""
    changed = pickling.unpack(payload, device)
    take_out_of_force(patcher)
    patcher.patches, patcher.weight_wrapper_patches, casts, dtype, functions = changed
    patcher.force_cast_weights = casts
    patcher.object_patches = {"manual_cast_dtype": dtype} if casts else {}
    with contextlib.ExitStack() as stack:
        for place, function in functions.items():
            stack.callback(replaced.put, place, replaced.put(place, function))
        streaming.patch(patcher)


def take_out_of_force(patcher: Any, device: Any = None) -> None:
    """In a worker: have weights as they were loaded, and on `device` if there is one."""
    patcher.unpatch_model(device_to=device)  # restores the original weights exactly
    patcher.patches, patcher.weight_wrapper_patches = {}, {}
    patcher.force_cast_weights, patcher.object_patches = False, {}


def unknown_kinds(patches: Iterable[Mapping[str, Any]]) -> list[str]:
    """The kinds of weight patches among these that are not ComfyUI's own."""
    found = {
        kind: None
        for by_key in patches
        for of_key in by_key.values()
        for kind in _kinds_of(of_key)
        if kind not in _KINDS
    }
    return list(found)


def _kinds_of(patches: Iterable[Any]) -> Iterator[str]:
    for _, value, *_ in patches:
        if isinstance(value, list):  # a weight of another model, with its own patches
            yield from _kinds_of(value[1:])
        elif not isinstance(value, comfy.weight_adapter.WeightAdapterBase) and len(value) != 1:
            yield str(value[0])


def _of_stage(by_key: Mapping[str, Any], units: Sequence[str], stage: Stage) -> dict[str, Any]:
    held = set(units_of(stage))
    foreign = tuple(f"{MODEL_PREFIX}{n}." for index, n in enumerate(units) if index not in held)
    return {key: value for key, value in by_key.items() if not key.startswith(foreign)}


def _pack(value: Any, view: WorkerView, *by_key: Mapping[str, Any]) -> Payload:
    try:
        return pickling.pack(value, view)
    except Exception as error:
        first = next((key for each in by_key for key in each), "")
        raise UnsupportedPatchError(
            f"A weight patch of this MODEL cannot be sent to worker processes: {error}. Its keys "
            f"begin with {first!r}. Remove the node that adds it, or use the MODEL without "
            "AsyncDiff."
        ) from error
