"""SamplingRun: from the first evaluation of a sampler to its last one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch.utils import _pytree as pytree

from ...algorithm.evaluator import Call
from ...algorithm.schedule import AsyncSchedule
from ...algorithm.stages import Stage
from ...algorithm.streams import Streams
from ...errors import (
    WorkerDiedError,
    WorkerError,
    WorkerLinkError,
    WorkerOutOfMemoryError,
    WorkersGoneError,
    WorkerTimeoutError,
)
from ...log import get_logger
from ...planning.planner import Choice, Workload
from ...reports.progress import gain
from ..model.calls import ModelCall, Part, gather, scatter
from ..model.replaced import changing_weights
from ..patches.code_patches import FUNCTIONS, OBJECTS, CodePatches, mark, names_of, split_options
from ..patches.flags import FLAGS_MARK, flags
from ..patches.patch_models import fit
from ..patches.weight_hooks import HOOK, numbers_of
from ..patches.weight_patches import WeightChanges, pack_changes, pack_patches
from .forecast import Forecaster
from .history import record, record_error
from .launch import require_same_files
from .node_text import RunText
from .pool import POOL

if TYPE_CHECKING:
    from .remote import RemoteModel

log = get_logger("model")


class SamplingRun:
    """One run of a sampler on a distributed model.

    Args:
        remote: the model.
        schedule: of the run.
        changes: the weight patches of the MODEL.
        hooks: those of the LoRAs on conditionings, which evaluations name by number.
        objects: object patches inside the diffusion model, by key.
        compilation: see compilation.compilation_of.
        forecaster: for this run's sigmas.
    """

    def __init__(
        self,
        remote: RemoteModel,
        schedule: AsyncSchedule,
        changes: WeightChanges,
        *,
        hooks: Sequence[dict[str, Any]],
        objects: Mapping[str, Any],
        compilation: Any,
        forecaster: Forecaster,
    ) -> None:
        self._remote = remote
        self._schedule = schedule
        self._changes = changes
        self._hooks = hooks
        self._objects = dict(objects)
        self._compilation = compilation
        self._forecaster = forecaster
        self._group = remote.take_group(schedule)
        self._code_patches = CodePatches(remote.view)
        self._streams = self._new_streams()
        self._kept: set[str] = set()  # keys of those that the group has
        self._text = RunText()
        self._is_prepared = self._has_evaluated = False
        self._said_idle = False
        self._shape: torch.Size | None = None  # of the latents that the workers are prepared for

    def _new_streams(self) -> Streams:
        return Streams(lambda: self._group.lane_capacity)

    def begin_denoiser_call(self) -> None:
        """The sampler calls its denoiser, which may evaluate the model several times."""
        self._streams.begin_call()

    def evaluate(self, call: ModelCall) -> Any:
        """One call of the diffusion model, see skeleton.make_remote.

        Raises:
            UnsupportedPatchError: its options hold something that cannot cross; it is named.
            WorkerError: a worker died, hung or failed; the next run gets a new group.
        """
        try:
            try:
                output = self._evaluate(call)
            except WorkerError as error:
                if self._is_prepared or not self._may_try_again(error):
                    raise
                # Nothing of this run is lost yet, and what the attempt has left is taken back: the
                # next one is not another evaluation at the same sigma.
                self._group = self._remote.take_group(self._schedule)
                self._kept.clear()
                self._streams = self._new_streams()
                output = self._evaluate(call)
        except WorkerError as error:
            record_error(self._remote.source.name, error)
            if isinstance(error, WorkerOutOfMemoryError):
                raise comfy.model_management.OOM_EXCEPTION(str(error)) from error
            raise
        self._is_prepared = True
        self._text.show_phase(self._group)
        device = call.latent.device
        return pytree.tree_map(lambda part: part.to(device), output)  # video and audio are a list

    def end(self, is_canceled: bool) -> None:
        """The run is over, however it ended.

        After a cancel nobody waits for the workers, which finish the round that they are at. Such
        a run leaves no report.
        """
        try:
            report = self._group.end_run(wait=not is_canceled)
        except WorkerError as error:
            # All results are there already, and the next run gets new workers.
            log.warning("%s", error)
            record_error(self._remote.source.name, error)
            return
        if report is not None and report.evaluations:
            is_async = any(one.mode == "async" for one in report.evaluations)
            if self._schedule.prediction and is_async and not report.drafts:
                log.info(
                    "%s: no latent was predicted in this run, since its sampler, model or plan "
                    "allows none, or none was nearer than the last latent; stages worked on that",
                    self._remote.source.name,
                )
            record(report)
            self._remote.has_refused_stride |= bool(report.refused_stride)
            if self._shape is not None:
                needed = (worker.activation_bytes for worker in report.workers)
                self._remote.room.saw(self._shape, max(needed, default=0))
            self._text.show(gain(report))

    def _may_try_again(self, error: WorkerError) -> bool:
        """Whether a new group may do better than the one that `error` ended in its first step."""
        if isinstance(error, WorkerOutOfMemoryError):
            is_freed = POOL.unload_others(self._remote.key)
            if is_freed:
                log.info("out of memory: idle models gave theirs back, once more (%s)", error)
            return is_freed
        idle_faults = WorkerDiedError | WorkerTimeoutError | WorkerLinkError | WorkersGoneError
        if self._group.cold or not isinstance(error, idle_faults):
            return False
        log.warning("trouble since the last run, new workers take over (%s)", error)
        return True

    def _evaluate(self, whole: ModelCall) -> Any:
        options, code = split_options(whole.options)
        call = whole.with_options(options)
        if self._objects:
            code = {**code, OBJECTS: self._objects}
        if functions := self._remote.replaced.found():
            code = {**code, FUNCTIONS: functions}
        # A patch may compare the conds of a batch, and its latents, so they stay together.
        conds = call.conds[:1] if code else call.conds
        num_latents = self._num_apart(call, code)
        if not self._is_prepared:
            is_foreseen = self._is_foreseen(call, code)
            self._prepare(call, len(set(conds)), num_latents, is_foreseen=is_foreseen)
        self._group.restore()  # had the weights to be given back in the middle of the run
        call = self._put_in_force(call, code, changing_weights(functions))
        stream, has_place = self._stream(whole, code)

        def as_evaluation(one: ModelCall, part: Part | None = None) -> Call:
            forecast = self._forecaster.forecast(one)
            args, kwargs = one.inputs
            latent, replica = (part.latent, part.replica) if part else (None, 0)
            key = one.lane_key, stream, latent
            return Call(key, args, kwargs, forecast, replica, in_sync=not has_place)

        replicas = self._group.plan.replicas
        parts = scatter(conds, replicas, num_latents)
        idle = replicas - len({part.replica for part in parts})
        if replicas > 1 and idle and not self._said_idle:
            self._said_idle = True
            log.info("%d of %d replicas idle: there are no conds for them", idle, replicas)
        if len(parts) < 2:
            evaluations = [as_evaluation(call)]
            (output,) = self._group.evaluate_all(evaluations, self._remote.require_unchanged)
            self._has_evaluated = True
            return output
        evaluations = [as_evaluation(call.of(part), part) for part in parts]
        outputs = self._group.evaluate_all(evaluations, self._remote.require_unchanged)
        self._has_evaluated = True
        return gather(outputs, parts, call.num_latents)

    def _num_apart(self, call: ModelCall, code: Mapping[str, Any]) -> int:
        """How many latents of each cond are evaluated by themselves; 0: they stay together.

        A patch that is code may compare those of a batch, and so do some models.
        """
        is_apart = self._schedule.split_batch and self._remote.latents_are_apart and not code
        return call.num_latents if is_apart else 0

    def _is_foreseen(self, call: ModelCall, code: Mapping[str, Any]) -> bool:
        """Whether devices can take consecutive evaluations without waiting for the sampler."""
        if code or not self._remote.is_steady or self._remote.has_refused_stride:
            return False
        if numbers_of(call.options):
            return False  # the strengths of a LoRA on a conditioning may change with the step
        forecast = self._forecaster.forecast(call)
        _, kwargs = call.inputs
        has_control = kwargs.get("control") is not None
        is_known = forecast is not None and bool(forecast.coming) and forecast.is_replaceable
        return is_known and not has_control

    def _prepare(
        self, call: ModelCall, num_conds: int, num_latents: int, *, is_foreseen: bool
    ) -> None:
        """Before the first evaluation: have workers hold what it needs."""
        if self._schedule.split_batch and not num_latents:
            log.info(
                "%s: split_batch has no effect, since the model or a patch may read several "
                "latents of a batch together",
                self._remote.source.name,
            )
        self._remote.require_unchanged()
        if not self._group.holdings.are_loaded:
            require_same_files(self._remote.files)
        with self._text.prepares(self._group):
            choice = self._choose_plan(call, num_conds, num_latents, is_foreseen=is_foreseen)
            self._group.prepare(*call.inputs, choice)
            self._shape = call.latent.shape
            view = self._remote.view
            view.search_path = self._group.members.search_path()
            view.can_import = self._group.can_import

    def _put_in_force(
        self, call: ModelCall, code: dict[str, Any], weight_functions: Any
    ) -> ModelCall:
        """Have workers know all patches of a call; the call as it names them."""
        units, view = self._remote.source.units, self._remote.view
        changes = self._changes.by(weight_functions)
        self._group.holdings.set_patches(
            changes.uuid, lambda stage: pack_changes(changes, units, stage, view)
        )
        for number in numbers_of(call.options):
            payload_of = functools.partial(pack_patches, self._hooks[number], units, view=view)
            self._keep(f"{HOOK}{number}", payload_of)
        self._group.holdings.set_compilation(self._compilation)
        options = call.options
        if code:
            fit(code, call.x)
            key, payload = self._code_patches.key_of(code)
            self._keep(key, lambda stage: payload)
            options = mark(options, key)
        return call.with_options({**options, FLAGS_MARK: flags()})

    def _keep(self, key: str, payload: Callable[[Stage], Any]) -> None:
        if key not in self._kept:
            self._group.keep(key, payload)
            self._kept.add(key)

    def _stream(self, call: ModelCall, code: dict[str, Any]) -> tuple[Hashable, bool]:
        """What keeps evaluations of equal conds in lanes of their own, and whether this one has
        found a place."""
        # A cache that the first evaluation of a run fills leaves fewer tokens to the others.
        is_another_shape = not self._has_evaluated and shortens(code)
        kind = stream_of(call.options, code), is_another_shape
        number = self._streams.of((call.lane_key, kind), call.sigma, call.latent)
        return (kind, number), number is not None

    def _choose_plan(
        self, call: ModelCall, num_conds: int, num_latents: int, *, is_foreseen: bool
    ) -> Choice:
        sigmas = call.options.get("sample_sigmas")
        steps = None if sigmas is None else max(1, len(sigmas) - 1)
        self._schedule = self._schedule.for_steps(steps)
        self._group.set_schedule(self._schedule)
        if self._group.report is not None:
            self._group.report.steps = steps
        num_sync = self._schedule.warm_up + self._schedule.cool_down
        workload = Workload(max(1, num_conds), steps or 20, num_sync, num_latents, is_foreseen)
        remote = self._remote
        return remote.room.choose(self._group, remote.request, workload, call, remote.key)


def shortens(code: Mapping[str, Any]) -> bool:
    """Whether patches in `code` keep tokens of the first evaluation for the next ones.

    Known is ComfyUI's *Flux KV Cache*, by the class of its patch.
    """
    patches = code.get("patches", {}).get("attn1_patch", [])
    return any(type(patch).__name__ == "KV_Attn_Input" for patch in patches)


def stream_of(options: dict[str, Any], code: dict[str, Any]) -> Hashable:
    """What keeps evaluations of equal conds in lanes of their own.

    Guidance by a second evaluation with other patches (PAG, SLG) is one reason, the windows in
    which a long video is evaluated another.
    """
    window = options.get("context_window")
    return names_of(code), tuple(getattr(window, "index_list", ()))
