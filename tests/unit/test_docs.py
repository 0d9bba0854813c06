"""The documents list what there is, and show what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncdiff_core import settings

ROOT = Path(__file__).parents[2]


def read(path: str) -> str:
    return (ROOT / path).read_text("utf-8")


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    pattern = rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of the rows of all tables in a text, without headings and rules."""
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("|") and not re.match(r"\|[-| :]+$", line) and "|---" not in after:
            yield [cell.strip() for cell in line.strip("|").split("|")]


# Environment variables --------------------------------------------------------------------------


def test_every_environment_variable_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [*(ROOT / "asyncdiff_core").rglob("*.py"), *(ROOT / "nodes").rglob("*.py")]
    used = {
        name
        for path in sources
        for name in re.findall(r"\bASYNCDIFF_[A-Z_]+", path.read_text("utf-8"))
    }
    table = section(read("docs/environment.md"), "Of ComfyUI with this pack")
    defaults = {name.strip("`"): default.strip("`") for name, default, _ in rows(table)}
    assert defaults.keys() == used
    for name in used:
        monkeypatch.delenv(name, raising=False)
    assert float(defaults["ASYNCDIFF_TIMEOUT"]) == settings.timeout_seconds()
    assert int(defaults["ASYNCDIFF_MAX_GROUPS"]) == settings.max_groups()
    assert bool(int(defaults["ASYNCDIFF_FOLD"])) == settings.folds()
