"""The worker groups of this ComfyUI process: shared, kept warm, bounded in number.

A group belongs to (weights, options, devices), not to the node that made the MODEL, so that it
survives ComfyUI running a loader node again. When the last MODEL that uses it is gone it stays for
a while, since the next prompt may load the same model again, and is then released.
"""

from __future__ import annotations

import atexit
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from ..errors import WorkerError
from ..group import WorkerGroup
from ..log import get_logger
from ..schedule import AsyncSchedule
from ..settings import max_groups
from .reports import record_error

log = get_logger("pool")

LINGER_SECONDS = 60.0


class Released(NamedTuple):
    """Ids of groups that were released, and of those that were sampling and left alone."""

    released: list[str]
    busy: list[str]


class GroupPool:
    """Groups by key, the least recently used one first. Any thread may use it.

    Args:
        capacity: how many groups may exist at a time.
    """

    def __init__(self, capacity: Callable[[], int]) -> None:
        self._capacity = capacity
        self._groups: OrderedDict[Hashable, WorkerGroup] = OrderedDict()
        self._references: dict[Hashable, int] = {}
        self._releases: dict[Hashable, threading.Timer] = {}  # of groups without a user
        self._lock = threading.RLock()

    def obtain(
        self,
        key: Hashable,
        make: Callable[[], WorkerGroup],
        run: AsyncSchedule | None = None,
    ) -> WorkerGroup:
        """The group `key`: the one there is if it is fit for use, otherwise a new one, started.

        Args:
            run: a sampling run begins with this schedule, until whose end nobody releases it.
        """
        with self._lock:
            group = self._groups.pop(key, None)
            if group is not None and not group.is_alive():
                group.close()
                group = None
            if group is None:
                self._make_room()
                group = make()
                group.start()
            self._groups[key] = group
            if run is not None:
                group.begin_run(run)
            return group

    def _make_room(self) -> None:
        idle = [key for key, group in self._groups.items() if not group.is_running]
        for key in idle[: max(0, len(self._groups) - self._capacity() + 1)]:
            group = self._groups.pop(key)
            log.info("releasing the workers of %s", group.source.name)
            group.close()

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
        """
        released = Released([], [])
        with self._lock:
            for key, group in list(self._groups.items()):
                if group_id not in (None, group.id):
                    continue
                if group.is_running:
                    released.busy.append(group.id)
                    continue
                if keep_workers:
                    _unload(group)
                else:
                    self._groups.pop(key).close()
                released.released.append(group.id)
        return released

    def unload(self, key: Hashable) -> None:
        """Have the group `key`, if there is one, give the memory of its weights back."""
        group = self.peek(key)
        if group is not None:
            _unload(group)

    def unload_others(self, key: Hashable) -> bool:
        """Have all idle groups but `key` give the memory of their weights back; whether any did."""
        with self._lock:
            others = [group for other, group in self._groups.items() if other != key]
            return any([_unload(group) for group in others if not group.is_running])

    def refer(self, key: Hashable) -> None:
        """Count one more user of the group `key`."""
        with self._lock:
            self._references[key] = self._references.get(key, 0) + 1
            if key in self._releases:
                self._releases.pop(key).cancel()

    def forget(self, key: Hashable) -> None:
        """Count one user less. The group is released a while after its last user is gone."""
        with self._lock:
            self._references[key] -= 1
            if self._references[key] or key not in self._groups:
                return
            timer = threading.Timer(LINGER_SECONDS, lambda: self._release(key, timer))
            timer.daemon = True
            self._releases[key] = timer
            timer.start()

    def _release(self, key: Hashable, timer: threading.Timer) -> None:
        with self._lock:
            # A timer that could not be cancelled in time is not the one that counts any more.
            if self._releases.get(key) is timer:
                del self._releases[key]
                if key in self._groups:
                    self._groups.pop(key).close()

    def close(self) -> None:
        """Release all groups."""
        with self._lock:
            while self._groups:
                self._groups.popitem()[1].close()


def _unload(group: WorkerGroup) -> bool:
    """Have a group give the memory of its weights back; whether it held any.

    Who frees memory has no use for the error of a group that is in trouble: its workers are ended
    then, and so their memory is free.
    """
    if not group.is_alive():
        return False
    try:
        return group.unload()
    except WorkerError as error:
        log.warning("%s", error)
        record_error(group.source.name, error)
        return True


POOL = GroupPool(max_groups)
atexit.register(POOL.close)
