"""Workers, and hosts, that come to grief: a clear error in time, and no process left behind."""

import errno
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.errors import (
    WorkerDiedError,
    WorkerError,
    WorkerFailedError,
    WorkerOutOfMemoryError,
    WorkersGoneError,
    WorkerStartError,
    WorkerTimeoutError,
)
from asyncdiff_core.wire.requests import Beat
from asyncdiff_core.workers import members
from asyncdiff_core.workers.group import WorkerGroup
from asyncdiff_core.workers.process import Launch, WorkerProcess, end_all
from harness.groups import (
    LAUNCH,
    ROOT,
    Gate,
    batched,
    by_oracle,
    equal,
    exists,
    make_group,
    pids_of,
    run,
    stages_of,
    wait_until,
)

SECONDS = 10.0  # generous: what is to happen takes well under one

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not end by itself is killed soon."""
    monkeypatch.setattr(end_all, "__defaults__", (0.5,))


def log_of(group_folder: Path, worker: int) -> Path:
    (log,) = group_folder.glob(f"asyncdiff-*/worker-{worker}.log")
    return log


def assert_gone(pids: list[int]) -> None:
    assert pids and wait_until(lambda: not any(map(exists, pids)), SECONDS)


def assert_broken(group: WorkerGroup, pids: list[int]) -> None:
    """After an error: no process, and the group does not pretend to work."""
    assert_gone(pids)
    assert group.broken and not group.is_alive() and not group.holdings.are_loaded
    assert group.end_run() is None
    (folder,) = group.folder.parent.iterdir()
    logs = {f"worker-{rank}.log" for rank in range(group.plan.num_workers)}
    assert {path.name for path in folder.iterdir()} == logs | {"broken"}


# A worker dies -------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [1, 2])
def test_a_worker_is_killed_in_the_middle_of_an_evaluation(
    own_group: Any, gate: Gate, victim: int
) -> None:
    group = own_group("chain", 3, gate=str(gate.folder), poll=gate.poll)
    calls = batched("chain", 3)
    _, report = run(group, AsyncSchedule(), calls)
    pids = pids_of(group)
    gate.close(f"unit-{stages_of(report)[victim][0][0]}")
    gate.then = lambda: os.kill(pids[victim], signal.SIGKILL)
    group.begin_run(AsyncSchedule())
    with pytest.raises(WorkerDiedError) as caught:
        group.evaluate(*calls[0])
    log = log_of(group.folder.parent, victim)
    for text in (f"worker {victim} on cpu", "SIGKILL", str(log)):
        assert text in str(caught.value)
    assert_broken(group, pids)


def test_a_worker_is_killed_between_two_evaluations(own_group: Any) -> None:
    group = own_group("chain", 2)
    calls = batched("chain", 3)
    group.prepare(calls[0].args, calls[0].kwargs)
    pids = pids_of(group)
    group.begin_run(AsyncSchedule())
    group.evaluate(*calls[0])
    os.kill(pids[0], signal.SIGSEGV)
    assert wait_until(lambda: not group.is_alive(), SECONDS)
    with pytest.raises(WorkerDiedError, match=r"worker 0 on cpu .*SIGSEGV"):  # noqa: PT012
        for one in calls:  # the last stage may still answer from what it has received
            group.evaluate(*one)
    assert_broken(group, pids)
    assert "Segmentation fault" in log_of(group.folder.parent, 0).read_text()


def test_a_worker_is_killed_between_two_runs(own_group: Any) -> None:
    group = own_group("chain", 2)
    calls = batched("chain", 3)
    run(group, AsyncSchedule(), calls)
    pids = pids_of(group)
    os.kill(pids[1], signal.SIGKILL)
    assert wait_until(lambda: not group.is_alive(), SECONDS)
    group.begin_run(AsyncSchedule())
    with pytest.raises(WorkerDiedError, match=r"worker 1 on cpu .*SIGKILL"):
        group.evaluate(*calls[0])
    assert_broken(group, pids)


# A worker hangs ------------------------------------------------------------------------------


def test_another_thread_meets_the_trouble_first(own_group: Any) -> None:
    """A run has begun, and has asked for nothing yet, when weights are to be given back."""
    group = own_group("chain", 2)
    calls = batched("chain", 3)
    run(group, AsyncSchedule(), calls)
    group.unload()
    group.begin_run(AsyncSchedule())
    os.kill(pids_of(group)[1], signal.SIGKILL)
    wait_until(lambda: not group.is_alive(), 30)
    with ThreadPoolExecutor(1) as other, pytest.raises(WorkerDiedError):
        other.submit(group.keep, "key", lambda stage: None).result()
    for ask in (
        lambda: group.prepare(calls[0].args, calls[0].kwargs),
        lambda: group.evaluate(*calls[0]),
        group.restore,
    ):
        with pytest.raises(WorkersGoneError, match="SIGKILL"):
            ask()


def test_a_worker_that_stands_still(own_group: Any, gate: Gate) -> None:
    """SIGSTOP in the middle of an evaluation, as a debugger or a frozen driver would do."""
    victim = 1
    group = own_group("chain", 2, timeout=3.0, gate=str(gate.folder), poll=gate.poll)
    calls = batched("chain", 3)
    _, report = run(group, AsyncSchedule(), calls)
    pids = pids_of(group)
    gate.close(f"unit-{stages_of(report)[victim][0][0]}")
    gate.then = lambda: os.kill(pids[victim], signal.SIGSTOP)
    group.begin_run(AsyncSchedule())
    with pytest.raises(WorkerTimeoutError) as caught:
        group.evaluate(*calls[0])
    for text in (f"worker {victim} on cpu", "ASYNCDIFF_TIMEOUT"):
        assert text in str(caught.value)
    assert str(log_of(group.folder.parent, victim)) in str(caught.value)
    assert_broken(group, pids)


def test_a_worker_that_stood_still_before_its_first_evaluation(
    own_group: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but its silence tells it from the worker that waits for it."""
    beating: set[WorkerProcess] = set()
    receive = WorkerProcess.receive

    def listening(self: WorkerProcess, timeout: float) -> Any:
        message, ticket = receive(self, timeout)
        if isinstance(message, Beat):
            beating.add(self)
        return message, ticket

    def poll() -> None:
        if len(beating) == 2:
            gate.open("loading")

    monkeypatch.setattr(WorkerProcess, "receive", listening)
    gate.close("loading")
    group = own_group("chain", 2, timeout=3.0, gate=str(gate.folder), poll=poll)
    (one,) = batched("chain", 1)
    group.prepare(one.args, one.kwargs)
    pids = pids_of(group)
    os.kill(pids[0], signal.SIGSTOP)
    group.begin_run(AsyncSchedule())
    with pytest.raises(WorkerTimeoutError, match="worker 0 on cpu made no progress"):
        group.evaluate(*one)
    assert_broken(group, pids)


@pytest.mark.parametrize(("unit", "worker"), [(1, 0), (5, 1)])
def test_a_unit_that_never_ends(own_group: Any, gate: Gate, unit: int, worker: int) -> None:
    """Its worker is alive and says so, but does not move; the other one has nothing to do."""
    group = own_group("chain", 2, timeout=3.0, gate=str(gate.folder))
    calls = batched("chain", 1)
    run(group, AsyncSchedule(), calls)
    pids = pids_of(group)
    gate.close(f"unit-{unit}")
    group.begin_run(AsyncSchedule())
    with pytest.raises(WorkerTimeoutError, match=f"worker {worker} on cpu made no progress"):
        group.evaluate(*calls[0])
    assert_broken(group, pids)


def test_a_slow_worker_is_no_hanging_one(own_group: Any) -> None:
    """An evaluation may take longer than the timeout, as long as unit follows on unit."""
    group = own_group("chain", 2, timeout=5.0, unit_seconds=1.0)
    calls = batched("chain", 1)
    outputs, report = run(group, AsyncSchedule(), calls)
    (evaluation,) = report.evaluations
    assert evaluation.end - evaluation.start > 5.0
    assert equal(outputs, by_oracle("chain", stages_of(report), AsyncSchedule(), calls))


def test_a_group_that_had_nothing_to_do_for_an_hour(
    own_group: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle workers are silent, which must not be held against them later."""
    group = own_group("chain", 2, unit_seconds=0.05)
    calls = batched("chain", 3)
    expected, _ = run(group, AsyncSchedule(), calls)
    monotonic, hours = time.monotonic, 0
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 3600 * hours)
    hours += 1
    assert equal(run(group, AsyncSchedule(), calls)[0], expected)
    hours += 1  # after which the first request is another one
    group.unload()
    hours += 1
    assert equal(run(group, AsyncSchedule(), calls)[0], expected)


# A worker fails ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "unit", "worker", "error"),
    [
        ("evaluate", 0, 0, WorkerFailedError),
        ("memory", 5, 1, WorkerOutOfMemoryError),
    ],
)
def test_a_stage_that_raises(
    own_group: Any, fail: str, unit: int, worker: int, error: type[WorkerError]
) -> None:
    group = own_group("chain", 2, fail=fail, unit=unit)
    (one,) = batched("chain", 1)
    group.prepare(one.args, one.kwargs)
    pids = pids_of(group)
    group.begin_run(AsyncSchedule())
    with pytest.raises(error) as caught:
        group.evaluate(*one)
    assert type(caught.value) is error
    log = log_of(group.folder.parent, worker)
    for text in (f"worker {worker} on cpu", "the toy was told to", str(log)):
        assert text in str(caught.value)
    assert_broken(group, pids)
    assert "Traceback" in log.read_text()


# A worker does not start -----------------------------------------------------------------------


def test_a_builder_that_fails(own_group: Any) -> None:
    group = own_group("chain", 2, fail="build")
    pids = pids_of(group)
    (one,) = batched("chain", 1)
    with pytest.raises(WorkerStartError, match=r"did not start.*the toy was told to fail"):
        group.prepare(one.args, one.kwargs)
    assert_broken(group, pids)


@pytest.fixture(params=["asked while it starts", "asked when it is gone"])
def asked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The process ids of workers that were asked; one may be gone before it is."""
    pids: list[int] = []
    ask = WorkerProcess.asked

    def note(worker: WorkerProcess, now: float) -> None:
        pids.append(worker.pid)
        if request.param == "asked when it is gone":
            assert worker.has_ended(time.monotonic() + 60)
        ask(worker, now)

    monkeypatch.setattr(WorkerProcess, "asked", note)
    return pids


def error_of_the_start(launch: Launch, folder: Path, asked: list[int]) -> Exception:
    """What a group whose workers cannot start is told by, once nothing of it is left."""
    with closing(make_group("chain", 2, folder / "groups", launch=launch)) as group:

        def come_up() -> None:
            group.start()
            group.wait_until_ready()

        with pytest.raises(WorkerError) as caught:
            come_up()
        assert_broken(group, asked)
    return caught.value


def test_a_worker_that_cannot_import_the_engine(tmp_path: Path, asked: list[int]) -> None:
    error = error_of_the_start(Launch(python_path=(), cwd=str(tmp_path)), tmp_path, asked)
    assert type(error) is WorkerStartError
    assert re.search(r"did not start.*exit status 1.*log is", str(error))
    log = Path(str(error).rpartition("log is ")[2].strip())
    assert "asyncdiff_core" in log.read_text()


@pytest.mark.parametrize(
    ("line", "kind", "text"),
    [
        (
            "import no_such_library",
            WorkerStartError,
            "did not start.*ModuleNotFoundError: No.*such",
        ),
        ("raise MemoryError", WorkerOutOfMemoryError, "worker . on cpu: MemoryError"),
        (
            "raise ImportError('libtorch.so: failed to map segment from shared object')",
            *(WorkerOutOfMemoryError, "worker . on cpu: ImportError: libtorch.so: failed to map"),
        ),
    ],
)
def test_a_worker_that_fails_to_import(
    tmp_path: Path, asked: list[int], line: str, kind: type[Exception], text: str
) -> None:
    (tmp_path / "torch.py").write_text(line)
    launch = replace(LAUNCH, python_path=(str(tmp_path), *LAUNCH.python_path))
    error = error_of_the_start(launch, tmp_path, asked)
    assert type(error) is kind and re.search(text + ".*log is", str(error))


def test_a_worker_that_is_killed_while_it_starts(own_group: Any) -> None:
    group = own_group("chain", 2)
    pids = pids_of(group)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerStartError, match=r"worker 1 on cpu .*SIGKILL"):
        group.wait_until_ready()
    assert_broken(group, pids)


def test_a_worker_that_stands_still_while_it_starts(own_group: Any) -> None:
    """It gives signs of life while it imports, so that the usual patience is enough."""
    group = own_group("chain", 2, timeout=4.0)
    pids = pids_of(group)
    os.kill(pids[1], signal.SIGSTOP)
    with pytest.raises(WorkerStartError, match="worker 1 on cpu made no progress for 4 s"):
        group.wait_until_ready()
    assert_broken(group, pids)


def test_an_interpreter_that_does_not_exist(tmp_path: Path) -> None:
    launch = Launch(python_path=(), cwd=str(tmp_path), python=str(tmp_path / "no-python"))
    group = make_group("chain", 2, tmp_path / "groups", launch=launch)
    with pytest.raises(WorkerStartError, match=r"worker 0 on cpu could not be started.*no-python"):
        group.start()
    assert group.broken and not group.is_alive()


# The end -------------------------------------------------------------------------------------


def test_nothing_is_left_after_close(own_group: Any) -> None:
    idle, starting = own_group("skipnet", 2), own_group("skipnet", 2)
    run(idle, AsyncSchedule(), batched("skipnet", 2))
    pids = pids_of(idle) + pids_of(starting)
    folder = idle.folder.parent
    assert len(list(folder.iterdir())) == 2
    for path in (folder, *folder.iterdir()):
        assert path.stat().st_mode & 0o077 == 0  # logs may name what somebody generates
    for group in (idle, starting, idle):  # twice does no harm
        group.close()
        assert not group.is_alive()
    assert_gone(pids)
    assert list(folder.iterdir()) == []


def test_all_groups_have_one_deadline(own_group: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [own_group("chain", 2) for _ in range(3)]
    for group in groups:
        group.wait_until_ready()
    pids = [pid for group in groups for pid in pids_of(group)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    waits = []
    monkeypatch.setattr(members, "end_all", lambda ps: waits.append(len(ps)) or end_all(ps))
    members.close_all([group.members for group in groups])
    assert waits == [6]
    assert not any(map(exists, pids))
    assert all(group.broken and not group.members for group in groups)


def test_a_busy_group_is_closed(own_group: Any, gate: Gate) -> None:
    """A worker in the middle of a unit does not keep the host waiting."""
    group = own_group("chain", 2, gate=str(gate.folder), poll=gate.poll)
    calls = batched("chain", 1)
    run(group, AsyncSchedule(), calls)
    pids = pids_of(group)

    class Left(BaseException):
        pass

    def leave() -> None:
        raise Left

    gate.close("unit-4")
    gate.then = leave
    group.begin_run(AsyncSchedule())
    with pytest.raises(Left):
        group.evaluate(*calls[0])
    assert all(map(exists, pids))
    group.close()
    assert_gone(pids)


def test_the_host_is_killed(tmp_path: Path) -> None:
    """Idle workers, busy ones, and ones that still import: none outlives the host by 5 s.

    Not even if another process has the host's ends of their sockets.
    """
    with open(tmp_path / "host.log", "wb") as log:
        host = subprocess.Popen(
            [sys.executable, "-m", "tests.distributed.doomed_host", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    workers: dict[str, list[int]] = {}
    try:
        assert select.select([host.stdout], [], [], 120)[0], "the host says nothing"
        line = host.stdout.readline()
        assert line, (tmp_path / "host.log").read_text()
        workers = json.loads(line)
        child = workers.pop("child")
        for pids in workers.values():
            assert len(pids) == 2 and all(map(exists, pids))
        host.kill()
        host.wait()
        for state, pids in workers.items():
            assert wait_until(lambda pids=pids: not any(map(exists, pids)), 5.0), state
        assert not list(tmp_path.glob("**/asyncdiff-*"))  # nor their folders
        assert all(map(exists, child))
        workers["child"] = child
    finally:
        host.kill()
        host.wait()
        host.stdout.close()
        for pid in [pid for pids in workers.values() for pid in pids if exists(pid)]:
            os.kill(pid, signal.SIGKILL)


# What a machine may lack ---------------------------------------------------------------------


def test_a_folder_for_logs_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkerStartError, match="folder for the logs"):
        make_group("chain", 2, tmp_path / "file")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """For the links, or for the channel of the first or the last worker."""
    pair, numbers = socket.socketpair, itertools.count()

    def few_pairs(*args: Any) -> Any:
        if next(numbers) >= at:
            raise OSError(errno.EMFILE, "Too many open files")
        return pair(*args)

    group = make_group("chain", 2, tmp_path)
    monkeypatch.setattr(socket, "socketpair", few_pairs)
    with pytest.raises(WorkerStartError, match="Too many open files"):
        group.start()
    assert group.broken


def test_a_full_process_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    group = make_group("chain", 2, tmp_path)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(WorkerStartError, match="worker 0 on cpu could not be started"):
        group.start()


def test_logs_on_a_full_disk(tmp_path: Path) -> None:
    """Nothing can be written to them, and the error is told all the same."""
    group = make_group("chain", 2, tmp_path, fail="build")
    for rank in range(2):
        (group.folder / f"worker-{rank}.log").symlink_to("/dev/full")
    group.start()
    with pytest.raises(WorkerStartError, match="the toy was told to fail"):
        group.wait_until_ready()
