"""Object patches inside the diffusion model, and functions in the place of ComfyUI's, in workers.

`ModelPatcher.add_object_patch` puts another object under a name in the model, most often a method
under the name of a module's. Those outside the diffusion model (`model_sampling`) are for ComfyUI's
process. Those inside cross like other patches that are code (code_patches.py), bound to the
worker's own modules, and each worker puts those in force that concern what it holds. So do
functions that a pack has put in the place of ComfyUI's own, see replaced.py.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import comfy.utils

from ...algorithm.stage import StagedModel
from ...algorithm.stages import Stage, units_of
from ...errors import UnsupportedPatchError
from ..model import replaced
from ..model.layouts import MODEL_PREFIX, entry_of

# In the ComfyUI process -------------------------------------------------------------------------


def for_workers(patches: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the object patches of a MODEL that workers put in force."""
    return {key: value for key, value in patches.items() if key.startswith(MODEL_PREFIX)}


def refused(patches: Iterable[str], diffusion_model: Any, host_parts: Collection[str]) -> list[str]:
    """Those that can be put in force nowhere."""
    entry = entry_of(diffusion_model)
    parts = tuple(f"{MODEL_PREFIX}{part}." for part in host_parts)
    # ComfyUI's process runs what is around `_forward`, and would not run the patch.
    around = f"{MODEL_PREFIX}forward" if entry != "forward" else None
    whole = MODEL_PREFIX.removesuffix(".")
    return [
        key
        for key in patches
        # A class of the whole model keeps its results in the model, where nobody could read them.
        if key in (whole, around, f"{whole}.__class__") or key.startswith(parts)
    ]


# In a worker ------------------------------------------------------------------------------------


class PatchedObjects:
    """The object patches that are in force in a worker.

    Args:
        base_model: the worker's, of ComfyUI's class.
        stage: the units that are held.

    Attributes:
        entry: what an evaluation calls in place of the model's own method.
    """

    def __init__(self, base_model: Any, staged: StagedModel, stage: Stage) -> None:
        self._base_model, self._staged = base_model, staged
        held = frozenset(units_of(stage))
        names = [f"{MODEL_PREFIX}{unit.name}." for unit in staged.trunk.units]
        self._units = {f"{name}forward": index for index, name in enumerate(names)}
        self._foreign = tuple(name for index, name in enumerate(names) if index not in held)
        self._entry = MODEL_PREFIX + entry_of(base_model.diffusion_model)
        self._patches: tuple[Any, Any] = {}, {}
        self._undo = contextlib.ExitStack()
        self.entry: Any = None

    def whole_units(self, patches: Iterable[str]) -> list[str]:
        """Those of the patches that stand for the whole of a unit that is held."""
        return [key for key in patches if key in self._units and not key.startswith(self._foreign)]

    def put_in_force(self, patches: Mapping[str, Any], functions: Mapping[str, Any]) -> None:
        """Have these object patches and functions in force, and no others."""
        if all(map(_is_same, (patches, functions), self._patches)):
            return
        self._undo.close()
        self._patches = patches, functions
        for place, function in functions.items():
            self._put(place, function)
        for key, value in patches.items():
            if not key.startswith(self._foreign):
                self._set(key, value)

    def _put(self, place: str, function: Any) -> None:
        before = replaced.put(place, function)
        self._undo.callback(replaced.put, place, before)
        # What was bound before: the units' forwards, and the model's.
        for index, forward in enumerate(self._staged.forwards):
            if getattr(forward, "__func__", None) is before:
                module = forward.__self__  # type: ignore[attr-defined]
                self._set_unit(index, types.MethodType(function, module))
        model, entry = self._base_model.diffusion_model, self._entry.rpartition(".")[2]
        if getattr(type(model), entry) is function:
            self._set(self._entry, types.MethodType(function, model))

    def _set(self, key: str, value: Any) -> None:
        if key == self._entry:
            self._undo.callback(setattr, self, "entry", self.entry)
            self.entry = value
        elif key in self._units:
            self._set_unit(self._units[key], value)
        else:
            try:
                before = comfy.utils.set_attr(self._base_model, key, value)
            except AttributeError as error:
                raise UnsupportedPatchError(
                    f"An object patch of this MODEL is for {key!r}, which its model has not."
                ) from error
            self._undo.callback(comfy.utils.set_attr, self._base_model, key, before)
            unit = self._units.get(f"{key.removesuffix('__class__')}forward")
            if key.endswith(".__class__") and unit is not None:
                module = self._staged.trunk.units[unit].module
                self._set_unit(unit, types.MethodType(type(module).forward, module))

    def _set_unit(self, index: int, forward: Any) -> None:
        forwards = self._staged.forwards
        self._undo.callback(forwards.__setitem__, index, forwards[index])
        forwards[index] = forward


def _is_same(some: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return some is other or not (some or other)
