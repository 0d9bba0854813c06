"""What workers on the CPU take of the machine's memory, while they load and while they sample.

    python3 dev.py python -m benchmarks.memory [--depth 15] [--short 0.6] [--plans 2,1 4,1 1,2]

An SD3 in fp32 (2.0 GB with 15 blocks), a run of a few steps by stock ComfyUI, and the same by
several plans, synchronous; the last with less room than its stages need, in GiB for each worker.
The peaks are those of each process, looked at every five milliseconds, above what it had before it
loaded: all of its resident memory, and what of that is no page of a file. Pages of files are shared
by all processes, and the system takes them back when it needs memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPO_ROOT = Path(__file__).resolve().parents[1]
MIB, GIB = 2**20, 2**30
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    path = os.environ.get("COMFYUI_PATH")
    parser.add_argument("--comfyui", type=Path, default=path, required=path is None)
    parser.add_argument("--depth", type=int, default=15, help="blocks of the model")
    parser.add_argument(
        "--plans", nargs="*", default=["2,1", "4,1", "1,2"], metavar="N,R", help="with room for all"
    )
    parser.add_argument("--short", type=float, default=0.6, help="GiB for each of two workers")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(options.comfyui.resolve()), str(REPO_ROOT)]
    sys.argv[1:] = ["--cpu"]
    plans = [(int(stages), int(replicas)) for stages, replicas in map(split, options.plans)]
    measure(options.depth, options.short, plans)


def split(plan: str) -> list[str]:
    return plan.split(",")


def measure(depth: int, short: float, plans: Sequence[tuple[int, int]]) -> None:
    """Print the table."""
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sample
    import comfy.sd
    import torch
    from comfy.cli_args import args
    from safetensors.torch import save_file

    from asyncdiff_core.algorithm.schedule import AsyncSchedule
    from asyncdiff_core.comfyui.distribute import parallelize, plan_for, with_schedule
    from asyncdiff_core.comfyui.run.pool import POOL
    from asyncdiff_core.errors import PlanError
    from harness import checkpoints

    torch.set_num_threads(1)
    width = checkpoints.TEXT_WIDTH
    draw = torch.Generator().manual_seed(0)
    conds = [
        [[torch.randn(1, 77, width, generator=draw), {"pooled_output": torch.randn(1, width)}]]
        for _ in range(2)
    ]
    latent = torch.zeros(1, 16, 16, 16)
    noise = torch.randn(latent.shape, generator=draw)

    def sample(model: Any) -> Any:
        inputs = (noise, STEPS, 5.0, "euler", "simple", *conds, latent)
        return comfy.sample.sample(model, *inputs, seed=1, disable_pbar=True)

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        file = Path(folder) / "model.safetensors"
        save_file({k: v.float() for k, v in checkpoints.sd3(depth).items()}, file)
        whole = file.stat().st_size
        stock = comfy.sd.load_diffusion_model(str(file))
        together = sample(stock)
        stock.get_free_memory = lambda device: 0  # so cond and uncond are evaluated by themselves
        apart = sample(stock)
        del stock.get_free_memory

        def how(result: Any) -> str:
            if torch.equal(result, together):
                return "equal"
            return "equal, conds apart" if torch.equal(result, apart) else "OTHERS"

        print(f"\n{whole / MIB:.0f} MiB of weights, MiB of each worker\n")
        print("| N, R | room | weights | streamed | peak, anonymous | peak, all | bits |")
        print("|---|---|---|---|---|---|---|")
        for stages, replicas, room in (*((*plan, 0.0) for plan in plans), (2, 1, short)):
            workers = stages * replicas
            os.environ["ASYNCDIFF_MEMORY"] = f"cpu={room * workers}" if room else ""
            plan = plan_for(",".join(["cpu"] * workers), stages, replicas)
            model = with_schedule(parallelize(stock, plan), AsyncSchedule(STEPS))
            group = POOL.peek(model.remote.key)
            assert group is not None
            group.wait_until_ready()
            pids = [member.process.pid for member in group.members]
            with peaks(pids) as seen:
                result = sample(model)
            loaded = [member.loaded for member in group.members]
            cells = [
                f"{stages}, {replicas}",
                f"{room * GIB / MIB:.0f}" if room else "",
                ", ".join(f"{(w.weight_bytes + w.shared_bytes) / MIB:.0f}" for w in loaded),
                ", ".join(f"{w.streamed_bytes / MIB:.0f}" for w in loaded),
                ", ".join(f"{anonymous / MIB:.0f}" for anonymous, _ in seen),
                ", ".join(f"{everything / MIB:.0f}" for _, everything in seen),
                how(result),
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
            POOL.release()
        args.highvram = True  # then nothing may be streamed
        model = with_schedule(parallelize(stock, plan), AsyncSchedule(STEPS))
        try:
            sample(model)
        except PlanError as error:
            print(f"\nwith --highvram: {error}")
        else:
            sys.exit("what does not fit was not refused with --highvram")
        POOL.close()


@contextmanager
def peaks(pids: list[int]) -> Iterator[list[tuple[int, int]]]:
    """The most that each process has grown in here: without pages of files, and with them."""
    before = [resident(pid) for pid in pids]
    most = [(0, 0)] * len(pids)
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            for number, pid in enumerate(pids):
                pairs = zip(resident(pid), before[number], most[number], strict=True)
                anonymous, everything = (max(peak, now - then) for now, then, peak in pairs)
                most[number] = anonymous, everything
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        is_over.set()
        thread.join()


def resident(pid: int) -> tuple[int, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {words[0]: words[1] for line in lines if len(words := line.split()) > 1}
    return int(sizes["RssAnon:"]) * 1024, int(sizes["VmRSS:"]) * 1024


if __name__ == "__main__":
    main()
