"""Start, watch and end one worker process."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import (
    ChannelClosedError,
    ChannelDataError,
    ChannelTimeoutError,
    WorkerDiedError,
    WorkerError,
    WorkerFailedError,
    WorkerOutOfMemoryError,
    WorkerStartError,
    WorkerTimeoutError,
)
from ..log import get_logger, last_line
from ..wire.blocks import Loan
from ..wire.channel import Channel
from ..wire.requests import Activity, Beat, Ready, RunEnded, from_wire, to_wire
from .bootstrap import HOST, SHARED

log = get_logger("process")

STOP_SECONDS = 3.0

# PYTHONPATH would not do: the Python of ComfyUI's Windows package ignores it.
_BOOTSTRAP = """
import json, runpy, sys
# Not the folder that it runs in, which goes by the name of "".
sys.path[:] = json.loads(sys.argv.pop(2)) + [path for path in sys.path if path]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""

# By default glibc gives memory back to the kernel after almost every operation on activations, and
# takes it anew, zeroed page by page, for the next. On the CPU that is a third of a stage's time,
# and more where several workers do it at once.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),  # the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


# A receive that waits for its message is a kernel that spins on the GPU beside the stage. It gets
# few multiprocessors, and the queues of a GPU must be more than there are streams.
_NCCL = {
    "NCCL_MAX_P2P_NCHANNELS": "2",
    "NCCL_MAX_CTAS": "4",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_IB_DISABLE": "1",
    "TORCH_NCCL_HIGH_PRIORITY": "1",
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
}


@dataclass(frozen=True)
class Launch:
    """How worker processes are started.

    Attributes:
        python_path: folders that come first on the worker's search path, in order.
        cwd: the working directory.
        arguments: ComfyUI's own command line, which its modules read in the worker too.
        cpu_arguments: the same for workers on the CPU.
        python: the interpreter.
        hidden_gpus: those that this process does not see, by name: what makes CUDA see each.
    """

    python_path: tuple[str, ...]
    cwd: str
    arguments: tuple[str, ...] = ()
    cpu_arguments: tuple[str, ...] = ()
    python: str = sys.executable
    hidden_gpus: Mapping[str, str] = field(default_factory=dict)


def device_environment(
    device: str, base: Mapping[str, str], hidden_gpus: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """The environment in which `device` is the only one to be seen, and its name there.

    Args:
        device: as this process names it.
        base: the environment of this process.
        hidden_gpus: as of Launch.
    """
    kind, _, index = device.partition(":")
    if device in hidden_gpus:
        return {"CUDA_VISIBLE_DEVICES": hidden_gpus[device]}, "cuda:0"
    if kind == "cuda":
        env = {}
        for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
            visible = [v for v in base.get(variable, "").split(",") if v]
            if visible or variable == "CUDA_VISIBLE_DEVICES":
                env[variable] = visible[int(index)] if visible else index
        return env, "cuda:0"
    if kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}, "cpu"
    return {}, device


@contextlib.contextmanager
def socket_mesh(number: int) -> Iterator[list[dict[int, socket.socket]]]:
    """A socket between each two of `number` workers: for each worker its ends, by rank.

    They are for the workers to inherit; here they are closed when the context ends.

    Raises:
        WorkerStartError: there are no descriptors left for them.
    """
    ends: list[dict[int, socket.socket]] = [{} for _ in range(number)]
    try:
        for one, other in itertools.combinations(range(number), 2):
            ends[one][other], ends[other][one] = socket.socketpair()
        yield ends
    except OSError as error:
        raise WorkerStartError(f"no sockets could be made between workers: {error}") from error
    finally:
        for sock in itertools.chain.from_iterable(by_rank.values() for by_rank in ends):
            sock.close()


class WorkerProcess:
    """A worker process, and this end of its control channel.

    Args:
        peers: sockets to other workers, by rank, which it inherits.

    Raises:
        WorkerStartError: it could not be started.
    """

    def __init__(
        self,
        name: str,
        device: str,
        launch: Launch,
        num_threads: int,
        log_file: Path,
        peers: Mapping[int, socket.socket],
    ) -> None:
        self.name = name
        self.device = device
        self.log_file = log_file
        device_env, self.local_device = device_environment(device, os.environ, launch.hidden_gpus)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(num_threads))
        env = {
            **ALLOCATOR,
            **_NCCL,
            **os.environ,
            **device_env,
            **threads,
            "PYTHONUNBUFFERED": "1",
        }
        try:
            self.channel, theirs = Channel.pair()
        except OSError as error:
            raise WorkerStartError(f"{self} could not be started: {error}") from error
        module = "asyncdiff_core.workers.bootstrap"
        command = [launch.python, "-c", _BOOTSTRAP, module, json.dumps(launch.python_path)]
        arguments = launch.cpu_arguments if device == "cpu" else launch.arguments
        windows = sys.platform == "win32"
        inherited = {HOST: theirs, **peers}
        numbers = [f"{rank}:{sock.fileno()}" for rank, sock in inherited.items()]
        control = ["--sockets=stdin" if windows else f"--sockets={','.join(numbers)}"]
        # A host that ends at once is no longer the worker's parent when that asks for it.
        control += ["--host", str(os.getpid()), "--folder", str(log_file.parent)]
        try:
            with open(log_file, "ab") as log, theirs:
                self._process = subprocess.Popen(  # our own interpreter and module
                    [*command, *control, *arguments],
                    cwd=launch.cwd,
                    env=env,
                    stdin=subprocess.PIPE if windows else subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=() if windows else [sock.fileno() for sock in inherited.values()],
                    # The stop key of a terminal is the host's affair, which ends workers itself.
                    start_new_session=True,
                )
                if windows:
                    assert self._process.stdin is not None
                    with self._process.stdin as stdin:
                        for rank, sock in inherited.items():
                            shared = sock.share(self._process.pid)  # type: ignore[attr-defined]
                            stdin.write(SHARED.pack(rank, len(shared)) + shared)
        except OSError as error:
            self.channel.close()
            raise WorkerStartError(f"{self} could not be started: {error}") from error
        now = time.monotonic()
        self.last_sign = now
        self.last_progress = now
        self.num_units_run = -1
        self.doing: Activity | None = None  # None: not known
        self.activation_bytes = 0  # peak of the last run, or of the one that goes on
        self.ready: Ready | None = None
        self.bytes_sent = 0  # by `send_frame`, since the start

    def __str__(self) -> str:
        return f"{self.name} on {self.device}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Any, timeout: float, ticket: int = 0) -> None:
        """Send one request; errors name the worker."""
        with _named(self):
            self.channel.send(to_wire(request, ticket), timeout)

    def send_frame(
        self, frame: Sequence[memoryview], timeout: float, loan: Loan | None = None
    ) -> None:
        """Send a request that is encoded already."""
        with _named(self):
            self.channel.send_frame(frame, timeout, loan)
        self.bytes_sent += sum(len(part) for part in frame) + (loan.nbytes if loan else 0)

    def receive(self, timeout: float) -> tuple[Any, int]:
        """The next answer or beat, which must have begun to arrive, and its ticket."""
        with _named(self):
            answer, ticket = from_wire(self.channel.receive(timeout))
        self.last_sign = time.monotonic()
        if not isinstance(answer, Beat) or answer.units != self.num_units_run:
            self.last_progress = self.last_sign
        if isinstance(answer, Beat):
            self.num_units_run, self.doing = answer.units, answer.doing
        else:
            self.doing = "nothing"
        if isinstance(answer, Beat | RunEnded):
            self.activation_bytes = answer.activation_bytes
        if isinstance(answer, Ready):
            self.ready = answer
        return answer, ticket

    def asked(self, now: float) -> None:
        """Something was sent to it at `now`: what it was before says nothing any more."""
        self.last_sign = self.last_progress = now
        self.doing = None

    def died(self) -> WorkerDiedError:
        """The error that says how this process ended."""
        try:
            code = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0
        if code < 0:
            try:
                how = f"was ended by signal {signal.Signals(-code).name}"
            except ValueError:
                how = f"was ended by signal {-code}"
            if code == -9:
                how += " (by somebody, or by the system where memory ran out)"
        elif code:
            how = f"ended with exit status {code}"
        else:
            how = "lost its control channel"
        said = last_line(self.log_file) if code is not None and code > 0 else ""
        words = f" Its last line is: {said}" if said else ""
        return WorkerDiedError(f"{self} {how}.{words} {self._see_log()}")

    def hangs(self, seconds: float) -> WorkerTimeoutError:
        """The error that says that this process made no progress."""
        return WorkerTimeoutError(
            f"{self} made no progress for {seconds:.0f} s. {self._see_log()} If the device is just "
            "slow, set the environment variable ASYNCDIFF_TIMEOUT to more seconds."
        )

    def failed(self, text: str, error: type[WorkerError]) -> WorkerError:
        """`error`, with `text` and the name of this worker."""
        failed = error(f"{self}: {text} {self._see_log()}")
        if isinstance(failed, WorkerOutOfMemoryError):
            failed.device = self.device
        return failed

    def _see_log(self) -> str:
        return f"Its log is {self.log_file}"

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Close the channel, at which a worker ends itself, even a busy one."""
        self.channel.close()

    def has_ended(self, until: float) -> bool:
        """Whether the process has ended by the time `until`, of `time.monotonic`."""
        try:
            self._process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def terminate(self) -> None:
        """Ask the process to end."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()


def end_all(processes: Iterable[WorkerProcess], timeout: float = STOP_SECONDS) -> None:
    """Wait for the end of all processes, and make those end that do not by themselves.

    They have `timeout` seconds all together, and again after each of two signals. What not even the
    second one ends (a process in the middle of a call of a driver) is left, with a line in the log.
    """
    left = list(processes)
    for end in (None, WorkerProcess.terminate, WorkerProcess.kill):
        if end is not None:
            for process in left:
                end(process)
        until = time.monotonic() + timeout
        left = [process for process in left if not process.has_ended(until)]
    for process in left:
        log.warning("process %d (%s) cannot be ended", process.pid, process)


@contextlib.contextmanager
def _named(worker: WorkerProcess) -> Iterator[None]:
    """Turn the errors of a channel into errors that name its worker."""
    try:
        yield
    except ChannelClosedError:
        raise worker.died() from None
    except ChannelDataError as error:
        raise worker.failed(f"{error}.", WorkerFailedError) from error
    except ChannelTimeoutError:
        raise worker.hangs(time.monotonic() - worker.last_sign) from None
