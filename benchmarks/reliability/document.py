"""What is measured, into the document that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def fill(document: Path, name: str, text: str) -> None:
    """Put `text` between the marks `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the document does not have both of them.
    """
    content = document.read_text()
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no place for {name}: {begin} and {end}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def figures(command: str, result: dict[str, Any]) -> str:
    """What a command found, as a list of lines that names the command."""
    lines = [f"Found by `python3 dev.py python -m benchmarks.reliability {command}`:", ""]
    for name, value in result.items():
        if name != "problems":
            lines.append(f"- {name}: {_text(value)}")
    lines += [f"- **not as promised: {problem}**" for problem in result["problems"]]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{name} ({_text(one)})" if isinstance(one, dict) else f"{name} {_text(one)}"
            for name, one in value.items()
        )
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value)
