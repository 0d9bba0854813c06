"""Damaged and hostile messages on the control channel; benchmarks/reliability sends more."""

import pickle
from pathlib import Path

import pytest

from benchmarks.reliability import fuzz_channel
from benchmarks.reliability.fuzz_channel import ENDED

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")

CHANNEL_ERRORS = {"ChannelDataError", "ChannelClosedError", "ChannelTimeoutError"}
WORKER_ERRORS = {"WorkerFailedError", "WorkerDiedError", "WorkerTimeoutError"}


def test_bytes_from_a_worker(tmp_path: Path) -> None:
    found = fuzz_channel.to_host(100, 1, tmp_path)
    assert set(found) == WORKER_ERRORS and found.total() == 100


def test_bytes_to_a_worker(tmp_path: Path) -> None:
    found = fuzz_channel.to_reader(300, 1, tmp_path)
    assert set(found) - {"request"} == CHANNEL_ERRORS


def test_requests_to_a_worker_that_make_no_sense(tmp_path: Path) -> None:
    found = fuzz_channel.to_worker(100, 1, tmp_path)
    assert found["Failed"] > 20 and not found[ENDED]


def test_a_hostile_pickle_is_not_run(tmp_path: Path) -> None:
    """The test of the tests: outside of a channel the same bytes do harm."""
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(fuzz_channel.Command(canary)))
    assert canary.exists()
