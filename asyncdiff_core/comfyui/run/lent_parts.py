"""Parts of the diffusion model that are in ComfyUI's process for one run.

Some ControlNets take weights of the MODEL, or compute with its embedders. The parts that they ask
for are loaded here as well, patched by ComfyUI's own code, and stand in the skeleton while the run
lasts.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

import torch

from ...errors import UnsupportedPatchError, few
from ..model.layouts import MODEL_PREFIX
from ..model.loading import Loader
from ..model.skeleton import build_skeleton
from ..patches.changes import Watch


class LentParts:
    """What is lent to the ControlNets of a run; kept for the next one with the same patches.

    Args:
        skeleton: the diffusion model whose weights are in workers.
        loader: the call that loads it.
        watch: of the skeleton; everything else that changes on it is somebody else's doing.
    """

    def __init__(self, skeleton: torch.nn.Module, loader: Loader, watch: Watch) -> None:
        self._skeleton, self._loader, self._watch = skeleton, loader, watch
        self._own: dict[str, torch.nn.Module] = {}  # what stood in the place of what is lent
        self._lent: dict[str, torch.nn.Module] = {}
        self._patches: uuid.UUID | None = None  # those in force on what is lent

    def lend(self, names: Collection[str], patcher: Any) -> None:
        """Put the parts `names`, those of them that the model has, into the skeleton.

        Args:
            names: of submodules of the diffusion model itself.
            patcher: the MODEL that samples, whose patches they get.

        Raises:
            UnsupportedPatchError: something is on them that is not in force all the time.
        """
        self.take_back()
        parts = {name for name in names if name in self._skeleton._modules}
        _require_plain_patches(parts, patcher)
        if set(self._lent) != parts or self._patches != patcher.patches_uuid:
            self._lent = {}  # gives its memory back first
            self._lent = _loaded(self._loader, parts, patcher)
            self._patches = patcher.patches_uuid
        for name, part in self._lent.items():
            self._own[name] = self._skeleton._modules[name]  # type: ignore[assignment]
            self._put(name, part.to(patcher.load_device))

    def take_back(self) -> None:
        """The run is over. Does nothing if nothing is lent."""
        for name, module in self._own.items():
            self._put(name, module)
            self._lent[name].to("cpu")
        self._own.clear()

    def _put(self, name: str, module: torch.nn.Module) -> None:
        self._skeleton._modules[name] = module
        self._watch.expect(name, module)


def _prefixes(parts: Collection[str]) -> tuple[str, ...]:
    return tuple(f"{MODEL_PREFIX}{part}." for part in parts)


def _loaded(loader: Loader, parts: Collection[str], patcher: Any) -> dict[str, torch.nn.Module]:
    """The parts with the weights that ComfyUI's own run would have in them."""
    whole = build_skeleton(loader, parts=parts)
    prefixes = _prefixes(parts)
    whole.patches = {k: v for k, v in patcher.patches.items() if k.startswith(prefixes)}
    for key in whole.patches:
        whole.patch_weight_to_device(key, patcher.load_device)
    return {part: whole.model.diffusion_model.get_submodule(part) for part in parts}


def _require_plain_patches(parts: Collection[str], patcher: Any) -> None:
    prefixes = _prefixes(parts)
    keys = [*patcher.weight_wrapper_patches, *patcher.object_patches]
    keys += [key for of_hook in patcher.hook_patches.values() for key in of_hook]
    others = [key for key in keys if f"{key}.".startswith(prefixes)]
    if others:
        raise UnsupportedPatchError(
            f"A ControlNet takes weights out of the diffusion model, and this MODEL carries what "
            f"changes them while it runs ({few(others)}). Use another kind of ControlNet, remove "
            "the node that adds it, or use the MODEL without AsyncDiff."
        )
