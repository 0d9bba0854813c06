"""Started groups, shared where a test leaves them whole."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncdiff_core.workers.group import WorkerGroup
from harness.groups import Gate, make_group

MakeGroup = Callable[..., WorkerGroup]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and a worker has no more than one here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """None is asked for, though the whole run may have been, as all of it passes by sockets too."""
    monkeypatch.delenv("ASYNCDIFF_BACKEND", raising=False)


@pytest.fixture(scope="module")
def shared_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeGroup]:
    """Started groups by (name, number of stages, toy options), for tests that leave them whole."""
    groups: dict[Any, WorkerGroup] = {}

    def get(name: str, num_stages: int, **options: Any) -> WorkerGroup:
        key = name, num_stages, repr(options)
        if key not in groups or not groups[key].is_alive():
            folder = tmp_path_factory.mktemp("group")
            groups[key] = make_group(name, num_stages, folder, **options)
            groups[key].start()
        return groups[key]

    yield get
    for group in groups.values():
        group.close()


@pytest.fixture
def own_group(tmp_path: Path) -> Iterator[MakeGroup]:
    """A started group for one test alone; none of its processes outlives the test."""
    groups: list[WorkerGroup] = []

    def get(name: str, num_stages: int, **options: Any) -> WorkerGroup:
        group = make_group(name, num_stages, tmp_path / "groups", **options)
        groups.append(group)
        group.start()
        return group

    yield get
    for group in groups:
        group.close()


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    """Where a test holds workers up."""
    folder = tmp_path / "gate"
    folder.mkdir()
    return Gate(folder)
