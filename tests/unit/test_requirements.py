"""What is required is what is imported: no package is missing, and none is asked for in vain."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import dev

# The format of files that workers read by ComfyUI's loaders.
THROUGH_COMFYUI = {"safetensors"}
# The modules of ComfyUI itself. `nodes` is ComfyUI's too where it is imported absolutely.
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfyui_version", "folder_paths", "nodes"}
COMFYUI |= {"server"}


def shipped() -> Iterator[Path]:
    """The Python files that a user of the pack has and runs."""
    yield dev.REPO / "__init__.py"
    for folder in ("asyncdiff_core", "nodes"):
        yield from (dev.REPO / folder).rglob("*.py")


def imported(source: str) -> set[str]:
    """The top-level modules that a file imports absolutely, at its start or in a function."""
    modules = set()
    for statement in ast.walk(ast.parse(source)):
        if isinstance(statement, ast.Import):
            modules |= {name.name for name in statement.names}
        elif isinstance(statement, ast.ImportFrom) and not statement.level:
            modules.add(statement.module or "")
    return {module.partition(".")[0] for module in modules}


def test_every_import_is_required_and_nothing_else() -> None:
    used = {module for path in shipped() for module in imported(path.read_text("utf-8"))}
    packages = [re.split("[=<>~!]", text)[0] for text in dev.runtime_requirements()]
    required = {dev.MODULES.get(package, package) for package in packages}
    assert required == (used | THROUGH_COMFYUI) - sys.stdlib_module_names - COMFYUI


def test_only_what_comfyui_does_not_bring_has_a_version() -> None:
    """A bound on anything else could have an installer replace what ComfyUI runs with."""
    bounded = [text for text in dev.runtime_requirements() if re.search("[=<>~!]", text)]
    assert bounded == ["cloudpickle>=3.0"]
