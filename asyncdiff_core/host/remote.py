"""RemoteModel: what connects a skeleton in the ComfyUI process with the group that computes."""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from torch.utils import _pytree as pytree

from ..errors import (
    AsyncDiffError,
    LoaderError,
    ModelChangedError,
    UnsupportedPatchError,
    WorkerDiedError,
    WorkerError,
    WorkerLinkError,
    WorkerOutOfMemoryError,
    WorkersGoneError,
    WorkerTimeoutError,
    few,
)
from ..evaluator import Call
from ..group import WorkerGroup
from ..log import get_logger, prune_folders
from ..partition import Stage, cut, require_units, units_of
from ..plan import ParallelPlan
from ..planner import PlanRequest, choose
from ..process import Launch
from ..progress import gain
from ..residuals import Residuals
from ..schedule import AsyncSchedule
from ..source import ModelSource
from ..streams import Streams
from ..trunk import Trunk, tensor_bytes
from .attachments import FUNCTIONS, OBJECTS, Attachments, mark, names_of, split_options
from .changes import StockWatch, Watch, differences
from .dealing import WithOptions, deal, gather, options_of_hand, take
from .flags import FLAGS_MARK, flags
from .forecast import Forecaster
from .hooks import HOOK, numbers_of
from .layouts import entry_of, host_parts_of, layout_of, position_of
from .loading import Loader
from .node_text import RunText, poll
from .patches import MODEL_PREFIX, WeightChanges, pack_changes, pack_patches
from .pickling import WorkerView
from .pool import POOL
from .replaced import COMFYUI_ROOT, ReplacedFunctions, changing_weights
from .reports import name_run, record, record_error
from .skeleton import make_remote
from .stage_weights import spec_of

log = get_logger("model")

PACK_ROOT = Path(__file__).resolve().parents[2]

# ComfyUI's command line may have paths that are relative to it.
STARTED_IN = os.getcwd()

# The attribute of a stock BaseModel that has what watches it.
_WATCH = "asyncdiff_watch"

# ComfyUI takes at most one of these.
_MEMORY_FLAGS = {"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu"}


class RemoteModel:
    """One distributed model: shared by all clones of a MODEL.

    Args:
        base_model: the skeleton, as ComfyUI's BaseModel.
        loader: the call that each worker makes to load its own part.
        request: over which devices, and what is fixed of the plan.

    Raises:
        LayoutError: the architecture cannot be spread.
        PlanError: the plan has more stages than the trunk has units.
    """

    builder = f"{__package__.rpartition('.')[0].rpartition('.')[2]}.host.stage_weights:build"

    def __init__(self, base_model: Any, loader: Loader, request: PlanRequest) -> None:
        model = base_model.diffusion_model
        trunk = Trunk.of(model, layout_of(model))
        spec = spec_of(base_model, loader)
        units = tuple(unit.name for unit in trunk.units)
        require_units(len(units), min(plan.stages for plan in request.candidates()))
        self._files = _files_of(spec)
        self.source = ModelSource(
            *(type(model).__name__, self.builder, spec, units, trunk.skips, tuple(self._files)),
            residuals=Residuals.of(trunk, position_of(model, "control")),
        )
        self.request = request
        self.weight_bytes = sum(map(tensor_bytes, model.parameters()))
        self._unit_bytes = [sum(map(tensor_bytes, u.module.parameters())) for u in trunk.units]
        self._base_model = base_model
        self.key = repr(spec), tuple(self._files.items()), request.devices
        self._run: _Run | None = None
        POOL.refer(self.key)
        weakref.finalize(self, POOL.forget, self.key).atexit = False
        reference = weakref.ref(self)  # the skeleton must not keep its remote alive

        def evaluate(x: Any, options: dict[str, Any], with_options: Any) -> Any:
            remote = reference()
            if remote is None:
                raise AsyncDiffError("This MODEL was released. Run its loader node again.")
            return remote.evaluate(x, options, with_options)

        make_remote(model, evaluate)
        self._watch = Watch(model, apart_from=host_parts_of(model))
        self._origin: Callable[[], Any] = lambda: None  # the stock BaseModel, if it is still there
        self._replaced = ReplacedFunctions(model)
        self.view = WorkerView()
        self.view.add(base_model)

    def stand_for(self, base_model: Any, object_patches: Collection[str]) -> None:
        """Watch the stock model whose weights workers load, and know its modules in patches.

        Args:
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
        return place in self._replaced.found()

    def reshaped(self, keys: Iterable[str]) -> None:
        """The shapes of these weights of the skeleton were changed, as patches demand it."""
        self._watch.renew({k.removeprefix(MODEL_PREFIX).rpartition(".")[0] for k in keys})

    def warm(self) -> None:
        """Start the workers, if they are not there, without waiting for them."""
        POOL.obtain(self.key, self._make_group)

    def is_loaded(self) -> bool:
        """Whether workers hold weights of this model now."""
        group = POOL.peek(self.key)
        return group is not None and group.holdings.are_loaded

    def unload(self) -> None:
        """Have the workers give their weights back; they stay, and load again when needed."""
        POOL.unload(self.key)

    @property
    def may_deal(self) -> bool:
        """Whether conds may be dealt to replicas, for which they must come in one batch."""
        return any(plan.replicas > 1 for plan in self.request.candidates())

    def begin_run(
        self,
        schedule: AsyncSchedule,
        changes: WeightChanges,
        *,
        hooks: Sequence[dict[str, Any]] = (),
        objects: Mapping[str, Any] | None = None,
        compilation: Any = None,
    ) -> None:
        """A sampling run begins.

        Args:
            hooks: those of the LoRAs on conditionings, which evaluations name by number.
            objects: object patches inside the diffusion model, by key.
            compilation: see compilation.compilation_of.
        """
        self._run = _Run(
            *(self._take_group(schedule), schedule, changes, tuple(hooks), dict(objects or {})),
            compilation=compilation,
            forecaster=Forecaster(self._base_model.model_sampling),
            attachments=Attachments(self.view),
            streams=Streams(lambda: self._lane_capacity()),
        )

    def _lane_capacity(self) -> int:
        assert self._run is not None
        return self._run.group.lane_capacity

    def _take_group(self, schedule: AsyncSchedule) -> WorkerGroup:
        group = POOL.obtain(self.key, self._make_group, schedule)
        assert group.report is not None
        name_run(group.report)
        return group

    def evaluate(self, x: Any, options: dict[str, Any], with_options: WithOptions) -> Any:
        """One call of the diffusion model, see skeleton.make_remote.

        Raises:
            UnsupportedPatchError: `options` hold something that cannot cross; it is named.
            WorkerError: a worker died, hung or failed; the next run gets a new group.
        """
        run = self._run
        if run is None:
            raise AsyncDiffError(
                "This MODEL can only be evaluated by a sampler: it was called outside of a "
                "sampling run."
            )
        try:
            try:
                output = self._evaluate(run, options, with_options)
            except WorkerError as error:
                if run.is_prepared or not self._may_try_again(run, error):
                    raise
                # Nothing of this run is lost yet.
                run.group = self._take_group(run.schedule)
                run.attached.clear()
                output = self._evaluate(run, options, with_options)
        except WorkerError as error:
            record_error(self.source.name, error)
            if isinstance(error, WorkerOutOfMemoryError):
                raise comfy.model_management.OOM_EXCEPTION(str(error)) from error
            raise
        run.is_prepared = True
        run.text.show_phase(run.group)
        device = x.device if isinstance(x, torch.Tensor) else x[0].device
        return pytree.tree_map(lambda part: part.to(device), output)  # video and audio are a list

    def _may_try_again(self, run: _Run, error: WorkerError) -> bool:
        """Whether a new group may do better than the one that `error` ended in its first step."""
        if isinstance(error, WorkerOutOfMemoryError):
            is_freed = POOL.unload_others(self.key)
            if is_freed:
                log.info("out of memory: idle models gave theirs back, once more (%s)", error)
            return is_freed
        idle_faults = WorkerDiedError | WorkerTimeoutError | WorkerLinkError | WorkersGoneError
        if run.group.cold or not isinstance(error, idle_faults):
            return False
        log.warning("trouble since the last run, new workers take over (%s)", error)
        return True

    def _evaluate(self, run: _Run, all_options: dict[str, Any], with_options: WithOptions) -> Any:
        options, code = split_options(all_options)
        if run.objects:
            code = {**code, OBJECTS: run.objects}
        if functions := self._replaced.found():
            code = {**code, FUNCTIONS: functions}
        weight_functions = changing_weights(functions)
        conds = options.get("cond_or_uncond", ())
        if code:
            conds = conds[:1]  # a patch may compare the conds of a batch, so they stay together
        if not run.is_prepared:
            self.require_unchanged()
            if not run.group.holdings.are_loaded:
                _require_same_files(self._files)
            with run.text.prepares(run.group):
                self._choose_plan(run, len(set(conds)), options, with_options)
                run.group.prepare(*with_options(options))
                self.view.search_path = run.group.workers.search_path()
                self.view.can_import = run.group.can_import
        run.group.restore()  # had the weights to be given back in the middle of the run
        units = self.source.units
        changes = run.changes.by(weight_functions)
        run.group.holdings.set_patches(
            changes.uuid, lambda stage: pack_changes(changes, units, stage, self.view)
        )
        for number in numbers_of(options):
            payload_of = functools.partial(pack_patches, run.hooks[number], units, view=self.view)
            self._attach(run, f"{HOOK}{number}", payload_of)
        run.group.holdings.set_compilation(run.compilation)
        if code:
            key, payload = run.attachments.key_of(code)
            self._attach(run, key, lambda stage: payload)
            options = mark(options, key)
        options = {**options, FLAGS_MARK: flags()}
        stream = self._stream(run, all_options, code, *with_options(options))
        replicas = run.group.plan.replicas
        hands = deal(conds, replicas) if replicas > 1 and len(conds) > 1 else []
        if len(hands) < 2:
            if replicas > 1 and not run.said_idle:
                run.said_idle = True
                log.info("one cond: %d of %d replicas idle", replicas - 1, replicas)
            call = self._call(run, options, with_options, stream)
            (output,) = run.group.evaluate_all([call], self.require_unchanged)
            return output
        calls = [
            self._call(
                *(run, options_of_hand(options, hand), take(with_options, len(conds), hand)),
                *(stream, replica),
            )
            for replica, hand in enumerate(hands)
        ]
        return gather(run.group.evaluate_all(calls, self.require_unchanged), hands)

    def _attach(self, run: _Run, key: str, payload: Callable[[Stage], Any]) -> None:
        if key not in run.attached:
            run.group.attach(key, payload)
            run.attached.add(key)

    def _stream(
        self,
        run: _Run,
        options: dict[str, Any],
        code: dict[str, Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[Hashable, bool]:
        """What keeps evaluations of equal conds in lanes of their own, and whether this one has
        found a place."""
        kind = stream_of(options, code)
        latent = args[0][0] if isinstance(args[0], list) else args[0]
        sigmas = options.get("sigmas")
        sigma = None if sigmas is None else float(sigmas.flatten()[0])
        number = run.streams.of((lane_key(options, args[0]), kind), sigma, latent)
        return (kind, number), number is not None

    def begin_denoiser_call(self) -> None:
        """The sampler calls its denoiser, which may evaluate the model several times."""
        if self._run is not None:
            self._run.streams.begin_call()

    def _call(
        self,
        run: _Run,
        options: dict[str, Any],
        with_options: WithOptions,
        stream: tuple[Hashable, bool],
        replica: int = 0,
    ) -> Call:
        args, kwargs = with_options(options)
        forecast = run.forecaster.forecast(options, with_options)
        name, has_place = stream
        key = lane_key(options, args[0]), name
        return Call(key, args, kwargs, forecast, replica, in_sync=not has_place)

    def _choose_plan(
        self, run: _Run, num_conds: int, options: dict[str, Any], with_options: WithOptions
    ) -> None:
        """Before the first evaluation of a run: choose its plan."""
        group = run.group
        args, kwargs = with_options(options)
        sigmas = options.get("sample_sigmas")
        steps = None if sigmas is None else max(1, len(sigmas) - 1)
        run.schedule = run.schedule.for_steps(steps)
        group.set_schedule(run.schedule)
        if group.report is not None:
            group.report.steps = steps
        if len(self.request.candidates()) > 1:
            choice = choose(
                self.request,
                num_conds=max(1, num_conds),
                steps=steps or 20,
                warm_up=run.schedule.warm_up,
                costs=group.costs(args, kwargs),
                skips=self.source.nested_skips,
                fits=lambda plan: self._fits(plan, group),
            )
            log.info("%s: %s", self.source.name, choice)
            group.set_plan(choice.plan)
        else:
            group.set_plan(self.request.candidates()[0])

    def _fits(self, plan: ParallelPlan, group: WorkerGroup) -> bool:
        """Whether each device has memory for what the plan puts on it."""
        shared = self.weight_bytes - sum(self._unit_bytes)
        stages = cut(self._unit_bytes, [1.0] * plan.stages, self.source.nested_skips)
        need: dict[str, int] = {}
        for place in plan.placements():
            share = shared + sum(self._unit_bytes[u] for u in units_of(stages[place.stage]))
            need[place.device] = need.get(place.device, 0) + share
        has = group.workers.device_memory()
        return all(need[device] <= has.get(device, need[device]) for device in need)

    def end_run(self, is_canceled: bool = False) -> None:
        """The sampling run is over, however it ended.

        After a cancel nobody waits for the workers, which finish the round that they are at. Such
        a run leaves no report.
        """
        run, self._run = self._run, None
        if run is None:
            return
        try:
            report = run.group.end_run(wait=not is_canceled)
        except WorkerError as error:
            # All results are there already, and the next run gets new workers.
            log.warning("%s", error)
            record_error(self.source.name, error)
            return
        if report is not None and report.evaluations:
            record(report)
            run.text.show(gain(report))

    def _make_group(self) -> WorkerGroup:
        launch = Launch(
            # ComfyUI first: the pack has folders of the same names, `nodes` and `tests`.
            python_path=(str(COMFYUI_ROOT), str(PACK_ROOT)),
            cwd=STARTED_IN if os.path.isdir(STARTED_IN) else str(COMFYUI_ROOT),
            arguments=tuple(sys.argv[1:]),
            cpu_arguments=_cpu_arguments(sys.argv[1:]),
        )
        # Not in the temporary folder, which another ComfyUI with the same folders empties.
        folder = Path(folder_paths.get_user_directory()) / "asyncdiff"
        prune_folders(folder, [group.folder for group, _ in POOL.groups()])
        return WorkerGroup(
            *(self.request.candidates()[0], self.source, launch),
            folder=folder,
            poll=poll,
            # Groups outlive the MODELs that use them, and must keep none of them alive.
            before_load=functools.partial(_require_same_files, dict(self._files)),
        )


@dataclass
class _Run:
    """A sampling run that is going on."""

    group: WorkerGroup
    schedule: AsyncSchedule
    changes: WeightChanges
    hooks: tuple[dict[str, Any], ...]
    objects: dict[str, Any]
    compilation: Any
    forecaster: Forecaster
    attachments: Attachments
    streams: Streams
    attached: set[str] = field(default_factory=set)  # keys of those that the group has
    text: RunText = field(default_factory=RunText)
    is_prepared: bool = False
    said_idle: bool = False


def _changed_stock(names: Collection[str]) -> str:
    return (
        f"The diffusion model of this MODEL was changed itself ({few(names)}), and workers load it "
        "as it is in its file. Remove the node that does it, or use the MODEL without AsyncDiff."
    )


def _cpu_arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    """ComfyUI's own command line, as a worker on the CPU has to read it."""
    return (*(a for a in arguments if a not in _MEMORY_FLAGS), "--cpu")


def lane_key(options: dict[str, Any], x: Any) -> Hashable:
    """Evaluations of the same batch make-up share a lane."""
    shapes = tuple(tuple(t.shape) for t in (x if isinstance(x, list) else [x]))
    return tuple(options.get("uuids", ())), tuple(options.get("cond_or_uncond", ())), shapes


def stream_of(options: dict[str, Any], code: dict[str, Any]) -> Hashable:
    """What keeps evaluations of equal conds in lanes of their own.

    Guidance by a second evaluation with other patches (PAG, SLG) is one reason, the windows in
    which a long video is evaluated another.
    """
    window = options.get("context_window")
    return names_of(code), tuple(getattr(window, "index_list", ()))


def _files_of(spec: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The files that the loader call names, with what tells whether they changed."""
    names = (argument for argument in spec["loader"][1] if isinstance(argument, str))
    return {name: state for name in names if (state := _state_of(name)) is not None}


def _state_of(file: str) -> tuple[int, int] | None:
    if not os.path.isfile(file):
        return None
    stat = os.stat(file)
    return stat.st_mtime_ns, stat.st_size


def _require_same_files(files: Mapping[str, tuple[int, int]]) -> None:
    """See that workers will load what a skeleton was made from.

    Raises:
        LoaderError: a file is another one now.
    """
    for file, before in files.items():
        now = _state_of(file)
        if now != before:
            what = "is gone" if now is None else "has changed"
            raise LoaderError(
                f"{file} {what} since its MODEL was loaded, and workers would load it once more. "
                "Run its loader again: free ComfyUI's model and node cache, or load the file under "
                "another name."
            )
