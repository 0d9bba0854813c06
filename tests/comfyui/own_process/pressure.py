"""Run in a process of its own: what workers give back when ComfyUI needs its device, and retries.

    python pressure.py COMFYUI PACK

The second of two workers on the CPU counts as one on another device. Prints one JSON object: what
was looked at, and whether it held.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

MIB = 2**20


def main(comfyui: str, pack: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sample
    import torch
    from comfy.cli_args import args

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.run.pool import POOL
    from asyncdiff_core.comfyui.run.room import Room
    from asyncdiff_core.errors import PlanError, WorkerOutOfMemoryError
    from asyncdiff_core.wire import requests
    from harness.own_process import reduced_sdxl

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    conds = [
        [[torch.randn(1, 77, 128, generator=draw), {"pooled_output": torch.randn(1, 1280)}]]
        for _ in range(2)
    ]
    empty = torch.zeros(1, 4, 8, 8)
    noise = torch.randn(empty.shape, generator=draw)

    def sample(model: Any) -> torch.Tensor:
        inputs = (noise, 4, 4.0, "euler", "normal", *conds, empty)
        return comfy.sample.sample(model, *inputs, seed=5, disable_pbar=True)

    held = {}
    cpu = torch.device("cpu")
    management = comfy.model_management
    with torch.inference_mode():
        stock = reduced_sdxl.load()
        model = with_schedule(parallelize(stock, plan_for("cpu,cpu")), AsyncSchedule(1))
        expected = sample(model)
        group = POOL.peek(model.remote.key)
        assert group is not None
        group.members[1].process.device = "cuda:1"
        asked: list[tuple[str, int]] = []
        post = group.members.exchange.post

        def counted(posted: Any) -> int:
            posted = list(posted)
            ranks = {member.process: member.placement.rank for member in group.members}
            kinds = requests.Load, requests.Unload
            asked.extend(
                (type(one).__name__, ranks[who]) for who, one in posted if isinstance(one, kinds)
            )
            return post(posted)

        group.members.exchange.post = counted

        def since() -> list[tuple[str, int]]:
            found, asked[:] = list(asked), []
            return found

        sizes = [m.loaded.weight_bytes + m.loaded.shared_bytes for m in group.members]
        held["ComfyUI counts its own device"] = model.model_size() == sizes[0]
        held["and it is loaded"] = model.loaded_size() == sizes[0]

        # Another model needs this device, for a prompt that changes its text alone.
        for name, memory in (("a little", sizes[0] // 2), ("all of it", 1e30)):
            needed = management.get_free_memory(cpu) + memory
            management.free_memory(needed, cpu)
            held[f"pressure, {name}: its worker gives back"] = since() == [("Unload", 0)]
            held[f"pressure, {name}: nothing is loaded here"] = model.loaded_size() == 0
            held[f"pressure, {name}: the same bits"] = torch.equal(sample(model), expected)
            held[f"pressure, {name}: no other loads"] = since() == [("Load", 0)]
        management.unload_all_models()
        given = since()
        held["unload all: all workers give back"] = ("Unload", 1) in given and (
            "Unload",
            0,
        ) in given
        held["unload all: the same bits"] = torch.equal(sample(model), expected)
        held["unload all: all load"] = since() == [("Load", 0), ("Load", 1)]
        POOL.release()

        # The memory of one device runs out, at the first evaluation or in the middle of a run.
        remote = parallelize(stock, plan_for("cpu,cpu")).remote
        evaluate = remote.evaluate
        count, fails_at = 0, 0

        def failing(call: Any) -> Any:
            nonlocal count
            count += 1
            if count == fails_at:
                error = WorkerOutOfMemoryError("worker 1 on cpu: no memory")
                error.device = "cpu"
                POOL.peek(remote.key).close()  # as a worker's error does
                raise management.OOM_EXCEPTION(str(error)) from error
            return evaluate(call)

        remote.evaluate = failing
        model = with_schedule(parallelize(stock, plan_for("cpu,cpu")), AsyncSchedule(1))
        for fails_at in (1, 3):
            count = 0
            result = sample(model)
            name = f"out of memory at evaluation {fails_at}"
            held[f"{name}: once more, from the beginning"] = count == 4 + fails_at
            (own,) = (group for group, _ in POOL.groups())
            held[f"{name}: with less"] = set(own.limits) == {"cpu"}
            notes = " ".join(own.holdings.notes)
            held[f"{name}: some is streamed"] = "stay in the host's memory" in notes
            count = 10
            held[f"{name}: the picture of that plan"] = torch.equal(sample(model), result)
            POOL.release()
        count, fails_at = 0, -1
        held["the next workers forget it"] = torch.equal(sample(model), expected)
        held["and have no limits"] = all(not group.limits for group, _ in POOL.groups())

        # Where nothing may be streamed, there is no other plan.
        args.highvram = True
        count, fails_at = 0, 2
        try:
            sample(model)
        except management.OOM_EXCEPTION:
            held["--highvram: it is told"] = True
        else:
            held["--highvram: it is told"] = False
        fails_at = -1
        own = model.remote.take_group(AsyncSchedule(1))
        own.end_run()
        own.limits = {"cpu": MIB}
        own.choices.clear()
        try:
            sample(model)
        except PlanError as error:
            held["--highvram: too little room is refused"] = "cpu needs" in str(error)
        else:
            held["--highvram: too little room is refused"] = False
        args.highvram = False
        POOL.close()

        # Whether conds share a batch follows from sizes, not from what is free.
        room = Room(stock.model)
        large = room.for_activations(("cpu", "cpu"), 0)
        held["room for activations"] = large * 2 == os.sysconf("SC_PHYS_PAGES") * 4096
        held["less beside weights"] = room.for_activations(("cpu",), 2**30) == 2 * large - 2**30
        held["but never less than half"] = room.for_activations(("cpu",), 2**50) == large
    print(json.dumps(held))


if __name__ == "__main__":
    main(*sys.argv[1:])
