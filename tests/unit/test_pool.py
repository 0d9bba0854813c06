"""The pool of groups: shared, bounded, and released a while after the last user."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from asyncdiff_core.host import pool as pool_module
from asyncdiff_core.host.pool import GroupPool


class FakeSource:
    name = "model"


class FakeGroup:
    """What the pool asks of a group."""

    source = FakeSource()

    def __init__(self) -> None:
        self.alive = self.is_running = False

    def start(self) -> None:
        self.alive = True

    def is_alive(self) -> bool:
        return self.alive

    def close(self) -> None:
        self.alive = False


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> GroupPool:
    monkeypatch.setattr(pool_module, "LINGER_SECONDS", 0.2)
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
