"""LoRAs on conditionings (ComfyUI's weight hooks), which the workers put in force.

ComfyUI decides which hooks an evaluation has, and by their keyframes at which strengths. That is
all that an evaluation tells; the weights themselves cross once per run. A worker patches with
ComfyUI's own code, which restores the base weights from a copy in memory, and remembers the patched
weights of every group of hooks if ComfyUI would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import comfy.hooks

# Marks, in transformer_options, the hooks of an evaluation: ComfyUI's mode of caching, and pairs
# (number of the hook among the run's, strength).
HOOKS_MARK = "asyncdiff_hooks"

# What the workers keep of a hook has its number behind this as its key.
HOOK = "hook "

Strengths = tuple[tuple[int, float], ...]


def strengths_of(hooks: Any, registered: Iterable[Any]) -> Strengths:
    """The hooks of a HookGroup that patch weights, with the strength that each has now.

    Args:
        hooks: the HookGroup.
        registered: the references of all hooks of the model, by whose order they are numbered.
    """
    numbers = {reference: number for number, reference in enumerate(registered)}
    return tuple(
        (numbers[hook.hook_ref], float(hook.strength))
        for hook in hooks.hooks
        if hook.hook_ref in numbers
    )


def numbers_of(options: Mapping[str, Any]) -> tuple[int, ...]:
    """The numbers of the hooks that these transformer_options ask for."""
    _, strengths = options.get(HOOKS_MARK, ("", ()))
    return tuple(number for number, _ in strengths)


class StageHooks:
    """In a worker: the hooks of the run that is going on."""

    def __init__(self) -> None:
        self._references: dict[int, Any] = {}
        self._patches: dict[Any, dict[str, Any]] = {}
        self._groups: dict[Strengths, Any] = {}

    def add(self, key: str, patches: dict[str, Any]) -> None:
        """Keep the weight patches of a hook."""
        reference = comfy.hooks._HookRef()
        self._references[int(key.removeprefix(HOOK))] = reference
        self._patches[reference] = patches

    def apply(self, patcher: Any, mark: tuple[str, Strengths] | None) -> None:
        """Have the weights of `patcher` patched by the hooks of `mark`, and by no others."""
        if mark is None:
            patcher.apply_hooks(None)
            return
        mode, strengths = mark
        if strengths not in self._groups:
            self._forget_other_strengths(patcher, dict(strengths))
            self._groups[strengths] = self._group(strengths)
        patcher.hook_mode = comfy.hooks.EnumHookMode(mode)
        patcher.hook_patches = self._patches  # its own, if it was loaded again meanwhile
        patcher.apply_hooks(self._groups[strengths])

    def forget(self, patcher: Any) -> None:
        """The run is over: the weights are the base weights again."""
        if patcher is not None:
            patcher.clean_hooks()
        self._references.clear()
        self._patches.clear()
        self._groups.clear()

    def _group(self, strengths: Strengths) -> Any:
        group = comfy.hooks.HookGroup()
        for number, strength in strengths:
            hook = comfy.hooks.WeightHook()
            hook.hook_ref = self._references[number]
            hook.hook_keyframe.add(comfy.hooks.HookKeyframe(strength))
            group.add(hook)
        return group

    def _forget_other_strengths(self, patcher: Any, new: Mapping[int, float]) -> None:
        """A keyframe came: what is remembered for the one before would only cost memory."""
        for strengths, group in list(self._groups.items()):
            if any(strength != new.get(number, strength) for number, strength in strengths):
                patcher.cached_hook_patches.pop(group, None)
                del self._groups[strengths]
