"""How fast links are. Run as a program: one worker's end of them."""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from asyncdiff_core.links.engines import engine_for
from asyncdiff_core.links.peers import Peer
from asyncdiff_core.links.transport import Transport
from asyncdiff_core.settings import Backend
from asyncdiff_core.workers.bootstrap import inherited
from asyncdiff_core.workers.process import device_environment, socket_mesh

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 60.0  # seconds for all links of a backend
SMALL, NUM_SMALL = 64, 200
LARGE, NUM_LARGE = 32 * 2**20, 12


@dataclass(frozen=True)
class Measured:
    """A link: from one worker to another.

    Attributes:
        latency: seconds until a message of 64 bytes is there.
        bandwidth: bytes per second of messages of 32 MiB.
    """

    source: int
    target: int
    latency: float
    bandwidth: float


def measure(
    devices: Sequence[str], backend: Backend, folder: Path, sabotage: tuple[int, str] | None
) -> tuple[list[Measured], str]:
    """All links by one backend, and what is wrong with them, or ""."""
    (folder / f"rendezvous-{backend}").unlink(missing_ok=True)
    processes = []
    with socket_mesh(len(devices)) as mesh:
        for rank, device in enumerate(devices):
            env, local = device_environment(device, os.environ, {})
            numbers = [f"{other}:{sock.fileno()}" for other, sock in mesh[rank].items()]
            told = {
                **{"rank": rank, "device": local, "backend": backend},
                "rendezvous": str(folder / f"rendezvous-{backend}"),
                "sabotage": sabotage[1] if sabotage and sabotage[0] == rank else None,
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", __name__, ",".join(numbers), json.dumps(told)],
                    cwd=ROOT,
                    env={**os.environ, **env, "OMP_NUM_THREADS": "1"},
                    pass_fds=[sock.fileno() for sock in mesh[rank].values()],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
    found: list[Measured] = []
    troubles = []
    until = time.monotonic() + LIMIT
    for rank, process in enumerate(processes):
        try:
            text, _ = process.communicate(timeout=max(1.0, until - time.monotonic()))
            answer = json.loads(text)
            found += [Measured(**one) for one in answer["links"]]
            troubles += [answer["trouble"]] if answer["trouble"] else []
        except subprocess.TimeoutExpired:
            troubles.append(f"worker {rank} gave no answer within {LIMIT:.0f} s")
        except ValueError:
            troubles.append(f"worker {rank} ended with status {process.returncode}")
        finally:
            process.kill()
            process.wait()
    # A worker in trouble ends, which the others see; what came first tells more.
    causes = [one for one in dict.fromkeys(troubles) if "broke" not in one] or troubles[:1]
    return sorted(found, key=lambda one: (one.source, one.target)), "; ".join(causes)


def main() -> None:
    numbers, told = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if told["sabotage"] == "missing":
        os._exit(3)
    if told["sabotage"] is not None:
        from .model import sabotage_links

        sabotage_links(told["sabotage"])
    peers = {rank: Peer(rank, sock) for rank, sock in inherited(numbers).items()}
    rank = told["rank"]
    answer: dict[str, Any] = {"links": [], "trouble": ""}
    try:
        engine = engine_for(torch.device(told["device"]))
        end = Transport(rank, peers, engine, told["backend"], Path(told["rendezvous"]))
        answer["trouble"] = end.test()
        if not answer["trouble"]:
            with torch.inference_mode():
                answer["links"] = [asdict(one) for one in _measure_all(rank, end, sorted(peers))]
    except Exception as error:
        answer["trouble"] = str(error)
    print(json.dumps(answer), flush=True)
    os._exit(0)


def _measure_all(rank: int, end: Transport, others: list[int]) -> list[Measured]:
    """This worker's part; of each pair the first one knows both directions."""
    found = []
    for one, other in itertools.combinations(sorted([rank, *others]), 2):
        if rank not in (one, other):
            continue
        times = {
            size: _ping_pong(end, other if rank == one else one, rank == one, size, count)
            for size, count in ((SMALL, NUM_SMALL), (LARGE, NUM_LARGE))
        }
        if rank == one:
            # There and back is the same way twice.
            latency, seconds = times[SMALL] / 2, times[LARGE] / 2
            for source, target in ((one, other), (other, one)):
                found.append(Measured(source, target, latency, LARGE / seconds))
    return found


def _ping_pong(end: Transport, other: int, begins: bool, size: int, count: int) -> float:
    """Seconds of a message there and one back, the median."""
    if begins:
        sender, (receiver, *_) = end.open(other, size, 1, None), end.accept(other, 1)
    else:
        (receiver, *_), sender = end.accept(other, 1), end.open(other, size, 1, None)
    payload = torch.ones_like(sender.slots[0])
    seconds = []
    for number in range(count):
        start = time.perf_counter()
        receiver.post(number)
        if begins:
            _send(sender, number, payload)
        receiver.wait(number)
        taken = receiver.slots[number % len(receiver.slots)].clone()
        if not begins:
            _send(sender, number, taken)
        else:
            bool(taken[0])  # a GPU has it, too
            seconds.append(time.perf_counter() - start)
    sender.drain()
    receiver.drain()
    return statistics.median(seconds[count // 4 :]) if begins else 0.0


def _send(sender: Any, number: int, payload: torch.Tensor) -> None:
    sender.free(number)
    sender.slots[number % len(sender.slots)].copy_(payload)
    sender.send(number)


if __name__ == "__main__":
    main()
