"""See the package."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.errors import AsyncDiffError, PlanError
from asyncdiff_core.links.transport import backends_for
from asyncdiff_core.planning.plan import make_plan, parse_devices
from asyncdiff_core.reports.timeline import slowest_stage_busy_seconds, step_seconds_after_warm_up
from asyncdiff_core.settings import Backend, backend
from asyncdiff_core.workers.group import WorkerGroup
from asyncdiff_core.workers.process import Launch
from asyncdiff_core.workers.source import ModelSource

from . import links
from .model import KINDS, NUM_UNITS, make_inputs, make_model

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 16
NUM_FREE = 200  # evaluations of a model that costs nothing
GOOD_STEP = 1.15  # step against slowest stage
SLOW_LINK = 0.002  # seconds of a message of a few bytes
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(prog="dev.py doctor", description=__doc__)
    parser.add_argument("--devices", default="auto", help="such as cuda:0,cuda:1 or cpu,cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="all figures, as JSON")
    parser.add_argument(
        "--sabotage",
        type=sabotage,
        metavar="RANK:KIND",
        help=f"have a worker be {', '.join(KINDS)}, to see what would be said of it",
    )
    options = parser.parse_args()
    try:
        devices = parse_devices(options.devices, available())
        backends = backends_for(devices, backend())
    except (PlanError, AsyncDiffError) as error:
        sys.exit(f"doctor: {error}")
    doctor = Doctor(devices, backends, options.sabotage)
    doctor.examine()
    if options.out:
        options.out.write_text(json.dumps(doctor.findings, indent=1) + "\n", encoding="utf-8")
    print(f"\n{doctor.verdict()}")
    sys.exit(bool(doctor.troubles))


def sabotage(text: str) -> tuple[int, str]:
    """RANK:KIND"""
    rank, _, kind = text.partition(":")
    if not rank.isdigit() or kind not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not like 1:{KINDS[0]}")
    return int(rank), kind


def available() -> tuple[str, ...]:
    """The devices of this machine, GPUs first."""
    return (*(f"cuda:{i}" for i in range(torch.cuda.device_count())), "cpu")


class Doctor:
    """Examines one list of devices.

    Attributes:
        findings: all that was found, as plain data.
        troubles: what does not work.
        remarks: what works, and not as it should.
    """

    def __init__(
        self,
        devices: Sequence[str],
        backends: Sequence[Backend],
        sabotage: tuple[int, str] | None = None,
    ) -> None:
        self.devices, self.backends, self.sabotage = tuple(devices), tuple(backends), sabotage
        self.findings: dict[str, Any] = {"devices": list(devices)}
        self.troubles: list[str] = []
        self.remarks: list[str] = []
        # About a tenth of a second for an evaluation.
        is_gpu = devices[0] != "cpu"
        self.width, self.tokens = (2048, 8192) if is_gpu else (256, 512)
        self.dtype = "float16" if is_gpu else "float32"

    def examine(self) -> None:
        """Everything, with a table of it on the way."""
        self._say_machine()
        folder = Path(tempfile.mkdtemp(prefix="asyncdiff-doctor-"))
        self._examine_links(folder)
        for stages in range(2, len(self.devices) + 1):
            self._examine_stages(stages, folder)
        self._examine_overhead(folder)
        if not self.troubles:  # whose texts name logs in there
            shutil.rmtree(folder)

    def verdict(self) -> str:
        """In plain words."""
        lines = []
        if self.troubles:
            lines.append("NOT RIGHT: " + "\n           ".join(self.troubles))
        elif len(self.devices) < 2:
            lines.append("ALL RIGHT: a single device, so there is nothing to connect.")
        else:
            served = self.findings["served_by"]
            lines.append(f"ALL RIGHT: {len(self.devices)} workers, connected by {served}.")
        lines += [f"Note: {remark}" for remark in self.remarks]
        return "\n".join(lines)

    # The machine -------------------------------------------------------------------------------

    def _say_machine(self) -> None:
        machine = {
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda or torch.version.hip,
            "cores": os.cpu_count(),
        }
        self.findings["machine"] = machine
        print(", ".join(f"{key} {value}" for key, value in machine.items() if value))
        print("\ndevice    memory       free         name")
        self.findings["memory"] = {}
        for device in dict.fromkeys(self.devices):
            name, free, total = memory_of(device)
            self.findings["memory"][device] = {"name": name, "free": free, "total": total}
            print(f"{device:<9} {total / GIB:6.1f} GiB   {free / GIB:6.1f} GiB   {name}")
        on_cpu = self.devices.count("cpu")
        if on_cpu > (os.cpu_count() or 1):
            self.remarks.append(
                f"{on_cpu} workers on {os.cpu_count()} cores take turns: there is no gain to see."
            )

    # Links -------------------------------------------------------------------------------------

    def _examine_links(self, folder: Path) -> None:
        if len(self.devices) < 2:
            return
        if sys.platform == "win32":
            self.remarks.append(
                "links are not measured on Windows; workers test them all the same."
            )
            return
        print("\nlink      backend   latency       bandwidth")
        works = False
        self.findings["links"] = {}
        for one in self.backends:
            found, trouble = links.measure(self.devices, one, folder, self.sabotage)
            self.findings["links"][one] = {
                "trouble": trouble,
                "measured": [vars(link) for link in found],
            }
            for link in found:
                print(
                    f"{link.source} -> {link.target}    {one:<8} {link.latency * 1e6:7.0f} us "
                    f"   {link.bandwidth / GIB:6.2f} GiB/s"
                )
            if trouble:
                print(f"          {one:<8} {trouble}")
                self.remarks.append(f"{one} does not connect all workers: {trouble}")
            works |= not trouble
            self._compare_links(one, found)
        if not works:
            self.troubles.append("no backend connects all workers")

    def _compare_links(self, one: Backend, found: Sequence[links.Measured]) -> None:
        for link in found:
            if link.source < link.target and link.latency > SLOW_LINK:
                self.remarks.append(
                    f"between {link.source} and {link.target} a message takes {one} "
                    f"{link.latency * 1e3:.1f} ms."
                )

    # Stages ------------------------------------------------------------------------------------

    def _examine_stages(self, stages: int, folder: Path) -> None:
        if stages == 2:
            print("\nstages    equal bits   step / slowest stage   speed-up of an async step")
        devices = self.devices[:stages]
        try:
            found = self._run_stages(stages, devices, folder)
        except AsyncDiffError as error:
            self.findings[f"stages_{stages}"] = {"trouble": str(error)}
            print(f"{stages:<9} {str(error).splitlines()[0]}")
            self.troubles.append(f"{stages} stages: {error}")
            return
        self.findings[f"stages_{stages}"] = found
        self.findings.setdefault("served_by", found["served_by"])
        print(
            f"{stages:<9} {'yes' if found['is_exact'] else 'NO':<12} "
            f"{found['quotient']:<22.3f} {found['gain']:.2f}x"
        )
        if not found["is_exact"]:
            self.troubles.append(
                f"{stages} stages, all synchronous, do not give the bits of one device"
                + ("" if len(set(devices)) == 1 else ", which unlike devices may not")
            )
        if found["quotient"] > GOOD_STEP:
            self.remarks.append(
                f"with {stages} stages a step takes {found['quotient']:.2f} times its slowest "
                "stage: links are slow, or workers share a processor."
            )
        self._compare_stages(stages, found["busy"])

    def _compare_stages(self, stages: int, busy: Sequence[float]) -> None:
        usual = statistics.median_low(busy)
        for rank, seconds in enumerate(busy):
            if seconds > 1.7 * usual:
                self.remarks.append(
                    f"worker {rank} on {self.devices[rank]} takes {seconds / usual:.1f} times as "
                    f"long as the others for as much work ({stages} stages)."
                )

    def _run_stages(self, stages: int, devices: Sequence[str], folder: Path) -> dict[str, Any]:
        group = self._group(stages, devices, folder, self.width)
        try:
            group.start()
            with torch.inference_mode():
                inputs = [make_inputs(self.width, self.tokens, i) for i in range(NUM_STEPS)]
                dtype = getattr(torch, self.dtype)
                inputs = [(x.to(dtype), t.to(dtype)) for x, t in inputs]
                group.prepare(inputs[0], {})
                plain = self._plain(devices[0], inputs[:3])
                whole, _ = evaluate(group, AsyncSchedule(NUM_STEPS), inputs[:3])
                evaluate(group, AsyncSchedule(2), inputs)  # what is done once
                _, report = evaluate(group, AsyncSchedule(2), inputs)
        finally:
            group.close()
        is_exact = all(torch.equal(a, b) for a, b in zip(whole, plain, strict=True))
        plain_data = report.as_dict()
        step, slowest = (
            step_seconds_after_warm_up(plain_data),
            slowest_stage_busy_seconds(plain_data),
        )
        assert step and slowest
        sync = [one.end - one.start for one in report.evaluations if one.mode == "sync"]
        busy = [
            statistics.median([span.compute for span in worker.spans if span.mode == "async"])
            for worker in report.workers
        ]
        return {
            **{"is_exact": is_exact, "step": step, "slowest": slowest, "busy": busy},
            **{"quotient": step / slowest, "gain": statistics.median(sync) / step},
            "served_by": group.members.links,
        }

    def _plain(self, device: str, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """The model in one process."""
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // len(self.devices)))
        try:
            model = make_model(self.width).to(getattr(torch, self.dtype)).to(device)
            return [model(x.to(device), t.to(device)).cpu() for x, t in inputs]
        finally:
            torch.set_num_threads(threads)

    def _group(self, stages: int, devices: Sequence[str], folder: Path, width: int) -> WorkerGroup:
        spec: dict[str, Any] = {"width": width, "dtype": self.dtype}
        if self.sabotage is not None and self.sabotage[0] < stages:
            rank, kind = self.sabotage
            spec["sabotage"] = kind
            if kind == "slow":
                spec["slow"] = int((rank + 0.5) * NUM_UNITS / stages)
        units = tuple(f"blocks.{i}" for i in range(NUM_UNITS))
        source = ModelSource("doctor's model", "benchmarks.doctor.model:build", spec, units)
        launch = Launch(python_path=(str(ROOT),), cwd=str(ROOT))
        plan = make_plan(devices, stages=stages, replicas=1)
        return WorkerGroup(plan, source, launch, folder=folder)

    # Overhead ----------------------------------------------------------------------------------

    def _examine_overhead(self, folder: Path) -> None:
        if self.troubles or len(self.devices) < 2:
            return
        group = self._group(2, self.devices[:2], folder, 8)
        try:
            group.start()
            with torch.inference_mode():
                dtype = getattr(torch, self.dtype)
                x, t = make_inputs(8, 2048, 0)  # as many bytes as a latent of SDXL
                inputs = [(x.to(dtype), t.to(dtype))] * NUM_FREE
                group.prepare(inputs[0], {})
                _, report = evaluate(group, AsyncSchedule(1), inputs)
        finally:
            group.close()
        seconds = [one.end - one.start for one in report.evaluations[NUM_FREE // 4 :]]
        self.findings["overhead"] = statistics.median(seconds)
        print(f"\noverhead of an evaluation: {statistics.median(seconds) * 1e3:.2f} ms (median)")


def evaluate(
    group: WorkerGroup, schedule: AsyncSchedule, inputs: Sequence[Any]
) -> tuple[list[torch.Tensor], Any]:
    """A sampling run, and its report."""
    group.begin_run(schedule)
    outputs = []
    try:
        for args in inputs:
            outputs.append(group.evaluate("lane", args, {}))
    finally:
        report = group.end_run()
    return outputs, report


def memory_of(device: str) -> tuple[str, int, int]:
    """A device's name, free and whole memory in bytes."""
    if device == "cpu":
        import psutil

        memory = psutil.virtual_memory()
        return f"CPU, {os.cpu_count()} cores", memory.available, memory.total
    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.get_device_name(device), free, total


if __name__ == "__main__":
    main()
