"""Functions of ComfyUI that something replaced in ComfyUI's process.

Node packs do so, when they are imported or when a node of theirs runs. What a model computes with
is looked at: the modules of its classes and all of ComfyUI's that these import, down to the layers.
Whether a function is ComfyUI's own is told by its source. Those that are not cross to the workers
like other patches that are code.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import folder_paths
import torch

COMFYUI_ROOT = Path(folder_paths.__file__).resolve().parent

# What takes part in every model's computation, or in its weights.
_COMMON = ("comfy.ops", "comfy.lora", "comfy.weight_adapter")
# What models compute with. The rest is for ComfyUI's process (samplers, conditioning), or is
# wrapped by packs to place models and changes no result (memory management).
_COMPUTING = (
    *("comfy.ldm", "comfy.ops", "comfy.float", "comfy.quant_ops", "comfy.rmsnorm", "comfy.lora"),
    *("comfy.weight_adapter", "comfy.text_encoders", "comfy.image_encoders"),
)


# Those that change weights, which are changed before anything is computed.
_CHANGING = ("comfy.lora", "comfy.float", "comfy.quant_ops", "comfy.weight_adapter")


# The one that applies weight patches.
CALCULATE = "comfy.lora:calculate_weight"


class _Place(NamedTuple):
    """Where a function is found by those who call it. `name` is ``module:qualified.name``."""

    name: str
    namespace: Mapping[str, Any]
    attribute: str
    value: Any


class ReplacedFunctions:
    """Of the functions that the class of `model` and those of its modules compute with."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._places: list[_Place] = []
        self._foreign: set[str] = set()  # those that were replaced before
        kinds = {kind for module in model.modules() for kind in type(module).__mro__}
        names = {kind.__module__ for kind in kinds} | set(_COMMON)
        for name in _with_imports(names):
            for place, is_own in _bindings(sys.modules[name]):
                self._places.append(place)
                if not is_own:
                    self._foreign.add(place.name)
        attention, functional = "scaled_dot_product_attention", vars(torch.nn.functional)
        name = f"torch.nn.functional:{attention}"
        self._places.append(_Place(name, functional, attention, functional[attention]))
        if not isinstance(functional[attention], types.BuiltinFunctionType):
            self._foreign.add(name)

    def found(self) -> dict[str, Any]:
        """Those that are in the place of others now, by where."""
        return {
            place.name: place.namespace.get(place.attribute)
            for place in self._places
            if place.name in self._foreign
            or place.namespace.get(place.attribute) is not place.value
        }


def changing_weights(functions: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `functions`, as `ReplacedFunctions.found` gives them, that change weights."""
    return {name: value for name, value in functions.items() if name.startswith(_CHANGING)}


def put(place: str, value: Any) -> Any:
    """In a worker: put a function in the place of another one, which is returned."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    before = vars(owner)[name]
    setattr(owner, name, value)
    return before


def _with_imports(names: Iterable[str]) -> list[str]:
    """Those of ComfyUI's modules among `names`, and what they import of it, and so on."""
    found: dict[str, None] = {}
    queue = sorted(names)
    while queue:
        name = queue.pop()
        module = sys.modules.get(name)
        if name in found or not name.startswith(_COMPUTING) or not _has_source(module):
            continue
        found[name] = None
        queue += _source(module).imported
    return list(found)


def _has_source(module: Any) -> bool:
    return (getattr(module, "__file__", None) or "").endswith(".py")


# What a source says of a name: ("def", has decorators), ("class", its methods with the same),
# ("from", module, name there), or ("assigned",). Where branches differ, all that they say.
_Binding = tuple[Any, ...]


class _Source(NamedTuple):
    """What the source of a module says of the names in it, and which modules it imports."""

    bindings: Mapping[str, Sequence[_Binding]]
    imported: tuple[str, ...]


@functools.cache
def _source_of(name: str, file: str) -> _Source:
    package = name if file.endswith("__init__.py") else name.rpartition(".")[0]
    bindings: dict[str, list[_Binding]] = {}
    imported: list[str] = []

    def bind(name: str, *binding: Any) -> None:
        bindings.setdefault(name, []).append(binding)

    for node in _statements(ast.parse(Path(file).read_bytes()).body):
        if isinstance(node, _FUNCTIONS):
            bind(node.name, "def", bool(node.decorator_list))
        elif isinstance(node, ast.ClassDef):
            bind(node.name, "class", dict(_methods(node)))
        elif isinstance(node, ast.Import):
            imported += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            module = importlib.util.resolve_name(relative, package)
            imported += (module, *(f"{module}.{alias.name}" for alias in node.names))
            for alias in node.names:
                bind(alias.asname or alias.name, "from", module, alias.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name):
                    bind(target.id, "assigned")
    return _Source(bindings, tuple(imported))


_FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


def _methods(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    for part in node.body:
        if isinstance(part, _FUNCTIONS):
            yield part.name, bool(part.decorator_list)


def _source(module: Any) -> _Source:
    return _source_of(module.__name__, module.__file__)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements of a module but those inside of functions and classes."""
    for node in body:
        yield node
        if not isinstance(node, _FUNCTIONS | ast.ClassDef):
            for field in ("body", "orelse", "finalbody"):
                yield from _statements(getattr(node, field, ()))
            for handler in getattr(node, "handlers", ()):
                yield from _statements(handler.body)


def _bindings(module: Any) -> Iterator[tuple[_Place, bool]]:
    """The functions that the code of `module` finds in it, and whether each is ComfyUI's own."""
    namespace, prefix = vars(module), f"{module.__name__}:"
    known = _source(module).bindings
    for name, value in list(namespace.items()):
        if name in known:
            place = _Place(prefix + name, namespace, name, value)
            yield place, any(_fits(value, name, module, *each) for each in known[name])
            for kind, *more in known[name]:
                if kind == "class" and isinstance(value, type):
                    yield from _methods_of(value, module, more[0])
        elif isinstance(value, types.FunctionType):
            yield _Place(prefix + name, namespace, name, value), not is_of_a_pack(value)


def _methods_of(
    cls: type, module: Any, methods: Mapping[str, bool]
) -> Iterator[tuple[_Place, bool]]:
    if cls.__module__ == module.__name__:
        for name, decorated in methods.items():
            if name in vars(cls):
                place = f"{module.__name__}:{cls.__qualname__}.{name}"
                value = vars(cls)[name]
                yield (
                    _Place(place, vars(cls), name, value),
                    _is_own(value, name, module.__file__, decorated),
                )


def _fits(value: Any, name: str, module: Any, kind: str, *more: Any) -> bool:
    """Whether `value` is what one statement of its module's source binds to `name`."""
    if kind == "def":
        return _is_own(value, name, module.__file__, more[0])
    if kind == "class":
        return isinstance(value, type) and value.__module__ == module.__name__
    if kind == "from":
        origin, original = more
        source = sys.modules.get(origin)
        is_module = isinstance(value, types.ModuleType)
        # Some that are there for their types alone are not in their module any more.
        return is_module or original == "*" or getattr(source, original, value) is value
    return not is_of_a_pack(value)


def _is_own(value: Any, name: str, file: str, decorated: bool) -> bool:
    """Whether this is what the source in `file` defines under `name`."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    if isinstance(value, property):
        value = value.fget
    if decorated:
        return not is_of_a_pack(value)
    code = getattr(value, "__code__", None)
    return code is not None and code.co_name == name and _same_file(code.co_filename, file)


def is_of_a_pack(function: Any) -> bool:
    """Whether the source of a function is in a folder of node packs, by a link or itself."""
    code = getattr(function, "__code__", None)
    return code is not None and any(
        place.is_relative_to(folder)
        for place in _places(code.co_filename)
        for name in folder_paths.get_folder_paths("custom_nodes")
        for folder in _places(name)
    )


def _places(path: str) -> tuple[Path, Path]:
    """Where it is said to be, and where it is."""
    return Path(path).absolute(), Path(path).resolve()


def _same_file(a: str, b: str) -> bool:
    return a == b or Path(a).resolve() == Path(b).resolve()


def is_what_it_says(function: Any) -> bool:
    """Whether a function is the one that its module has under its name, by its source."""
    module = inspect.getmodule(function)
    code = getattr(inspect.unwrap(function), "__code__", None)
    file = getattr(module, "__file__", None)
    if module is None or code is None or file is None:
        return False
    return getattr(function, "__wrapped__", None) is None and _same_file(code.co_filename, file)
