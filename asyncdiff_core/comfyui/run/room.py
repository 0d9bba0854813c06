"""Room: how much of each device the weights of a model may take, and the plan that fits it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

import comfy.model_management
import torch
from comfy.cli_args import args

from ...errors import PlanError, WorkerOutOfMemoryError
from ...log import get_logger
from ...planning.planner import Choice, PlanRequest, Workload, settle
from ...settings import memory_limits
from ...workers.group import WorkerGroup
from ...workers.group_planner import MAX_SHAPES
from ...workers.memory import total_bytes
from ..model.calls import ModelCall
from .pool import POOL
from .pressure import others_on

log = get_logger("model")

# After a device ran out of memory: how much of what weights took there they may take then.
LESS = 0.75
# How much of the machine's memory workers on the CPU may have, where nothing else is said.
RAM_SHARE = 0.5
# How much of a device activations may take before conds are evaluated one after the other.
ACTIVATION_SHARE = 0.5


class Room:
    """What devices have for the weights of one model.

    Args:
        base_model: the skeleton, whose class knows what its activations take.
    """

    def __init__(self, base_model: Any) -> None:
        self._base_model = base_model
        self._last: Choice | None = None
        self._next_limits: dict[str, int] = {}  # for the group that comes after one that broke
        # What workers were seen to need for activations, by shape.
        self._seen: dict[torch.Size, int] = {}

    def choose(
        self,
        group: WorkerGroup,
        request: PlanRequest,
        workload: Workload,
        call: ModelCall,
        key: Any,
    ) -> Choice:
        """The plan for a run that begins with this call.

        What was chosen once stays as long as the group does, so that the same workflow gives the
        same bits again, whatever else is on the devices by then.

        Args:
            group: of the workers.
            request: what was asked for.
            workload: of the run.
            call: its first evaluation.
            key: of the group in the pool.

        Raises:
            PlanError: the weights fit no plan, and may not stay in the host's memory.
        """
        if self._next_limits:
            group.limits, self._next_limits = self._next_limits, {}
        shapes = call.latent.shape, request, workload, group.predicts
        if shapes in group.choices:
            self._last = group.choices[shapes]
            return self._last

        def within(capacities: Mapping[str, int], *, may_stream: bool = False) -> Choice:
            return group.planner.choose(
                *(request, workload, *call.inputs),
                predicts=group.predicts,
                capacities=capacities,
                may_stream=may_stream,
            )

        if self._is_unlimited(group):
            choice = within({})
        else:
            try:
                free = group.planner.memory()
                choice = settle(
                    lambda beside: within(self._capacities(group, call, free, beside=beside))
                )
            except PlanError:
                if POOL.unload_others(key):
                    log.info("%s: idle models gave their memory back for it", group.source.name)
                room = self._capacities(group, call, group.planner.memory())
                choice = within(room, may_stream=not (args.highvram or args.gpu_only))
        if args.novram:
            choice = _all_streamed(choice)
        while len(group.choices) >= MAX_SHAPES:
            del group.choices[next(iter(group.choices))]
        group.choices[shapes] = self._last = choice
        if choice.notes or len(request.candidates()) > 1:
            log.info("%s: %s", group.source.name, choice)
        return choice

    def _is_unlimited(self, group: WorkerGroup) -> bool:
        limits = {**memory_limits(), **group.limits}
        on_cpu = set(group.plan.devices) == {"cpu"} and "cpu" not in limits
        return on_cpu and self._at_most(group) <= RAM_SHARE * total_bytes()

    def _at_most(self, group: WorkerGroup) -> int:
        """The bytes of weights if every worker had all of them."""
        source = group.source
        return (sum(source.unit_bytes) + source.shared_bytes) * len(group.plan.devices)

    def _capacities(
        self,
        group: WorkerGroup,
        call: ModelCall,
        free: Mapping[str, int],
        *,
        beside: bool = False,
    ) -> dict[str, int]:
        """How many bytes of weights each device has room for; others have room for all.

        Args:
            group: of the workers.
            call: whose activations have to fit as well.
            free: as `GroupPlanner.memory` tells it.
            beside: beside everything that ComfyUI has on its own device from time to time.
        """
        sharing = Counter(group.plan.devices)
        activations = self._activations(call)
        reserve = int(comfy.model_management.extra_reserved_memory())
        capacities = {name: nbytes - reserve for name, nbytes in free.items()}
        host = str(comfy.model_management.get_torch_device())
        if beside and host in capacities:
            capacities[host] -= others_on(host)
        limits = {"cpu": int(RAM_SHARE * total_bytes()), **memory_limits()}
        for name, limit in limits.items():
            if name in sharing:
                capacities[name] = min(limit, capacities.get(name, limit))
        capacities = {
            name: max(0, room - sharing[name] * activations) for name, room in capacities.items()
        }
        for name, limit in group.limits.items():
            capacities[name] = min(limit, capacities.get(name, limit))
        return capacities

    def _activations(self, call: ModelCall) -> int:
        """What a worker needs beside its weights for inputs of these shapes."""
        shape = call.latent.shape
        return max(int(self._base_model.memory_required(shape)), self._seen.get(shape, 0))

    def saw(self, shape: torch.Size, activation_bytes: int) -> None:
        """Note what a worker has needed beside its weights, for the next group's plan."""
        self._seen[shape] = max(activation_bytes, self._seen.get(shape, 0))

    def for_activations(self, devices: tuple[str, ...], weight_bytes: int) -> float:
        """What the device that has least of it has for activations, if nothing else is there.

        It is what ComfyUI decides by whether cond and uncond share a batch. So it does not follow
        from what is free: the first run and the tenth are to decide alike.
        """
        counts, limits, least = Counter(devices), memory_limits(), float("inf")
        reserve = int(comfy.model_management.extra_reserved_memory())
        for name, count in counts.items():
            total = limits[name] if name in limits else _total(name)
            weights = weight_bytes * count // len(devices)
            usable = total if name == "cpu" else total - reserve
            # Of weights that would leave too little some are streamed.
            least = min(least, max(usable - weights, ACTIVATION_SHARE * usable) / count)
        return least

    def shrink(self, error: BaseException) -> bool:
        """A device ran out of memory: the next plan takes less of it; whether there may be one.

        Args:
            error: by which a run ended.
        """
        if not isinstance(error, WorkerOutOfMemoryError) or self._last is None:
            return False
        if args.highvram or args.gpu_only:
            return False
        last = self._last
        for device in {error.device} if error.device in last.weights else set(last.weights):
            limit = int(LESS * last.weights[device])
            self._next_limits[device] = limit
        return True


def _total(device: str) -> int:
    if device == "cpu":
        return total_bytes()
    index = torch.device(device).index or 0
    if device.startswith("cuda") and index < torch.cuda.device_count():
        return int(torch.cuda.get_device_properties(index).total_memory)
    return 2**62  # not seen by this process; ComfyUI's own device decides


def _all_streamed(choice: Choice) -> Choice:
    """--novram: nothing stays on a GPU."""
    gpus = [rank for rank, device in enumerate(choice.plan.devices) if device != "cpu"]
    return dataclasses.replace(choice, budgets=dict.fromkeys(gpus, 0))
