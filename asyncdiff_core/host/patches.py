"""Weight patches (LoRA and the like) on their way to the workers.

Weight patches are what `ModelPatcher.add_patches` collects per key: tensors inside ComfyUI's own
weight adapter classes, which every worker can import, and sometimes functions. They cross as
pickling.py says, and each worker gets those of the keys that it holds. The worker applies them with
ComfyUI's own code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UnsupportedPatchError
from ..partition import Stage, units_of
from . import pickling
from .pickling import Payload

MODEL_PREFIX = "diffusion_model."


def pack_patches(patches: Mapping[str, Any], units: Sequence[str], stage: Stage) -> Payload:
    """The patches of the keys that a worker with this stage holds, as plain data.

    Raises:
        UnsupportedPatchError: one of them cannot cross the process border; its key is named.
    """
    held = set(units_of(stage))
    foreign = tuple(f"{MODEL_PREFIX}{n}." for index, n in enumerate(units) if index not in held)
    own = {key: value for key, value in patches.items() if not key.startswith(foreign)}
    try:
        return pickling.pack(own)
    except Exception as error:
        raise UnsupportedPatchError(
            f"A weight patch of this MODEL cannot be sent to worker processes: {error}. Its keys "
            f"begin with {next(iter(own))!r}. Apply it before the model is saved, and load that."
        ) from error
