"""Which plan `auto` takes for models of their real size on cards that people have.

    python3 dev.py python -m benchmarks.capacity [--models NAME ..]

Computed, not measured: the models are on the meta device, in half precision, one evaluation with
CFG. A card has the memory that its name says, less what processes, activations and ComfyUI's
reserve take; text encoders and autoencoder are beside ComfyUI on the first card, where there is
room for them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.full_size import SUBJECTS, Built, Subject

REPO_ROOT = Path(__file__).resolve().parents[1]
GB, GIB = 10**9, 2**30
# What CUDA and PyTorch take of a card for each process.
PROCESS = GIB // 2
# Of each set: memory in GiB, and relative speed, of each card.
CARDS: dict[str, tuple[tuple[int, float], ...]] = {
    "2 x 12": ((12, 1.0),) * 2,
    "2 x 16": ((16, 1.0),) * 2,
    "2 x 24": ((24, 1.0),) * 2,
    "24 + 12": ((24, 1.0), (12, 0.5)),
    "4 x 12": ((12, 1.0),) * 4,
    "4 x 24": ((24, 1.0),) * 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--models", nargs="*", default=(), help="only these, by how they begin")
    options = parser.parse_args()
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu", "--use-pytorch-cross-attention"]
    import comfy.options

    comfy.options.enable_args_parsing()
    print("| model | cards, GiB | plan | weights of each, GiB (room) | speed-up | text encoder |")
    print("|---|---|---|---|---|---|")
    for subject in SUBJECTS:
        if not options.models or subject.label.startswith(tuple(options.models)):
            for row in plans(subject):
                print(f"| {' | '.join(row)} |", flush=True)


def plans(subject: Subject) -> Iterator[tuple[str, ...]]:
    """The plan for each set of cards, as a row."""
    import torch

    from asyncdiff_core.algorithm.trunk import tensor_bytes

    with torch.inference_mode():
        built = Built(subject, batch=2)
    units = tuple(sum(map(tensor_bytes, u.module.parameters())) for u in built.trunk.units)
    whole = sum(map(tensor_bytes, built.model.parameters()))
    activations = activation_bytes(subject, batch=2)
    label = f"{subject.label} ({whole / GIB:.1f} GiB, activations {activations / GIB:.1f})"
    for name, cards in CARDS.items():
        choice, room, is_beside = plan_for(subject, built, units, whole, activations, cards)
        plan = choice.plan
        over = {d for d, held in choice.weights.items() if held > max(0, room[d])}
        assert not over, f"{subject.label} on {name}: over the capacity of {over}"
        text = f"{plan.replicas} x {plan.stages}"
        if choice.budgets:
            held = sum(choice.weights.values())
            everything = plan.replicas * (whole + (plan.stages - 1) * (whole - sum(units)))
            text += f", {(everything - held) / GIB:.1f} streamed"
        weights = ", ".join(
            f"{choice.weights[device] / GIB:.1f} ({max(0, room[device]) / GIB:.1f})"
            for device in plan.devices
        )
        yield label, name, text, weights, f"{choice.speedup:.2f}x", "stays" if is_beside else "goes"


def plan_for(
    subject: Subject,
    built: Built,
    units: Sequence[int],
    whole: int,
    activations: int,
    cards: Sequence[tuple[int, float]],
) -> tuple[Any, dict[str, int], bool]:
    """The choice, the room of each card, and whether text encoder and autoencoder stay there."""
    import comfy.model_management

    from asyncdiff_core.errors import PlanError
    from asyncdiff_core.planning.fitting import Devices, TrunkCosts
    from asyncdiff_core.planning.planner import Choice, PlanRequest, Workload, choose, settle

    reserve = int(comfy.model_management.extra_reserved_memory())
    names = tuple(f"cuda:{number}" for number in range(len(cards)))
    trunk = TrunkCosts(tuple(built.costs), built.trunk.skips, True, units, whole - sum(units))
    workload = Workload(num_conds=2, steps=30, num_sync=3)
    speeds = [speed for _, speed in cards]
    request = PlanRequest(names, is_auto=True)

    def room(beside: bool) -> dict[str, int]:
        found = {}
        for number, (name, (gib, _)) in enumerate(zip(names, cards, strict=True)):
            taken = PROCESS * (1 if number else 2) + reserve + activations
            taken += int(subject.beside * GB) if beside and not number else 0
            found[name] = max(0, gib * GIB - taken)
        return found

    def within(beside: bool, may_stream: bool = False) -> Choice:
        devices = Devices(speeds, room(beside))
        return choose(request, workload, trunk, devices, may_stream=may_stream)

    try:
        choice = settle(within)
    except PlanError:
        choice = within(False, may_stream=True)
    first, held = names[0], choice.weights
    is_beside = held[first] <= room(True)[first]
    return choice, room(is_beside), is_beside


def activation_bytes(subject: Subject, batch: int) -> int:
    """As ComfyUI estimates it, with attention that does not keep its scores."""
    import math

    import comfy.supported_models

    factor = getattr(comfy.supported_models, subject.kind).memory_usage_factor
    area = batch * math.prod(subject.x[1:])
    return int(area * 2 * 0.01 * factor * 2**20)


if __name__ == "__main__":
    main()
