"""MODELs from GGUF files, by the nodes of ComfyUI-GGUF and of packs that are made like it.

Such a node gives ComfyUI the packed tensors of a file, and layers of its own that unpack them
whenever they are used. It leaves no word of the file in the MODEL. So its method is wrapped, before
a prompt runs, by one that notes the call; workers make the same call of the pack's own method, with
the same files, and ComfyUI loads the units of a stage.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import folder_paths

from .loading import patching

METHOD = "load_unet"
PATCHER = "GGUFModelPatcher"  # the class of its MODELs

# (folder, name) as a node asks ComfyUI for a file, and where that is.
Asked = tuple[str, str]


def note_calls(node_classes: Iterable[type]) -> None:
    """Have the loaders among these classes of nodes note in a MODEL how they were called."""
    for kind in node_classes:
        method = vars(kind).get(METHOD)
        is_such = hasattr(sys.modules.get(kind.__module__), PATCHER)
        if is_such and inspect.isfunction(method) and not hasattr(method, "__wrapped__"):
            setattr(kind, METHOD, _noting(method))


def load(
    module: str,
    kind: str,
    arguments: tuple[tuple[str, Any], ...],
    names: tuple[Asked, ...],
    *paths: str,
    disable_dynamic: bool = True,
) -> Any:
    """Make a call that was noted.

    Args:
        module: of the pack, which has the class of nodes.
        kind: its name.
        arguments: of its method, by name.
        names: for which it asks ComfyUI.
        paths: of the files that it finds.
        disable_dynamic: ComfyUI asks for MODELs that do not page; these never do.

    Returns:
        The MODEL's ModelPatcher.
    """
    node = getattr(importlib.import_module(module), kind)()
    with _answering(dict(zip(names, paths, strict=True))):
        (patcher,) = getattr(node, METHOD)(**dict(arguments))
    return patcher


def _noting(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def load_unet(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        arguments.pop(next(iter(arguments)))
        found: dict[Asked, str] = {}
        with _answering(found):
            result = method(self, *args, **kwargs)
        if isinstance(result, tuple) and type(result[0]).__name__ == PATCHER:
            kind = type(self)
            call = (kind.__module__, kind.__qualname__, tuple(arguments.items()), tuple(found))
            result[0].cached_patcher_init = (load, (*call, *found.values()))
        return result

    return load_unet


@contextlib.contextmanager
def _answering(found: dict[Asked, str]) -> Iterator[None]:
    """In this thread, have ComfyUI find files where `found` says, and note there where it finds the
    others.

    A worker knows no folders but ComfyUI's own.
    """
    owner, full_path = threading.get_ident(), folder_paths.get_full_path

    def answer(folder: str, name: str, *args: Any, **kwargs: Any) -> str | None:
        if threading.get_ident() != owner:
            return full_path(folder, name, *args, **kwargs)
        path = found.get((folder, name)) or full_path(folder, name, *args, **kwargs)
        if path is not None:
            found[folder, name] = path
        return path

    with patching:
        folder_paths.get_full_path = answer
        try:
            yield
        finally:
            folder_paths.get_full_path = full_path
