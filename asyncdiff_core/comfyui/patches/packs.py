"""Modules of node packs, which ComfyUI imports under names that stand in no search path.

A pack's root module is called as its file is, with other signs for dots. What a patch or a loader
needs of a pack a worker imports from the same files under the same names, without the pack's
`__init__` where that is not needed: it sets up nodes and routes, for which a worker has no server.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .fingerprint import PLAIN

# Containers of a module's globals with more than this are taken for tables that never change.
_MAX_LENGTH = 1000


# In the ComfyUI process -------------------------------------------------------------------------


def pack_of(name: str) -> tuple[str, str] | None:
    """The root module of the pack that the module `name` belongs to, and its file.

    None if it is no pack's: ComfyUI alone calls modules as files are called.
    """
    root = name.partition(".")[0]
    file = getattr(sys.modules.get(root), "__file__", None)
    is_path = "/" in root or "\\" in root
    return (root, str(Path(file).resolve())) if is_path and file else None


def globals_of(name: str) -> dict[str, Any]:
    """The global variables of a module that are plain data: a pack may have changed them."""
    return {
        key: value
        for key, value in vars(sys.modules[name]).items()
        if not key.startswith("__") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, PLAIN):
        return True
    if type(value) is dict:
        parts: Iterable[Any] = (*value, *value.values())
    elif type(value) in (list, tuple, set):
        parts = value
    else:
        return False
    return len(value) <= _MAX_LENGTH and all(map(_is_plain, parts))


# In a worker ------------------------------------------------------------------------------------


def add(packs: Mapping[str, str]) -> None:
    """Let modules of these packs be imported. `packs` are files of root modules by their names."""
    if packs and _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
        _put_nothing_for_the_server()
    _FINDER.files.update(packs)


def can_import(name: str) -> bool:
    """Whether a module of a pack can be imported here; it then is."""
    try:
        importlib.import_module(name)
    except Exception:
        return False
    return True


def set_globals(values: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the global variables of modules the values that they have in ComfyUI's process."""
    for name, of_module in values.items():
        namespace = vars(importlib.import_module(name))
        for key, value in of_module.items():
            present: Any = namespace.get(key)
            if isinstance(value, dict | set) and type(present) is type(value):
                present.clear()
                present.update(value)
            elif isinstance(value, list) and type(present) is list:
                present[:] = value
            else:
                namespace[key] = value


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self.files: dict[str, str] = {}

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self.files.get(fullname)
        if file is None:
            return None
        if not file.endswith("__init__.py"):
            return importlib.util.spec_from_file_location(fullname, file)
        loader = _Loader(fullname, file)
        folder = [str(Path(file).parent)]
        return importlib.util.spec_from_file_location(
            fullname, file, loader=loader, submodule_search_locations=folder
        )


_FINDER = _Finder()


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        module.__class__ = _Root

    def execute(self, module: types.ModuleType) -> None:
        super().exec_module(module)


class _Root(types.ModuleType):
    """A pack's root module, whose code runs when something is asked for that it defines."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        if name.startswith("__") or not isinstance(spec.loader if spec else None, _Loader):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            return importlib.import_module(f"{self.__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{self.__name__}.{name}":
                raise
        self.__class__ = types.ModuleType  # type: ignore[assignment]
        spec.loader.execute(self)  # type: ignore[union-attr]
        return getattr(self, name)


class _Nothing:
    """Stands for ComfyUI's server where modules register routes when they are imported."""

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) else self


def _put_nothing_for_the_server() -> None:
    import server  # here, since few workers need it

    if not hasattr(server.PromptServer, "instance"):
        server.PromptServer.instance = _Nothing()
