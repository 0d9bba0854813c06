"""The table of modules in docs/architecture.md, from what the modules say of themselves.

python3 dev.py python -m harness.module_table
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ROOT / "asyncdiff_core"
PAGE = ROOT / "docs" / "architecture.md"
# Each folder imports those before it alone, which test_imports.py checks.
FOLDERS = (
    *("algorithm", "planning", "wire", "links", "reports", "workers"),
    *("comfyui/model", "comfyui/patches", "comfyui/run", "comfyui"),
)


def table() -> str:
    """The section: a table for each folder, with the first sentence of each module."""
    return "\n\n".join(_folder(folder) for folder in ("", *FOLDERS)) + "\n"


def put_into(page: str) -> str:
    """The text of the page with this table in the place of the one that it has."""
    begin, end = "<!-- modules -->\n", "<!-- end of modules -->"
    return page[: page.index(begin) + len(begin)] + table() + page[page.index(end) :]


def _folder(folder: str) -> str:
    if folder:
        head = f"| `{folder}/` | {_first_sentence(CORE / folder / '__init__.py')} |"
    else:
        head = "| `asyncdiff_core/` | What all of them use |"
    return "\n".join((head, "|---|---|", *_rows(CORE / folder)))


def _rows(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"| `{path.name}` | {_first_sentence(path)} |"


def _first_sentence(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    paragraph = " ".join(said.partition("\n\n")[0].split())
    return re.split(r"(?<=[\w)`])\.(?: |$)", paragraph)[0].replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(put_into(PAGE.read_text("utf-8")), "utf-8")
