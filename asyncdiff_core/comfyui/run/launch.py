"""How ComfyUI's process starts workers, and whether they will load what it has loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths

from ...errors import LoaderError
from ...log import prune_folders
from ...workers.process import Launch
from ..model.loading import Loader
from ..model.replaced import COMFYUI_ROOT
from ..patches import packs
from .machine import hidden_gpus

PACK_ROOT = Path(__file__).resolve().parents[3]

# ComfyUI's command line may have paths that are relative to it.
STARTED_IN = os.getcwd()

# ComfyUI takes at most one of these.
_MEMORY_FLAGS = {"--gpu-only", "--highvram", "--normalvram", "--lowvram", "--novram", "--cpu"}


def launch() -> Launch:
    """As this process was started."""
    return Launch(
        # ComfyUI first: the pack has folders of the same names, `nodes` and `tests`.
        python_path=(str(COMFYUI_ROOT), str(PACK_ROOT)),
        cwd=STARTED_IN if os.path.isdir(STARTED_IN) else str(COMFYUI_ROOT),
        arguments=tuple(sys.argv[1:]),
        cpu_arguments=_cpu_arguments(sys.argv[1:]),
        hidden_gpus=hidden_gpus(),
    )


def _cpu_arguments(arguments: Sequence[str]) -> tuple[str, ...]:
    """ComfyUI's own command line, as a worker on the CPU has to read it."""
    return (*(a for a in arguments if a not in _MEMORY_FLAGS), "--cpu")


def log_folder(in_use: Collection[Path]) -> Path:
    """Where groups make the folders for their logs; those of dead ones are pruned.

    Args:
        in_use: folders of groups that are there.
    """
    # Not in the temporary folder, which another ComfyUI with the same folders empties.
    folder = Path(folder_paths.get_user_directory()) / "asyncdiff"
    prune_folders(folder, list(in_use))
    return folder


def spec_of(base_model: Any, loader: Loader) -> dict[str, Any]:
    """What a worker needs to know to make its part of the model that `loader` loads.

    `dtype` and `manual_cast_dtype` are as this process chose them, so that workers on unequal
    devices compute alike.
    """
    config = base_model.model_config
    # In ComfyUI this pack's modules have longer names than in a worker.
    function = loader.function.removeprefix(__package__.removesuffix("asyncdiff_core.comfyui.run"))
    # Loaders may be named in the arguments of another one (motion.py).
    names = (function, *(each for each in loader.args if isinstance(each, str)))
    return {
        "loader": (function, loader.args, loader.index),
        "packs": tuple(filter(None, map(packs.pack_of, names))),
        "dtype": config.unet_config.get("dtype"),
        "manual_cast_dtype": config.manual_cast_dtype,
    }


def files_of(spec: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The files that the loader call names, with what tells whether they changed."""
    names = (argument for argument in spec["loader"][1] if isinstance(argument, str))
    return {name: state for name in names if (state := state_of(name)) is not None}


def state_of(file: str) -> tuple[int, int] | None:
    """What tells whether a file was replaced: when it was changed, and its size. None: no file."""
    if not os.path.isfile(file):
        return None
    stat = os.stat(file)
    return stat.st_mtime_ns, stat.st_size


def require_same_files(files: Mapping[str, tuple[int, int]]) -> None:
    """See that workers will load what a skeleton was made from.

    Raises:
        LoaderError: a file is another one now.
    """
    for file, before in files.items():
        now = state_of(file)
        if now != before:
            what = "is gone" if now is None else "has changed"
            raise LoaderError(
                f"{file} {what} since its MODEL was loaded, and workers would load it once more. "
                "Run its loader again: free ComfyUI's model and node cache, or load the file under "
                "another name."
            )
