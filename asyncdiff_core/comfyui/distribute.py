"""From a node's inputs to a distributed MODEL: the one way in for all nodes."""

from __future__ import annotations

import math
import weakref
from typing import Any

import comfy.model_management
import comfy.model_patcher

from ..algorithm.schedule import AsyncSchedule
from ..errors import (
    CheckpointError,
    InputError,
    LayoutError,
    LoaderError,
    UnspreadableError,
    few,
    short_name,
)
from ..log import get_logger
from ..planning.plan import parse_devices
from ..planning.planner import PlanRequest
from . import fallback
from .fallback import stay_local
from .model.hand_over import Comparison, hand_over, is_handed_over, loader_of
from .model.layouts import has_layout, layout_of
from .model.loading import Loader
from .model.motion import lora_patches, sampling_of, with_motion
from .model.samples import WeightSamples
from .model.skeleton import See, build_skeleton
from .patcher import AsyncDiffModelPatcher
from .run.machine import available_devices
from .run.remote import RemoteModel

log = get_logger()

# Stock MODELs that a sampler node parallelised by itself. The distributed twin lives as long as
# the stock model, so that its workers stay warm from prompt to prompt.
_twins: weakref.WeakKeyDictionary[Any, dict[PlanRequest, _Twin]] = weakref.WeakKeyDictionary()

# The twin of a stock MODEL, and how that one's weights were when it was made.
_Twin = tuple[WeightSamples, AsyncDiffModelPatcher]

# Why stock models cannot be spread, so that this is found out once.
_unspreadable: weakref.WeakKeyDictionary[Any, UnspreadableError] = weakref.WeakKeyDictionary()

# Where ComfyUI has its kinds of MODELs.
_PATCHERS = comfy.model_patcher.__name__

# Marks a MODEL that was placed on one device, so that no sampler node spreads it after all.
_WHOLE = "asyncdiff_whole"


def plan_for(devices: str, stages: int = 0, replicas: int = 0, stride: int = 1) -> PlanRequest:
    """What a node's inputs ask for.

    Raises:
        PlanError: they do not fit this machine or each other.
    """
    names = parse_devices(devices, available_devices())
    is_auto = devices.strip().lower() == "auto"
    if is_auto and names[0] == "cpu":
        device = comfy.model_management.get_torch_device()
        if device.type not in ("cpu", "cuda"):
            names = (str(device),)  # Apple, Intel and other accelerators: one device, no workers
    return PlanRequest(names, stages, replicas, stride, is_auto)


def load_distributed(loader: Loader, plan: PlanRequest) -> Any:
    """The MODEL that `loader` loads, spread over the devices of `plan`.

    Raises:
        CheckpointError: the file is damaged, or no model.
        LayoutError: the architecture cannot be spread.
        PlanError: there are more stages than units.
    """
    if len(plan.devices) == 1:
        return _keep_whole(loader(), plan)
    return _spread(_skeleton(loader), plan)


def parallelize(model: Any, plan: PlanRequest) -> Any:
    """A stock MODEL, with its patches and options, spread over the devices of `plan`.

    A MODEL of this pack is spread anew. Workers load their parts from the file that the MODEL came
    from; where they can't, this process hands its weights over, see hand_over.py.

    Raises:
        InputError: `model` is no MODEL.
    """
    _require_model(model)
    if len(plan.devices) == 1:
        return _keep_whole(model.clone(), plan)
    twins = _twins.setdefault(model.model, {})
    samples = WeightSamples(model)
    if plan not in twins or twins[plan][0] != samples:
        twins[plan] = samples, _twin_of(model, samples, plan)
    _, twin = twins[plan]
    twin.remote.warm()
    # What the MODEL carries (patches, options, wrappers), over the twin's skeleton.
    clone = model.clone(disable_dynamic=True, model_override=twin.get_clone_model_override())
    return AsyncDiffModelPatcher.adopt(clone, twin.remote, parent=twin)


def animate(model: Any, path: str) -> Any:
    """A clone of `model`, an SD 1.5 or SDXL, with the motion modules of the file `path` in it.

    A MODEL of this pack stays spread as it is, a stock one stays in ComfyUI's process.

    Raises:
        InputError: `model` is neither, or the file does not fit it.
        LoaderError: the loader of `model` does not tell which file it read.
    """
    _require_model(model)
    loader = with_motion(Loader.of(model), path)
    is_spread = isinstance(model, AsyncDiffModelPatcher)
    base = _spread(_skeleton(loader), model.remote.request) if is_spread else loader()
    clone = model.clone(disable_dynamic=True, model_override=base.get_clone_model_override())
    clone.cached_patcher_init = base.cached_patcher_init
    if is_spread:
        AsyncDiffModelPatcher.adopt(clone, base.remote, parent=base)
        clone.schedule = model.schedule
    clone.add_object_patch("model_sampling", sampling_of(clone.model.model_config))
    return clone


def with_motion_lora(model: Any, path: str, strength: float) -> Any:
    """A clone of `model`, which has motion modules, with the motion LoRA of the file `path`.

    Raises:
        InputError: `model` has no motion modules, or the file does not fit them.
    """
    _require_model(model)
    require_finite(strength=strength)
    clone = model.clone()
    clone.add_patches(lora_patches(model.model, path), strength)
    return clone


def ensure_distributed(model: Any) -> Any:
    """`model` if a node of this pack has placed it already; otherwise spread over all devices.

    A MODEL that cannot be spread stays as it is, and a line in the log and on the node says why. So
    does one whose architecture has no layout: whether a guess is right turns out in the middle of a
    prompt. One that turns out to carry what cannot be spread samples on one device as well, see
    fallback.py.

    Raises:
        InputError: `model` is no MODEL.
    """
    _require_model(model)
    if isinstance(model, AsyncDiffModelPatcher) or model.get_attachment(_WHOLE):
        return model
    if model.model in _unspreadable:
        stay_local(_unspreadable[model.model])  # each node that has no effect says so
        return model
    try:
        _require_layout(model.model.diffusion_model)
        spread = parallelize(model, plan_for("auto"))
    except UnspreadableError as error:
        stay_local(error)
        if isinstance(error, LayoutError | LoaderError):
            # Its traceback, and those of its causes, would keep the model.
            _unspreadable[model.model] = type(error)(str(error))
        return model
    if isinstance(spread, AsyncDiffModelPatcher):
        spread.stock = model
        fallback.prepare(spread)
    return spread


def _require_layout(diffusion_model: Any) -> None:
    layout_of(diffusion_model)  # refuses some by name
    if not has_layout(diffusion_model):
        raise LayoutError(
            f"AsyncDiff has no layout for this architecture ({type(diffusion_model).__name__}). "
            "Its loaders and AsyncDiffParallelize try whether it can be spread all the same."
        )


def _require_model(model: Any) -> None:
    """ComfyUI does not check a value that an API prompt has where a link should be."""
    if not isinstance(model, comfy.model_patcher.ModelPatcher):
        raise InputError(
            f"the input 'model' is {repr(model)[:80]}, which is no MODEL. Link it to the MODEL "
            "output of a loader node."
        )


def require_finite(**inputs: float) -> None:
    """JSON as Python writes it has NaN and infinity, and ComfyUI lets them pass.

    Raises:
        InputError: one of these is no finite number.
    """
    for name, value in inputs.items():
        if not math.isfinite(value):
            raise InputError(f"the input {name!r} is {value}; give it a finite number.")


def _twin_of(model: Any, samples: WeightSamples, plan: PlanRequest) -> AsyncDiffModelPatcher:
    """The distributed MODEL that stands for a stock one, or for another distributed one."""
    loader = loader_of(model, samples)
    if isinstance(model, AsyncDiffModelPatcher):
        patcher = _skeleton(loader)
    else:
        patcher = None if is_handed_over(loader) else _skeleton(loader, samples.see)
        if samples.altered:
            log.info("weights are not as in their file (%s)", few(samples.altered))
            loader, patcher = hand_over(model, samples), None
        if patcher is None:
            comparison = Comparison(model)
            patcher = _skeleton(loader, comparison.see)
            comparison.require_same(patcher.model)
        _require_known_patcher(type(model), type(patcher))
    twin = _spread(patcher, plan)
    twin.remote.stand_for(model.model, model.object_patches_backup)
    return twin


def _skeleton(loader: Loader, see: See = None) -> Any:
    """What `loader` loads, without its weights; `see` gets those, see build_skeleton."""
    try:
        return build_skeleton(loader, see)
    except (InputError, UnspreadableError):
        raise
    except Exception as error:
        files = ", ".join(a for a in loader.args if isinstance(a, str))
        raise CheckpointError(
            f"{files} cannot be loaded: {error}. The file may be incomplete, or of another kind "
            "than this node loads. Check its size, or download it again."
        ) from error


def _spread(patcher: Any, plan: PlanRequest) -> AsyncDiffModelPatcher:
    # As the loader function itself tells it, so that a node of this pack and a stock loader of the
    # same file share their workers.
    remote = RemoteModel(patcher.model, Loader.of(patcher), plan)
    remote.warm()
    return AsyncDiffModelPatcher.adopt(patcher, remote)


def _require_known_patcher(kind: type, loaded: type) -> None:
    """See that a MODEL's own way with its weights is ComfyUI's, or its loader's, as in workers."""
    is_usual = issubclass(AsyncDiffModelPatcher, kind) or kind.__module__ == _PATCHERS
    if not (is_usual or kind is loaded):
        raise LoaderError(
            f"This MODEL is a {kind.__qualname__} of {short_name(kind.__module__)}, which its "
            "loader does not make, so that workers would not patch its weights as that does. Use "
            "the MODEL without AsyncDiff."
        )


def _keep_whole(model: Any, plan: PlanRequest) -> Any:
    log.info("one device (%s): the model stays in ComfyUI's own process", plan.devices[0])
    model.set_attachments(_WHOLE, True)
    return model


def with_schedule(model: Any, schedule: AsyncSchedule) -> Any:
    """A clone of `model` with this schedule; a MODEL that stayed on one device, as it is."""
    if not isinstance(model, AsyncDiffModelPatcher):
        return model
    clone = model.clone()
    clone.schedule = schedule
    return clone
