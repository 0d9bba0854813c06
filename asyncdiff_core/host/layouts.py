"""Which attributes of which architecture form its trunk: data, keyed by the model's class name.

Verified by the tests: the stages of each, run one after the other, equal the plain forward bit for
bit. A subclass is not taken for its parent, since it may add paths between blocks.
"""

from __future__ import annotations

import torch

from ..errors import LayoutError
from ..trunk import TrunkLayout

LAYOUTS = {
    # SD 1.x, 2.x, SDXL. `forward_timestep_embed` calls the layers inside the blocks.
    "UNetModel": TrunkLayout(
        blocks=("input_blocks", "middle_block", "output_blocks"),
        layers=True,
        skips=(("input_blocks", "output_blocks"),),
    ),
    # SD3, SD3.5
    "OpenAISignatureMMDITWrapper": TrunkLayout(blocks=("joint_blocks",)),
    # Wan 2.1, 2.2
    "WanModel": TrunkLayout(blocks=("blocks",)),
}


def layout_of(diffusion_model: torch.nn.Module) -> TrunkLayout:
    """The layout of this architecture.

    Raises:
        LayoutError: there is none.
    """
    name = type(diffusion_model).__name__
    if name not in LAYOUTS:
        raise LayoutError(
            f"{name} cannot be spread over devices: AsyncDiff has no layout for this architecture. "
            f"It has layouts for {', '.join(LAYOUTS)}. Load the model with ComfyUI's own loader."
        )
    return LAYOUTS[name]


def entry_of(diffusion_model: torch.nn.Module) -> str:
    """The method that one evaluation calls.

    ComfyUI's models run the DIFFUSION_MODEL wrappers in `forward` and compute in `_forward`; a few
    (SD3) have no wrappers and compute in `forward`.
    """
    return "_forward" if hasattr(type(diffusion_model), "_forward") else "forward"
