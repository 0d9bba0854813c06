"""The worker groups of this ComfyUI process: shared, kept warm, bounded in number.

A group belongs to (weights, options, devices), not to the node that made the MODEL, so that it
survives ComfyUI running a loader node again. When the last MODEL that uses it is gone it stays for
a while, since the next prompt may load the same model again, and is then released.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from ...algorithm.schedule import AsyncSchedule
from ...errors import WorkerError
from ...log import get_logger
from ...settings import max_groups
from ...workers.group import WorkerGroup
from ...workers.members import close_all
from .history import record_error

log = get_logger("pool")

LINGER_SECONDS = 60.0
LOOK_SECONDS = 1.0  # from one look at idle groups to the next


class Released(NamedTuple):
    """Ids of groups that were released, and of those that were sampling and left alone."""

    released: list[str]
    busy: list[str]


class GroupPool:
    """Groups by key, the least recently used one first. Any thread may use it.

    Its lock is held for bookkeeping only, never while workers are waited for.

    Args:
        capacity: how many groups may exist at a time.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._groups: OrderedDict[Hashable, WorkerGroup] = OrderedDict()
        self._references: dict[Hashable, int] = {}
        self._due: dict[Hashable, float] = {}  # when groups without a user are released
        self._lock = threading.RLock()
        self._forgotten: queue.SimpleQueue[Hashable] = queue.SimpleQueue()
        self._janitor: threading.Thread | None = None

    def obtain(
        self,
        key: Hashable,
        make: Callable[[], WorkerGroup],
        run: AsyncSchedule | None = None,
    ) -> WorkerGroup:
        """The group `key`: the one there is if it is fit for use, otherwise a new one, started.

        Args:
            key: what tells groups apart.
            make: makes a new one.
            run: a sampling run begins with this schedule, until whose end nobody releases it.
        """
        while True:
            with self._lock:
                group = self._groups.get(key)
                leaving = [] if group is not None and group.is_alive() else self._make_room(key)
                if not leaving:
                    if group is None:
                        group = make()
                        group.start()
                        self._groups[key] = group
                    self._groups.move_to_end(key)
                    if run is not None:
                        group.begin_run(run)
                    return group
            _close(leaving)

    def _make_room(self, key: Hashable) -> list[WorkerGroup]:
        """Take out what is in the way of a new group `key`: one that died, and idle ones."""
        leaving = [self._groups.pop(key)] if key in self._groups else []
        idle = [other for other, group in self._groups.items() if not group.is_running]
        for other in idle[: max(0, len(self._groups) - self._capacity() + 1)]:
            leaving.append(self._groups.pop(other))
            log.info("releasing the workers of %s", leaving[-1].source.name)
        return leaving

    def peek(self, key: Hashable) -> WorkerGroup | None:
        """The group `key` if there is one."""
        with self._lock:
            return self._groups.get(key)

    def groups(self) -> list[tuple[WorkerGroup, int]]:
        """All groups, and how many MODELs use each."""
        with self._lock:
            return [(g, self._references.get(key, 0)) for key, g in self._groups.items()]

    def release(self, group_id: str | None = None, *, keep_workers: bool = False) -> Released:
        """End the groups that are not sampling, or with `keep_workers` unload their weights.

        Args:
            group_id: only this one.
            keep_workers: the workers stay, without weights.
        """
        released = Released([], [])
        leaving: list[WorkerGroup] = []
        with self._lock:
            for key, group in list(self._groups.items()):
                if group_id not in (None, group.id):
                    continue
                if group.is_running:
                    released.busy.append(group.id)
                    continue
                leaving.append(group if keep_workers else self._groups.pop(key))
                released.released.append(group.id)
        if keep_workers:
            for group in leaving:
                _unload(group, unless_running=True)
        else:
            _close(leaving)
        return released

    def unload(self, key: Hashable, device: str | None = None) -> int:
        """Have the group `key`, if there is one, give the memory of its weights back.

        Args:
            key: of the group.
            device: of workers on this one; None: of all.

        Returns:
            How many bytes they held.
        """
        group = self.peek(key)
        return 0 if group is None else _unload(group, device)

    def unload_all(self) -> None:
        """Have all groups give the memory of their weights back."""
        for group, _ in self.groups():
            _unload(group)

    def unload_others(self, key: Hashable) -> bool:
        """Have all idle groups but `key` give the memory of their weights back; whether any did."""
        with self._lock:
            others = [group for other, group in self._groups.items() if other != key]
        return any([_unload(group, unless_running=True) > 0 for group in others])

    def refer(self, key: Hashable) -> None:
        """Count one more user of the group `key`."""
        with self._lock:
            self._references[key] = self._references.get(key, 0) + 1
            self._due.pop(key, None)
            if self._janitor is None:
                self._janitor = threading.Thread(target=self._tidy, name="janitor", daemon=True)
                self._janitor.start()

    def forget(self, key: Hashable) -> None:
        """Count one user less. The group is released a while after its last user is gone.

        This is for finalizers, which run in any thread, in the middle of anything, and must take
        no lock. So it is only noted, for the janitor.
        """
        self._forgotten.put(key)

    def _tidy(self) -> None:
        while True:
            with self._lock:
                until = min(self._due.values(), default=None)
                idle = [group for group in self._groups.values() if not group.is_running]
            # Of a group that lost a worker while nobody waited for it, the others are ended.
            for group in idle:
                group.look()
            now = time.monotonic()
            left = LOOK_SECONDS if until is None else min(max(0.0, until - now), LOOK_SECONDS)
            try:
                self._count_off(self._forgotten.get(timeout=left))
            except queue.Empty:
                _close(self._overdue())

    def _count_off(self, key: Hashable) -> None:
        with self._lock:
            self._references[key] -= 1
            if not self._references[key]:
                del self._references[key]
                if key in self._groups:
                    self._due[key] = time.monotonic() + LINGER_SECONDS

    def _overdue(self) -> list[WorkerGroup]:
        now = time.monotonic()
        with self._lock:
            keys = [key for key, due in self._due.items() if due <= now]
            for key in keys:
                del self._due[key]
            return [self._groups.pop(key) for key in keys if key in self._groups]

    def close(self) -> None:
        """Release all groups."""
        with self._lock:
            groups = list(self._groups.values())
            self._groups.clear()
        _close(groups)


def _close(groups: Sequence[WorkerGroup]) -> None:
    """End groups, which together have no more time for it than one of them."""
    close_all([group.members for group in groups])


def _unload(group: WorkerGroup, device: str | None = None, *, unless_running: bool = False) -> int:
    """Have a group give the memory of its weights back; how many bytes it held.

    Who frees memory has no use for the error of a group that is in trouble: its workers are ended
    then, and so their memory is free.
    """
    if not group.is_alive():
        return 0
    try:
        return group.unload(device, unless_running=unless_running)
    except WorkerError as error:
        log.warning("%s", error)
        record_error(group.source.name, error)
        return 1


POOL = GroupPool(max_groups)
atexit.register(POOL.close)
