"""Models that patches hold: one of their own, or the MODEL itself in a variable.

ControlNets that are model patches and style projectors bring one. Its weights are handed over by a
file (weights_file.py); the patch crosses as any other, and in a worker its model takes to the
device what is called there. These patches compute in the model's own code between its units, which
every stage runs, or inside units. What one of them keeps from one unit for another crosses to the
next stage (flowing.py): so they give in each stage what they give in the whole model.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import comfy.ldm.common_dit
import comfy.model_management
import comfy.model_patcher
import torch
from torch.utils import _pytree as pytree

from ...errors import LoaderError, UnsupportedPatchError
from ..model.replaced import is_of_a_pack
from ..model.weights_file import WeightsFile
from .changes import is_note_of_comfyui
from .flowing import FLOWING

# ComfyUI's classes, by name, of which that is known. Others are refused by name.
KNOWN = frozenset(
    (
        *("AnimaLLLitePatch", "DiffSynthCnetPatch", "UsoStyleProjectorPatch", "WanUni3CCnetPatch"),
        "MultiTalkCrossAttnPatch",  # of InfiniteTalk
        FLOWING,
    )
)

# Those that compute for each block from its output alone, which of a unit of another stage is
# nothing that matters.
_PER_BLOCK = "DiffSynthCnetPatch"

# Where ComfyUI has the weights of a module on a device.
_LOADED = frozenset(("_v", "_v_signature", "_pins", "_pin", "_pin_state"))

_files: weakref.WeakKeyDictionary[torch.nn.Module, WeightsFile] = weakref.WeakKeyDictionary()


def brings_unknown_model(patch: Any) -> bool:
    """Whether a patch has a model of its own and is none of `KNOWN`."""
    models = getattr(patch, "models", None)
    has_models = callable(models) and not isinstance(patch, type) and bool(models())
    is_known = type(patch).__name__ in KNOWN and not is_of_a_pack(type(patch).__call__)
    return has_models and not is_known


def is_patcher(value: Any) -> bool:
    """Whether `value` holds the model of a patch."""
    return isinstance(value, comfy.model_patcher.ModelPatcher)


def is_autoencoder(value: Any) -> bool:
    """Whether `value` is a VAE, which stays in ComfyUI's process."""
    # Of the class: some objects of ComfyUI have every attribute that they are asked for.
    return hasattr(type(value), "spacial_compression_encode")


def hand_over(patcher: Any) -> dict[int, tuple[str, str]]:
    """The tensors of a patch's model by their identity: the file that has them now, and the name.

    Raises:
        UnsupportedPatchError: they cannot be handed over.
    """
    model = patcher.model
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if patcher.patches:
        raise UnsupportedPatchError("the model of a patch is patched itself")
    if model not in _files:
        try:
            _files[model] = WeightsFile(named)
        except LoaderError as error:
            raise UnsupportedPatchError(f"a patch's own weights: {error}") from error
    return {id(tensor): (_files[model].path, name) for name, tensor in named.items()}


def attributes_of(module: torch.nn.Module) -> dict[str, Any]:
    """The attributes of a module without what ComfyUI notes on one that it has loaded."""
    return {
        name: value
        for name, value in vars(module).items()
        if not (is_note_of_comfyui(name) or name in _LOADED)
    }


def made_again(kind: type[torch.nn.Module], attributes: dict[str, Any]) -> torch.nn.Module:
    """In a worker: the module of which `attributes_of` gave the attributes."""
    module = kind.__new__(kind)
    torch.nn.Module.__init__(module)
    vars(module).update(attributes)
    return module


def state_of(patcher: Any) -> dict[str, Any]:
    """Of the MODEL that a patch finds in a variable: what it may ask for in a worker."""
    return {"model_options": patcher.model_options, "object_patches": patcher.object_patches}


def sent_model(base_model: torch.nn.Module) -> Any:
    """In a worker: a MODEL of the worker's own model, for `fill`."""
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(base_model, load_device=device, offload_device=device)


def fill(value: Any, attributes: dict[str, Any]) -> None:
    """Give an object its attributes, when all of them are there."""
    vars(value).update(attributes)


class SentPatcher:
    """In a worker, what holds the model of a patch.

    Attributes:
        model: the model. Its modules take their weights to the device when they are first called.
    """

    def __init__(self, model: torch.nn.Module, device: torch.device) -> None:
        self.model = model
        for module in model.modules():
            if module is model:
                _take_to(device, module)
            elif module._parameters or module._buffers:
                _take_when_called(device, module)


def _take_when_called(device: torch.device, module: torch.nn.Module) -> None:
    def take(module: torch.nn.Module, args: Any) -> None:
        _take_to(device, module)
        hook.remove()

    hook = module.register_forward_pre_hook(take)


def _take_to(device: torch.device, module: torch.nn.Module) -> None:
    # Also where it is the CPU: in a file a tensor starts anywhere, and some kernels give other bits
    # for other alignments.
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to(device, copy=True), False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = buffer.to(device, copy=True)


class SentAutoencoder:
    """In a worker, what a patch asks of a VAE; pictures are encoded in ComfyUI's process."""

    def __init__(self, spacial: int, temporal: int | None) -> None:
        self._spacial, self._temporal = spacial, temporal

    @classmethod
    def of(cls, vae: Any) -> tuple[type, tuple[Any, ...]]:
        """How a pickle makes it."""
        return cls, (vae.spacial_compression_encode(), vae.temporal_compression_decode())

    def spacial_compression_encode(self) -> int:
        """By how much a latent is smaller than its picture."""
        return self._spacial

    def temporal_compression_decode(self) -> int | None:
        """By how much a latent has fewer frames than its video."""
        return self._temporal

    def encode(self, *_: Any) -> Any:
        """Refused."""
        raise UnsupportedPatchError(
            "A patch of this MODEL encodes a picture while the model computes, and the VAE is in "
            "ComfyUI's process. Give it a picture of the size of the latent, or use the MODEL "
            "without AsyncDiff."
        )


class _Enough(Exception):  # noqa: N818 - a control flow signal, not an error
    """All that is to be done in ComfyUI's process is done."""


class _Stopping:
    """The model of a patch, until the patch wants more of it than to encode a picture."""

    ENCODES = ("additional_in_dim", "process_input_latent_image")

    def __init__(self, model: Any) -> None:
        self.model = self
        self._model = model

    def __getattr__(self, name: str) -> Any:
        if name not in self.ENCODES:
            raise _Enough
        return getattr(self._model, name)


def fit(patches: dict[str, Any], x: torch.Tensor) -> None:
    """Have patches encode their pictures in the size of the latent `x`, as they do when the model
    computes, here where the VAE is."""
    for patch in pytree.tree_leaves(patches):
        if type(patch).__name__ in (_PER_BLOCK, FLOWING):
            # Z-Image gives its patches the latent as it pads it.
            pads = type(patch).__name__ == FLOWING
            latent = comfy.ldm.common_dit.pad_to_patch_size(x, (2, 2)) if pads else x
            patcher = patch.model_patch
            patch.model_patch = _Stopping(patcher.model)
            try:
                patch({"x": latent, "img": latent, "block_index": 0})
            except _Enough:
                pass
            finally:
                patch.model_patch = patcher
        elif type(patch).__name__ == "WanUni3CCnetPatch":
            render = patch.prepared_render
            if render is None or render.shape[2:] != x.shape[2:]:
                patch.prepared_render = patch.encode_render_video(x.shape[2:])


def with_no_useless_work(code: dict[str, Any], is_scratch: Callable[[Any], bool]) -> None:
    """In a worker: leave out what patches in `code` would compute from outputs that reach nothing.

    Args:
        code: what was kept.
        is_scratch: tells outputs of units of other stages that this one does not have.
    """
    blocks = code.get("patches", {}).get("double_block", [])
    for number, patch in enumerate(blocks):
        if type(patch).__name__ == _PER_BLOCK:
            blocks[number] = _sparing(patch, is_scratch)


def _sparing(patch: Any, is_scratch: Callable[[Any], bool]) -> Callable[[Any], Any]:
    @functools.wraps(type(patch), updated=())
    def sparing(args: dict[str, Any]) -> Any:
        return args if is_scratch(args["img"]) else patch(args)

    return sparing
