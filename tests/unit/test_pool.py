"""The pool of groups: shared, bounded, and released a while after the last user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.comfyui.run import pool as pool_module
from asyncdiff_core.comfyui.run.history import last_errors
from asyncdiff_core.comfyui.run.pool import GroupPool
from asyncdiff_core.errors import WorkerDiedError


class FakeSource:
    name = "model"


class FakeGroup:
    """What the pool asks of a group."""

    source = FakeSource()

    def __init__(self) -> None:
        self.alive = self.is_running = False
        self.holds_weights = True
        self.id = f"g{id(self)}"
        self.members = self
        self.looks = 0
        self.asked: list[str | None] = []  # to unload

    def start(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        self.alive = False

    def look(self) -> None:
        self.looks += 1

    def begin_run(self, schedule: AsyncSchedule) -> None:
        self.is_running = True

    def unload(self, device: str | None = None, *, unless_running: bool = False) -> int:
        self.asked.append(device)
        if unless_running and self.is_running:
            return 0
        held, self.holds_weights = self.holds_weights, False
        return 5 * held


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> GroupPool:
    monkeypatch.setattr(pool_module, "LINGER_SECONDS", 0.2)
    monkeypatch.setattr(pool_module, "close_all", lambda groups: [g.close() for g in groups])
    return GroupPool(lambda: 2)


def eventually(condition: Callable[[], bool]) -> bool:
    limit = time.monotonic() + 10
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    return condition()


def test_a_group_is_shared_until_it_dies(pool: GroupPool) -> None:
    first = pool.obtain("a", FakeGroup)
    assert pool.obtain("a", FakeGroup) is first
    first.alive = False
    assert pool.obtain("a", FakeGroup) is not first


def test_the_least_recently_used_idle_group_makes_room(pool: GroupPool) -> None:
    a, b = pool.obtain("a", FakeGroup), pool.obtain("b", FakeGroup)
    pool.obtain("a", FakeGroup)
    pool.obtain("c", FakeGroup)
    assert a.alive and not b.alive
    a.is_running = True
    pool.obtain("d", FakeGroup)
    assert a.alive and pool.peek("c") is None


def test_a_group_is_released_a_while_after_its_last_user(pool: GroupPool) -> None:
    pool.refer("a")
    pool.refer("a")
    group = pool.obtain("a", FakeGroup)
    pool.forget("a")
    time.sleep(0.4)
    assert group.alive
    pool.forget("a")
    assert group.alive
    assert eventually(lambda: not group.alive)
    assert pool.peek("a") is None


def test_a_new_user_starts_the_wait_anew(pool: GroupPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait of an earlier user must not end that of a later one."""
    pool.refer("a")
    group = pool.obtain("a", FakeGroup)
    pool.forget("a")
    pool.refer("a")
    monkeypatch.setattr(pool_module, "LINGER_SECONDS", 60.0)
    pool.forget("a")
    time.sleep(0.5)
    assert group.alive
    pool.refer("a")  # cancels the long wait


def test_a_group_whose_run_begins_is_not_released(pool: GroupPool) -> None:
    busy = pool.obtain("a", FakeGroup, AsyncSchedule())
    idle = pool.obtain("b", FakeGroup)
    assert pool.release() == ([idle.id], [busy.id])
    assert busy.alive and not idle.alive
    assert pool.peek("b") is None and pool.peek("a") is busy
    busy.is_running = False
    assert pool.release(busy.id) == ([busy.id], [])
    assert not busy.alive


def test_release_of_the_weights_keeps_the_workers(pool: GroupPool) -> None:
    a, b = pool.obtain("a", FakeGroup), pool.obtain("b", FakeGroup)
    assert pool.release(a.id, keep_workers=True) == ([a.id], [])
    assert a.alive and not a.holds_weights and b.holds_weights
    assert pool.peek("a") is a


def test_idle_groups_are_looked_at(pool: GroupPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others would stay where one worker died while nobody asked for it."""
    monkeypatch.setattr(pool_module, "LOOK_SECONDS", 0.02)
    pool.refer("a")  # before there is a group
    time.sleep(0.1)
    idle, busy = pool.obtain("a", FakeGroup), pool.obtain("b", FakeGroup, AsyncSchedule())
    assert eventually(lambda: idle.looks > 3)
    assert busy.looks == 0
    assert idle.alive and pool.peek("a") is idle


def test_weights_of_one_device_or_of_all(pool: GroupPool) -> None:
    a, b = pool.obtain("a", FakeGroup), pool.obtain("b", FakeGroup)
    assert pool.unload("a", "cuda:0") == 5 and a.asked == ["cuda:0"]
    assert pool.unload("a") == 0 and a.asked == ["cuda:0", None]
    assert b.holds_weights
    pool.unload_all()
    assert not b.holds_weights and b.asked == [None]


def test_a_group_in_trouble_has_nothing_left_to_release(pool: GroupPool) -> None:
    """Its workers died a moment ago, or die while they are asked."""
    dead, dying = pool.obtain("a", FakeGroup), pool.obtain("b", FakeGroup)
    dead.alive = False

    def unload(device: str | None = None, *, unless_running: bool = False) -> int:
        dying.alive = False
        raise WorkerDiedError("killed")

    dying.unload = unload
    assert pool.release(keep_workers=True).released == [dead.id, dying.id]
    assert last_errors()[-1]["text"] == "killed"
    pool.unload("a")
    pool.unload("nobody")
    dying.alive = True
    assert pool.unload_others("a")
    assert not dying.alive and dead.holds_weights


def test_idle_groups_give_way_to_one_that_needs_memory(pool: GroupPool) -> None:
    a, b = pool.obtain("a", FakeGroup), pool.obtain("b", FakeGroup)
    assert pool.unload_others("a")
    assert a.holds_weights and not b.holds_weights
    assert not pool.unload_others("a")  # there is nothing left to give
    b.holds_weights = b.is_running = True
    assert not pool.unload_others("a") and b.holds_weights


def test_a_group_counts_the_models_that_use_it(pool: GroupPool) -> None:
    pool.refer("a")
    pool.refer("a")
    group = pool.obtain("a", FakeGroup)
    assert pool.groups() == [(group, 2)]


def test_who_forgets_takes_no_lock(pool: GroupPool) -> None:
    """A finalizer runs in the middle of anything, and whoever holds the lock may wait for it."""
    pool.refer("a")
    group = pool.obtain("a", FakeGroup)
    forgotten = threading.Event()

    def finalizer() -> None:
        pool.forget("a")
        forgotten.set()

    with pool._lock:
        threading.Thread(target=finalizer, daemon=True).start()
        assert forgotten.wait(10)
    assert eventually(lambda: not group.alive)


class StuckGroup(FakeGroup):
    """One whose workers are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on, self.is_stuck = threading.Event(), threading.Event()

    def close(self) -> None:
        self.is_stuck.set()
        self.may_go_on.wait(30)
        super().close()

    def unload(self, device: str | None = None, *, unless_running: bool = False) -> int:
        self.is_stuck.set()
        self.may_go_on.wait(30)
        return super().unload(device, unless_running=unless_running)


@pytest.mark.parametrize(
    "wait",
    [
        lambda pool: pool.release(),
        lambda pool: pool.release(keep_workers=True),
        lambda pool: pool.unload("a"),
        lambda pool: pool.unload_others("b"),
        lambda pool: pool.close(),
        lambda pool: [pool.obtain(key, FakeGroup) for key in "bc"],
        lambda pool: pool.forget("a"),
    ],
)
def test_nobody_waits_for_workers_under_the_lock(
    pool: GroupPool, wait: Callable[[GroupPool], object]
) -> None:
    pool.refer("a")
    stuck = pool.obtain("a", StuckGroup)
    waiting = threading.Thread(target=wait, args=(pool,), daemon=True)
    waiting.start()
    assert stuck.is_stuck.wait(10)
    others = threading.Thread(target=lambda: (pool.groups(), pool.peek("b"), pool.refer("b")))
    others.start()
    others.join(10)
    assert not others.is_alive()
    stuck.may_go_on.set()
    waiting.join(10)


def test_users_that_are_gone_leave_nothing(pool: GroupPool) -> None:
    for number in range(100):
        pool.refer(number)
        pool.forget(number)
    assert eventually(lambda: not pool._references and not pool._due)


def test_two_threads_that_want_the_same_group_get_one(
    pool: GroupPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while one of them is between looking and taking; the other's group would be lost."""
    first = pool.obtain("a", FakeGroup)
    is_between, may_go_on = threading.Event(), threading.Event()
    acquire = pool._lock

    class Slow:
        """The lock of the pool, after whose first release a thread stands still."""

        def __enter__(self) -> None:
            acquire.__enter__()

        def __exit__(self, *of: Any) -> None:
            acquire.__exit__(*of)
            if threading.current_thread().name == "slow" and not is_between.is_set():
                is_between.set()
                may_go_on.wait(10)

    monkeypatch.setattr(pool, "_lock", Slow())
    got: list[FakeGroup] = []
    slow = threading.Thread(target=lambda: got.append(pool.obtain("a", FakeGroup)), name="slow")
    slow.start()
    assert is_between.wait(10)
    got.append(pool.obtain("a", FakeGroup))
    may_go_on.set()
    slow.join(10)
    assert got == [first, first]
