"""AsyncDiffModelPatcher: the MODEL whose diffusion model is spread over worker processes.

To ComfyUI it is a ModelPatcher like any other: it is cloned, patched, loaded and freed by the same
calls. What differs is where the weights are, and so the methods that touch weights.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ..algorithm.schedule import AUTO_WARM_UP, AsyncSchedule
from ..errors import UnsupportedPatchError, few
from ..workers.memory import give_memory_back
from . import fallback
from .model.absent import AbsentWeight
from .model.calls import with_sampled
from .model.layouts import MODEL_PREFIX, host_parts_of
from .model.replaced import CALCULATE
from .patches import controls, object_patches
from .patches.code_patches import reporting_back, split_options
from .patches.compilation import KEY, KIND, ROOT, compilation_of, elsewhere, here, keys_of
from .patches.weight_hooks import HOOKS_MARK, strengths_of
from .patches.weight_patches import WeightChanges, unknown_kinds
from .run import pressure
from .run.remote import RemoteModel

# Where a skeleton keeps those of its weights that have another shape now.
_RESHAPED = "asyncdiff_reshaped"


class AsyncDiffModelPatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher over a skeleton. Made by `adopt`, copied by `clone`.

    Attributes:
        stock: the MODEL that it stands for, where it may do the work itself; see fallback.py.
    """

    remote: RemoteModel
    schedule: AsyncSchedule
    object_patches: dict[str, Any]
    stock: Any = None
    patches_uuid: uuid.UUID

    @classmethod
    def adopt(
        cls, patcher: Any, remote: RemoteModel, parent: AsyncDiffModelPatcher | None = None
    ) -> AsyncDiffModelPatcher:
        """Turn `patcher`, a fresh one over a skeleton, into one of this class.

        Changing the class keeps every attribute that this version of ComfyUI gives a clone. To the
        memory manager the result is a clone of `parent`, which outlives it, and not of the stock
        MODEL whose patches it carries.
        """
        patcher.__class__ = cls
        patcher.remote = remote
        patcher.schedule = AsyncSchedule(AUTO_WARM_UP, prediction=True)
        patcher.parent = parent
        patcher.clone_base_uuid = parent.clone_base_uuid if parent else uuid.uuid4()
        patcher.model.device = patcher.load_device
        preparing = patcher.wrappers.setdefault(controls.KIND, {})
        preparing[controls.KEY] = [controls.with_taken_parts]
        patcher.wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})["asyncdiff"] = [_counted]
        patcher.wrappers.setdefault(WrappersMP.APPLY_MODEL, {})["asyncdiff"] = [with_sampled]
        fallback.retry_with_less(patcher)
        wrappers = patcher.wrappers.get(KIND, {})
        if KEY in wrappers:
            wrappers[KEY] = [elsewhere(wrapper) for wrapper in wrappers[KEY]]
        pressure.watch()
        adopted: AsyncDiffModelPatcher = patcher
        return adopted

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        n = super().clone(*args, **kwargs)
        n.remote = self.remote
        n.schedule = self.schedule
        n.stock = self.stock
        return n

    def local(self) -> Any:
        """The stock MODEL with all that this one carries."""
        stock, spread = self.stock, self.__class__
        self.__class__ = type(stock)  # clone makes one of the same class
        try:
            n = self.clone(model_override=stock.get_clone_model_override())
        finally:
            self.__class__ = spread
        n.parent, n.size, n.clone_base_uuid = stock, stock.size, stock.clone_base_uuid
        n.load_device, n.offload_device = stock.load_device, stock.offload_device
        wrappers = n.wrappers.get(KIND, {})
        if KEY in wrappers:
            wrappers[KEY] = [here(wrapper) for wrapper in wrappers[KEY]]
        return n

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None:
        if (wrapper_type, key) == (KIND, KEY):
            wrapper = elsewhere(wrapper)
        super().add_wrapper_with_key(wrapper_type, key, wrapper)

    # Sampling --------------------------------------------------------------------------------

    def pre_run(self) -> None:
        self._refuse_what_cannot_cross()
        self.remote.begin_to_watch()
        self.remote.require_unchanged()
        self.remote.begin_run(
            self.schedule,
            WeightChanges(
                *(str(self.patches_uuid), self.patches, self.weight_wrapper_patches),
                casts=self.force_cast_weights,
                compute_dtype=self.object_patches.get("manual_cast_dtype"),
            ),
            hooks=tuple(self.hook_patches.values()),
            objects=object_patches.for_workers(self.object_patches),
            compilation=compilation_of(self),
        )
        super().pre_run()

    def cleanup(self) -> None:
        # Called while the exception that ended the run, if any, is on its way.
        canceled = comfy.model_management.InterruptProcessingException
        is_canceled = isinstance(sys.exc_info()[1], canceled)
        try:
            super().cleanup()
        finally:
            self.remote.end_run(is_canceled)

    def get_free_memory(self, device: Any) -> float:
        """What there is for activations; ComfyUI decides by it whether conds share a batch.

        The answer must not change within a run, since stored activations belong to one batch
        make-up, nor from run to run.
        """
        if self.remote.may_deal:
            return float("inf")  # replicas share one batch, so there must be one
        remote = self.remote
        return remote.room.for_activations(remote.request.devices, remote.weight_bytes)

    def _refuse_what_cannot_cross(self) -> None:
        model = self.model.diffusion_model
        parts = host_parts_of(model)
        refused = [f"injection {key!r}" for key in self.injections]
        refused += [
            f"object patch {key!r}"
            for key in object_patches.refused(self.object_patches, model, parts)
        ]
        refused += [
            f"a weight patch of {part}, which ComfyUI's conditioning code runs here"
            for part in parts
            if any(key.startswith(f"{MODEL_PREFIX}{part}.") for key in self._patched_keys())
        ]
        refused += [
            f"weight patches of the kind {kind!r}, which are not ComfyUI's own"
            for kind in unknown_kinds((self.patches, *self.hook_patches.values()))
            if not self.remote.is_replaced(CALCULATE)  # else the function that knows it crosses too
        ]
        refused += [
            f"torch.compile of {key!r}, which is no part of the diffusion model"
            for key in keys_of(self)
            if key != ROOT and not key.startswith(f"{ROOT}.")
        ]
        elsewhere = [
            leaf
            for key, value in self.model_options.items()
            if key != "transformer_options"
            for leaf in (value if isinstance(value, list) else [value])
        ]
        _, code = split_options(self.model_options.get("transformer_options", {}))
        refused += [
            f"{name}, which leaves what it sees for a function in ComfyUI's own process"
            for name in reporting_back(code, elsewhere)
        ]
        if refused:
            raise UnsupportedPatchError(
                f"This MODEL carries {few(refused)}, which cannot be taken to worker processes. "
                "Remove the node that adds it, or use the MODEL without AsyncDiff."
            )

    def _patched_keys(self) -> Iterator[str]:
        yield from self.patches
        for patches in self.hook_patches.values():
            yield from patches

    # LoRAs on conditionings ------------------------------------------------------------------

    def add_hook_patches(self, *args: Any, **kwargs: Any) -> Any:
        uuid_before = self.patches_uuid
        added = super().add_hook_patches(*args, **kwargs)
        self.patches_uuid = uuid_before  # it names what is always in force, and that did not change
        return added

    def patch_hooks(self, hooks: Any) -> None:
        """Note the strengths that the hooks have now; workers patch when an evaluation names them.

        They are kept where ComfyUI keeps patched weights, and so are forgotten when it forgets
        those: whenever a keyframe changes a strength.
        """
        if hooks is not None and hooks not in self.cached_hook_patches:
            strengths = strengths_of(hooks, self.hook_patches)
            self.cached_hook_patches[hooks] = {HOOKS_MARK: strengths}
        self.current_hooks = hooks

    def apply_hooks(self, hooks: Any, *args: Any, **kwargs: Any) -> Any:
        options = super().apply_hooks(hooks, *args, **kwargs)
        if hooks is not None and (strengths := self.cached_hook_patches[hooks][HOOKS_MARK]):
            options[HOOKS_MARK] = self.hook_mode.value, strengths
        return options

    # Memory ----------------------------------------------------------------------------------

    def model_patches_models(self) -> Any:
        """None: those of patches are in workers, see patch_models.py.

        ComfyUI asks before it makes room for this model by unloading others.
        """
        pressure.note_others(self.load_device)
        return []

    def model_size(self) -> int:
        """What the workers on ComfyUI's own device take there."""
        return max(1, self.remote.bytes_on(str(self.load_device)))

    def loaded_size(self) -> int:
        return self.model_size() if self.remote.is_loaded(str(self.load_device)) else 0

    def partially_load(self, device_to: Any, *args: Any, **kwargs: Any) -> int:
        """Put object patches in force here; workers load when the first evaluation comes."""
        with self.use_ejected(skip_and_inject_on_exit_only=True):
            self.unpatch_model(unpatch_weights=False)
            self.patch_model(device_to, load_weights=False)
        self.load(device_to)
        return 0

    def patch_model(self, *args: Any, **kwargs: Any) -> Any:
        """Put object patches in force, but for those that workers have (object_patches.py)."""
        everything = self.object_patches
        there = object_patches.for_workers(everything)
        self.object_patches = {k: v for k, v in everything.items() if k not in there}
        try:
            return super().patch_model(*args, **kwargs)
        finally:
            self.object_patches = everything

    def inject_model(self) -> None:
        """Nothing: what is put into a skeleton computes nothing. `pre_run` refuses it."""

    def load(self, device_to: Any = None, *args: Any, **kwargs: Any) -> None:
        self.model.device = device_to
        self._move_what_is_here(device_to)
        self._reshape(self.patches)
        self.model.current_weight_patches_uuid = self.patches_uuid
        for callback in self.get_all_callbacks(CallbacksMP.ON_LOAD):
            callback(self, device_to, 0, False, True)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        super().unpatch_model(None, unpatch_weights=False)
        if unpatch_weights:
            self._reshape({})
            self._move_what_is_here(device_to)
            self.model.current_weight_patches_uuid = None

    def _move_what_is_here(self, device: Any) -> None:
        """Move the parts of the model that ComfyUI's conditioning code runs in this process."""
        if device is None:
            return
        model = self.model.diffusion_model
        for module in self.model.children():
            if module is not model:
                module.to(device)
        for name in host_parts_of(model):
            model.get_submodule(name).to(device)
        for parameter in self.model.parameters(recurse=False):
            parameter.data = parameter.data.to(device)

    def _reshape(self, patches: Mapping[str, Any]) -> None:
        """Give the weights of the skeleton the shapes that they have with these patches.

        LoRAs that widen a layer (Flux canny and depth, Wan control) are noticed by that: the
        conditioning code then makes more channels.
        """
        former = self.model.__dict__.pop(_RESHAPED, {})
        for key, weight in former.items():
            comfy.utils.set_attr(self.model, key, weight)
        before: dict[str, AbsentWeight] = {}
        for key, of_key in patches.items():
            weight = comfy.utils.get_attr(self.model, key)
            if isinstance(weight, AbsentWeight):
                shape = comfy.lora.calculate_shape(of_key, weight, key)
                if tuple(shape) != tuple(weight.shape):
                    before[key] = weight
                    wider = AbsentWeight.of(weight, weight.name, weight.place, torch.Size(shape))
                    comfy.utils.set_attr(self.model, key, wider)
        self.model.__dict__[_RESHAPED] = before
        self.remote.reshaped({*former, *before})

    def partially_unload(self, device_to: Any, memory_to_free: int = 0, *args: Any) -> int:
        """Give back what workers have on ComfyUI's own device; those on others keep theirs."""
        return self.remote.unload(str(self.load_device))

    def detach(self, unpatch_all: bool = True) -> Any:
        """Give back what workers have on ComfyUI's own device, if `unpatch_all`.

        ComfyUI passes False when one clone takes the place of another and when a clone is deleted.
        Where it unloads all models, workers on other devices give theirs back too, see pressure.py.
        """
        model = super().detach(unpatch_all)
        if unpatch_all:
            self.remote.unload(str(self.load_device))
            give_memory_back()
        return model

    # What needs the weights here -------------------------------------------------------------

    def get_key_patches(self, filter_prefix: str | None = None) -> NoReturn:
        _refuse("be the second model of a merge, or be saved")

    def model_state_dict_for_saving(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("be saved")

    def patch_weight_to_device(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("be patched in the ComfyUI process")

    def deepclone_multigpu(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse("be combined with MultiGPU CFG Split")


def _counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrapper around the denoiser: tells its evaluations from those of another call."""
    remote = getattr(executor.class_obj.model_patcher, "remote", None)
    if remote is not None:
        remote.begin_denoiser_call()
    return executor(*args, **kwargs)


def _refuse(what: str) -> NoReturn:
    raise UnsupportedPatchError(
        f"A MODEL spread over worker processes cannot {what}: its weights are not in this process. "
        "Do that with the MODEL without AsyncDiff, before AsyncDiffParallelize for example."
    )
