"""RemoteModel: what connects a skeleton in the ComfyUI process with the group that computes."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import comfy.model_management

from ...algorithm.schedule import AsyncSchedule
from ...algorithm.trunk import Trunk, tensor_bytes
from ...errors import AsyncDiffError, ModelChangedError, UnsupportedPatchError, few
from ...planning.cuts import require_units
from ...planning.planner import PlanRequest
from ...wire.residuals import Residuals
from ...workers.group import WorkerGroup
from ...workers.source import ModelSource
from ..model.calls import ModelCall
from ..model.layouts import (
    MODEL_PREFIX,
    entry_of,
    host_parts_of,
    latents_are_apart,
    layout_of,
    left_out_of,
    position_of,
)
from ..model.loading import Loader
from ..model.replaced import ReplacedFunctions
from ..model.skeleton import make_remote
from ..patches.changes import StockWatch, Watch, differences
from ..patches.pickling import WorkerView
from ..patches.weight_patches import WeightChanges
from .forecast import Forecaster
from .history import name_run
from .launch import files_of, launch, log_folder, require_same_files, spec_of
from .lent_parts import LentParts
from .node_text import poll
from .pool import POOL
from .room import Room
from .sampling_run import SamplingRun

# The attribute of a stock BaseModel that has what watches it.
_WATCH = "asyncdiff_watch"


class RemoteModel:
    """One distributed model: shared by all clones of a MODEL.

    Attributes:
        source: what workers build it from.
        files: what its weights are read from, with what tells whether they changed.
        weight_bytes: of the whole model.
        room: what devices have for the weights.
        lent_parts: parts of the model that are here for a run.
        is_steady: whether the sampler of the run that begins is, see steadiness.is_steady.
        has_refused_stride: whether one turned out not to be.
        replaced: functions of ComfyUI that are other ones now.
        view: what workers know of this process's objects.

    Args:
        base_model: the skeleton, as ComfyUI's BaseModel.
        loader: the call that each worker makes to load its own part.
        request: over which devices, and what is fixed of the plan.

    Raises:
        LayoutError: the architecture cannot be spread.
        PlanError: the plan has more stages than the trunk has units.
    """

    builder = "asyncdiff_core.comfyui.stage_model:build"

    def __init__(self, base_model: Any, loader: Loader, request: PlanRequest) -> None:
        model = base_model.diffusion_model
        trunk = Trunk.of(model, layout_of(model))
        spec = spec_of(base_model, loader)
        units = tuple(unit.name for unit in trunk.units)
        require_units(len(units), min(plan.stages for plan in request.candidates()))
        self.files = files_of(spec)
        left_out = itertools.chain.from_iterable(
            model.get_submodule(part).parameters() for part in left_out_of(model)
        )
        self.weight_bytes = sum(map(tensor_bytes, model.parameters()))
        self.weight_bytes -= sum(map(tensor_bytes, left_out))
        unit_bytes = tuple(sum(map(tensor_bytes, u.module.parameters())) for u in trunk.units)
        self.source = ModelSource(
            name=type(model).__name__,
            builder=self.builder,
            spec=spec,
            units=units,
            skips=trunk.skips,
            files=tuple(self.files),
            residuals=Residuals.of(trunk, position_of(model, "control")),
            unit_bytes=unit_bytes,
            shared_bytes=self.weight_bytes - sum(unit_bytes),
        )
        self.request = request
        self.latents_are_apart = latents_are_apart(model)
        self._base_model = base_model
        self.is_steady = self.has_refused_stride = False
        self.room = Room(base_model)
        self.key = repr(spec), tuple(self.files.items()), request.devices
        self._run: SamplingRun | None = None
        POOL.refer(self.key)
        weakref.finalize(self, POOL.forget, self.key).atexit = False
        reference = weakref.ref(self)  # the skeleton must not keep its remote alive

        def evaluate(call: ModelCall) -> Any:
            remote = reference()
            if remote is None:
                raise AsyncDiffError("This MODEL was released. Run its loader node again.")
            return remote.evaluate(call)

        make_remote(model, evaluate)
        self._watch = Watch(model, apart_from=host_parts_of(model))
        self.lent_parts = LentParts(model, loader, self._watch)
        self._origin: Callable[[], Any] = lambda: None  # the stock BaseModel, if it is still there
        self.replaced = ReplacedFunctions(model)
        self.view = WorkerView()
        self.view.add(base_model)

    def stand_for(self, base_model: Any, object_patches: Collection[str]) -> None:
        """Watch the stock model whose weights workers load, and know its modules in patches.

        Args:
            base_model: the stock model.
            object_patches: the keys of those that are in force in it, at any time.

        Raises:
            UnsupportedPatchError: it is not as its loader makes it.
        """

        def patched() -> set[str]:
            return {key.removeprefix(MODEL_PREFIX) for key in object_patches}

        model = base_model.diffusion_model
        skeleton = self._base_model.diffusion_model
        if changed := differences(model, skeleton, entry_of(skeleton), patched()):
            raise UnsupportedPatchError(_changed_stock(changed))
        # The stock model owns what watches it, and so lives no longer for it.
        setattr(base_model, _WATCH, StockWatch(base_model, patched))
        self._origin = weakref.ref(base_model)
        self.view.add(base_model)

    def begin_to_watch(self) -> None:
        """A sampling run is about to begin: weights of the stock model should not change in it.

        Before it they may have, by ComfyUI's own loading and patching.
        """
        if (origin := self._origin()) is not None:
            getattr(origin, _WATCH).begin_run()

    def require_unchanged(self) -> None:
        """See that what workers have is still what this process has.

        Raises:
            ModelChangedError: something was replaced on the skeleton itself.
            UnsupportedPatchError: on the stock model.
        """
        self.require_no_changes_here()
        origin = self._origin()
        if origin is not None and (changed := getattr(origin, _WATCH).changes()):
            raise UnsupportedPatchError(_changed_stock(changed))

    def require_no_changes_here(self) -> None:
        """See that nothing was replaced on the skeleton itself.

        Raises:
            ModelChangedError: something was.
        """
        if changed := self._watch.changes():
            raise ModelChangedError(
                f"The diffusion model of this MODEL was changed itself ({few(changed)}). That does "
                "nothing, since the model is in worker processes. Remove the node that does it, or "
                "put it on the MODEL without AsyncDiff."
            )

    def is_replaced(self, place: str) -> bool:
        """Whether the function of ComfyUI at `place` is another one now, see replaced.py."""
        return place in self.replaced.found()

    def reshaped(self, keys: Iterable[str]) -> None:
        """The shapes of these weights of the skeleton were changed, as patches demand it."""
        self._watch.renew({k.removeprefix(MODEL_PREFIX).rpartition(".")[0] for k in keys})

    def warm(self) -> None:
        """Start the workers, if they are not there, without waiting for them."""
        POOL.obtain(self.key, self._make_group)

    def bytes_on(self, device: str) -> int:
        """What the weights take on a device, or would if they were loaded."""
        group = POOL.peek(self.key)
        if group is not None and group.holdings.are_on(device):
            return group.holdings.bytes_on(device)
        devices = self.request.devices
        return self.weight_bytes * devices.count(device) // len(devices)

    def is_loaded(self, device: str) -> bool:
        """Whether a worker on this device holds weights of this model now."""
        group = POOL.peek(self.key)
        return group is not None and group.holdings.are_on(device)

    def unload(self, device: str | None = None) -> int:
        """Have workers give their weights back; they stay, and load again when needed.

        Args:
            device: those on this one; None: all.

        Returns:
            How many bytes they had.
        """
        return POOL.unload(self.key, device)

    def shrink(self, error: BaseException | None) -> bool:
        """A run ended with `error`: whether the next one takes less memory, see Room.shrink."""
        return error is not None and self.room.shrink(error)

    @property
    def may_deal(self) -> bool:
        """Whether conds may be scattered to replicas, for which they must come in one batch."""
        return any(plan.replicas > 1 for plan in self.request.candidates())

    # Sampling --------------------------------------------------------------------------------

    def begin_run(
        self,
        schedule: AsyncSchedule,
        changes: WeightChanges,
        *,
        hooks: Sequence[dict[str, Any]] = (),
        objects: Mapping[str, Any] | None = None,
        compilation: Any = None,
    ) -> None:
        """A sampling run begins, see SamplingRun."""
        self._run = SamplingRun(
            self,
            schedule,
            changes,
            hooks=hooks,
            objects=objects or {},
            compilation=compilation,
            forecaster=Forecaster(self._base_model.model_sampling, predicts=schedule.prediction),
        )

    def evaluate(self, call: ModelCall) -> Any:
        """One call of the diffusion model, see SamplingRun.evaluate."""
        if self._run is None:
            raise AsyncDiffError(
                "This MODEL can only be evaluated by a sampler: it was called outside of a "
                "sampling run."
            )
        return self._run.evaluate(call)

    def begin_denoiser_call(self) -> None:
        """The sampler calls its denoiser, which may evaluate the model several times."""
        if self._run is not None:
            self._run.begin_denoiser_call()

    def end_run(self, is_canceled: bool = False) -> None:
        """The sampling run is over, however it ended."""
        self.lent_parts.take_back()
        run, self._run = self._run, None
        if run is not None:
            run.end(is_canceled)

    def take_group(self, schedule: AsyncSchedule) -> WorkerGroup:
        """The group of this model, in which a run with this schedule has begun."""
        group = POOL.obtain(self.key, self._make_group, schedule)
        assert group.report is not None
        name_run(group.report)
        return group

    def _make_group(self) -> WorkerGroup:
        return WorkerGroup(
            self.request.candidates()[0],
            self.source,
            launch(),
            folder=log_folder([group.folder for group, _ in POOL.groups()]),
            poll=poll,
            host_device=str(comfy.model_management.get_torch_device()),
            # Groups outlive the MODELs that use them, and must keep none of them alive.
            before_load=functools.partial(require_same_files, dict(self.files)),
        )


def _changed_stock(names: Collection[str]) -> str:
    return (
        f"The diffusion model of this MODEL was changed itself ({few(names)}), and workers load it "
        "as it is in its file. Remove the node that does it, or use the MODEL without AsyncDiff."
    )
