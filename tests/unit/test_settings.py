"""Environment variables: defaults, and errors that say what to change."""

import pytest

from asyncdiff_core.errors import SettingError
from asyncdiff_core.settings import folds, max_groups, memory_limits, timeout_seconds


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCDIFF_TIMEOUT", raising=False)
    monkeypatch.delenv("ASYNCDIFF_MAX_GROUPS", raising=False)
    assert (timeout_seconds(), max_groups()) == (60.0, 2)


def test_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCDIFF_TIMEOUT", "2.5")
    monkeypatch.setenv("ASYNCDIFF_MAX_GROUPS", "3")
    assert (timeout_seconds(), max_groups()) == (2.5, 3)


def test_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCDIFF_FOLD", raising=False)
    assert folds()
    for text, wanted in (("1", True), ("0", False)):
        monkeypatch.setenv("ASYNCDIFF_FOLD", text)
        assert folds() is wanted
    monkeypatch.setenv("ASYNCDIFF_FOLD", "yes")
    with pytest.raises(SettingError, match="ASYNCDIFF_FOLD is 'yes'; set it to 0 or 1"):
        folds()


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf"])
def test_nonsense(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name, read in (
        ("ASYNCDIFF_TIMEOUT", timeout_seconds),
        ("ASYNCDIFF_MAX_GROUPS", max_groups),
    ):
        monkeypatch.setenv(name, text)
        with pytest.raises(SettingError, match=f"{name} is {text!r}"):
            read()


def test_memory_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASYNCDIFF_MEMORY", raising=False)
    assert memory_limits() == {}
    monkeypatch.setenv("ASYNCDIFF_MEMORY", "cuda:0=10, CUDA:1=0.5,cpu=0")
    assert memory_limits() == {"cuda:0": 10 * 2**30, "cuda:1": 2**29, "cpu": 0}


@pytest.mark.parametrize(
    "text", ["10", "cuda:0", "cuda:0=", "=4", "cuda:0=-1", "cpu=nan", "cpu=x", "cuda0=4", "gpu=1"]
)
def test_memory_limits_that_are_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("ASYNCDIFF_MEMORY", f"cuda:1=2,{text}")
    with pytest.raises(SettingError, match=f"ASYNCDIFF_MEMORY has '{text}' in it"):
        memory_limits()


def test_half_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNCDIFF_MAX_GROUPS", "1.5")
    with pytest.raises(SettingError, match="whole number"):
        max_groups()
