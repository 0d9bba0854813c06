"""Who imports whom, read from the source.

Imports count wherever they stand, inside of functions too, but not those for type checkers alone.
import-linter would not do: to it an import inside of a function is one of the module, and what
starts a worker imports torch in that way only.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.module_table import FOLDERS

ROOT = Path(__file__).parents[2]

# Each part of the repository, and which others its modules import. A module belongs to the part
# with the longest name that fits. "" is the root's __init__.py.
COMFYUI = "ComfyUI"
ENGINE, ADAPTER = "asyncdiff_core", "asyncdiff_core.comfyui"
ALL = [ENGINE, *(f"{ENGINE}.{folder.replace('/', '.')}" for folder in FOLDERS)]
ENGINE_ALONE = {folder for folder in ALL if not folder.startswith(ADAPTER)}
PARTS: dict[str, set[str]] = {
    "": {"nodes"},
    **{
        folder: {*ALL[:n], *([] if folder in ENGINE_ALONE else [COMFYUI])}
        for n, folder in enumerate(ALL)
    },
    "nodes": {COMFYUI, *ALL},
    "harness": {*ENGINE_ALONE, "harness.own_process"},
    "harness.adapter_pack": {COMFYUI},
    "harness.gguf_pack": {COMFYUI},
    "harness.own_process": {COMFYUI, *ALL, "harness"},
    "demo": {*ENGINE_ALONE, "harness", "demo.shapes"},
    "demo.shapes": {COMFYUI},
    "benchmarks": {
        *(COMFYUI, *ALL, "harness", "harness.own_process", "demo", "demo.shapes"),
    },
}
# What starts a worker. It tells the host that it lives while torch is imported.
ENTRY = "asyncdiff_core.workers.bootstrap"

# The modules at the top of ComfyUI's folder. Our own `nodes` is only imported relatively.
OF_COMFYUI = {
    *("app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution"),
    *("comfy_extras", "comfyui_version", "execution", "folder_paths", "latent_preview"),
    *("node_helpers", "nodes", "protocol", "server"),
}


class Import(NamedTuple):
    """One import of a module.

    Attributes:
        name: of the module that is imported.
        line: where it stands.
        at_once: not inside of a function, so that importing the one imports the other.
    """

    name: str
    line: int
    at_once: bool


@cache
def sources() -> dict[str, Path]:
    """The modules of all parts, by name."""
    found = {"": ROOT / "__init__.py"}
    for folder in {part.partition(".")[0] for part in PARTS if part}:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def imports_of(name: str) -> tuple[Import, ...]:
    path = sources()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(_imports(tree, package.split(".") if package else [], sources()))


def _imports(
    tree: ast.AST, package: list[str], known: Mapping[str, object], at_once: bool = True
) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield from _imports(other, package, known, at_once)
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(_absolute(alias.name), node.lineno, at_once)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                base = ".".join([*base, *([node.module] if node.module else [])])
            else:
                base = _absolute(node.module or "")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield Import(inner if inner in known else base, node.lineno, at_once)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _imports(node, package, known, at_once and not is_function)


def _absolute(name: str) -> str:
    return f"{COMFYUI}.{name}" if name.partition(".")[0] in OF_COMFYUI else name


def part_of(name: str) -> str | None:
    """The part that a module belongs to; None: it is another project's."""
    parts = (*PARTS, COMFYUI, "tests", "dev")
    fitting = [part for part in parts if part and f"{name}.".startswith(f"{part}.")]
    return max(fitting, key=len, default="" if not name else None)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part or "root")
def test_a_part_imports_what_it_may(part: str) -> None:
    modules = [name for name in sources() if part_of(name) == part]
    assert modules
    wrong = [
        f"{sources()[name].relative_to(ROOT)}:{each.line} imports {each.name}"
        for name in modules
        for each in imports_of(name)
        if part_of(each.name) not in {None, part, *PARTS[part]}
    ]
    assert wrong == []


def test_a_worker_starts_without_torch() -> None:
    """What is imported before the first sign of life is the standard library's."""
    began = {ENTRY}
    outside = set()
    left = [ENTRY]
    while left:
        name = left.pop()
        packages = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
        for each in {*packages, *(e.name for e in imports_of(name) if e.at_once)}:
            if part_of(each) is None:
                outside.add(each.partition(".")[0])
            elif each not in began:
                began.add(each)
                left.append(each)
    assert "asyncdiff_core" in began and len(began) > 2
    assert outside - sys.stdlib_module_names == set()


def test_the_engine_has_no_circles() -> None:
    engine = {name for name in sources() if f"{name}.".startswith(f"{ENGINE}.")}
    graph = {name: {e.name for e in imports_of(name)} & engine for name in engine}
    assert circles(graph) == []


def test_no_module_of_the_engine_is_long() -> None:
    engine = (path for name, path in sources().items() if f"{name}.".startswith(f"{ENGINE}."))
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in engine}
    assert [name for name, length in lengths.items() if length > 400] == []


def circles(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """The largest sets of modules each of which leads to every other one."""
    reached = {name: _reached(graph, name) for name in graph}
    found = [
        {name, *(other for other in reached[name] if name in reached[other])}
        for name in sorted(graph)
        if name in reached[name]
    ]
    return [circle for n, circle in enumerate(found) if circle not in found[:n]]


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - seen
        seen |= new
        left += new
    return seen


# The reading itself


def read(source: str, package: str = "asyncdiff_core.comfyui") -> list[Import]:
    known = dict.fromkeys(["asyncdiff_core.log", "asyncdiff_core.comfyui.fallback", "nodes.routes"])
    return list(_imports(ast.parse(source), package.split("."), known))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch.nn", "torch.nn"),
        ("from torch import nn", "torch"),
        ("from . import fallback", "asyncdiff_core.comfyui.fallback"),
        ("from .fallback import prepare", "asyncdiff_core.comfyui.fallback"),
        ("from ..log import get_logger", "asyncdiff_core.log"),
        ("from .. import log", "asyncdiff_core.log"),
        ("from ...nodes import routes", "nodes.routes"),
        ("import nodes", "ComfyUI.nodes"),
        ("from comfy.sd import VAE", "ComfyUI.comfy.sd"),
    ],
)
def test_a_name_is_resolved(source: str, name: str) -> None:
    assert read(source) == [Import(name, 1, True)]


def test_imports_are_found_wherever_they_stand() -> None:
    inside = "def f():\n    if x:\n        import torch"
    assert read(inside) == [Import("torch", 3, False)]
    assert read("try:\n    import torch\nexcept ImportError:\n    import numpy") == [
        Import("torch", 2, True),
        Import("numpy", 4, True),
    ]
    assert read("class A:\n    import torch") == [Import("torch", 2, True)]
    assert read("if TYPE_CHECKING:\n    import torch") == []


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"e"}, "f": {"g"}, "g": set()}
    assert circles(graph) == [{"a", "b", "c"}, {"e"}]
