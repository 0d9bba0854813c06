"""What is measured, into the document that says so."""

from __future__ import annotations

from pathlib import Path


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
