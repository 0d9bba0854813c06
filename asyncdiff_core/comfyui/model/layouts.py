"""Which attributes of which architecture form its trunk: data, keyed by the model's class name.

Verified by the tests: the stages of each, run one after the other, equal the plain forward bit for
bit. A subclass is not taken for its parent, since it may add paths between blocks. What has no
layout is cut by a guess, which a worker checks before anything is computed (chain_check.py).
"""

from __future__ import annotations

import inspect

import torch

from ...algorithm.trunk import ControlLayout, TrunkLayout, guess_layout
from ...errors import LayoutError

# What the names of a diffusion model's weights begin with in a BaseModel.
MODEL_PREFIX = "diffusion_model."

_BLOCKS = TrunkLayout(blocks=("blocks",))
_LAYERS = TrunkLayout(blocks=("layers",))
_TRANSFORMER_BLOCKS = TrunkLayout(blocks=("transformer_blocks",))
_CONTROLLED_BLOCKS = TrunkLayout(
    blocks=("transformer_blocks",), control=ControlLayout(after=(("input", "transformer_blocks"),))
)
_DOUBLE_AND_SINGLE_CONTROL = ControlLayout(
    after=(("input", "double_blocks"), ("output", "single_blocks"))
)
_DOUBLE_AND_SINGLE = TrunkLayout(
    blocks=("double_blocks", "single_blocks"), control=_DOUBLE_AND_SINGLE_CONTROL
)
# The text is refined first, then the noise, and both enter the layers.
_REFINED = TrunkLayout(
    blocks=("context_refiner", "noise_refiner", "layers"), joins=(("context_refiner", "layers"),)
)
_PATCHES_AND_PIXELS = TrunkLayout(
    blocks=("patch_blocks", "pixel_blocks"), shared=(("patch_blocks", "pixel_blocks"),)
)

_UNET = TrunkLayout(
    blocks=("input_blocks", "middle_block", "output_blocks"),
    layers=True,
    skips=(("input_blocks", "output_blocks"),),
    control=ControlLayout(
        after=(("input", "input_blocks"), ("middle", "middle_block")),
        before=(("output", "output_blocks"),),
        from_end=True,
    ),
)

LAYOUTS = {
    # UNets. SD 1.x, 2.x, SDXL, their inpaint models, x4 upscaler, SVD, SV3D.
    # `forward_timestep_embed` calls the layers inside the blocks.
    "UNetModel": _UNET,
    # SD 1.5 with AnimateDiff's motion modules, see motion.py.
    "MotionUNetModel": _UNET,
    # Stable Cascade, stage C. (The blocks of stage B are called several times.)
    "StageC": TrunkLayout(
        blocks=("down_blocks", "up_blocks"), layers=True, skips=(("down_blocks", "up_blocks"),)
    ),
    # SD3, SD3.5
    "OpenAISignatureMMDITWrapper": TrunkLayout(
        blocks=("joint_blocks",), control=ControlLayout(after=(("output", "joint_blocks"),))
    ),
    # Flux.1, Flux.2, LongCat Image
    "Flux": _DOUBLE_AND_SINGLE,
    "Chroma": _DOUBLE_AND_SINGLE,
    "ChromaRadiance": _DOUBLE_AND_SINGLE,
    "Hunyuan3Dv2": TrunkLayout(blocks=("double_blocks", "single_blocks")),
    "HunyuanVideo": TrunkLayout(
        blocks=("txt_in.individual_token_refiner.blocks", "double_blocks", "single_blocks"),
        control=_DOUBLE_AND_SINGLE_CONTROL,
    ),
    # AuraFlow
    "MMDiT": TrunkLayout(blocks=("double_layers", "single_layers")),
    "HiDreamImageTransformer2DModel": TrunkLayout(
        blocks=("double_stream_blocks", "single_stream_blocks")
    ),
    # See kept_tokens.py.
    "HiDreamO1Transformer": TrunkLayout(blocks=("language_model.layers",)),
    # Lumina 2, Z-Image
    "NextDiT": _REFINED,
    "NextDiTPixelSpace": _REFINED,
    "OmniGen2Transformer2DModel": _REFINED,
    "BooguTransformer2DModel": TrunkLayout(
        blocks=(
            "context_refiner",
            "noise_refiner",
            "double_stream_layers",
            "single_stream_layers",
        ),
        joins=(("context_refiner", "double_stream_layers"),),
    ),
    "LatentSeqMMFlowModel": TrunkLayout(
        blocks=("noise_refiner", "context_refiner", "blocks"), joins=(("noise_refiner", "blocks"),)
    ),
    # Qwen-Image and edit
    "QwenImageTransformer2DModel": _CONTROLLED_BLOCKS,
    # 2.1, of a newer ComfyUI than that of the tests; see kept_tokens.py.
    "QwenImage21Transformer2DModel": _TRANSFORMER_BLOCKS,
    "MageFlowTransformer2DModel": _CONTROLLED_BLOCKS,
    "LensTransformer2DModel": _CONTROLLED_BLOCKS,
    "LTXVModel": _TRANSFORMER_BLOCKS,
    # LTX-2: video and audio go through the same blocks, as a pair.
    "LTXAVModel": _TRANSFORMER_BLOCKS,
    # ACE-Step
    "ACEStepTransformer2DModel": _TRANSFORMER_BLOCKS,
    "AceStepConditionGenerationModel": TrunkLayout(blocks=("decoder.layers",)),
    # Stable Audio
    "AudioDiffusionTransformer": TrunkLayout(blocks=("transformer.layers",)),
    "PixArtMS": _BLOCKS,
    "HunYuanDiT": TrunkLayout(blocks=("blocks",), skips=(("blocks", "blocks"),)),
    # Hunyuan3D 2.1
    "HunYuanDiTPlain": TrunkLayout(blocks=("blocks",), skips=(("blocks", "blocks"),)),
    # Cosmos 1; Cosmos predict 2
    "GeneralDIT": _BLOCKS,
    "MiniTrainDIT": _BLOCKS,
    "Anima": _BLOCKS,
    # Mochi
    "AsymmDiTJoint": _BLOCKS,
    "CogVideoXTransformer3DModel": _BLOCKS,
    "Kandinsky5": TrunkLayout(
        blocks=("text_transformer_blocks", "visual_transformer_blocks"),
        shared=(("text_transformer_blocks", "visual_transformer_blocks"),),
    ),
    # Kandinsky 6, of a newer ComfyUI too. The text's blocks are called part by part.
    "Kandinsky6NativeAVDiT": TrunkLayout(blocks=("visual_blocks",)),
    "PixDiT_T2I": _PATCHES_AND_PIXELS,
    "PidNet": _PATCHES_AND_PIXELS,
    "ErnieImageModel": _LAYERS,
    "Ideogram4Transformer2DModel": _LAYERS,
    "JoyImageTransformer3DModel": TrunkLayout(blocks=("double_blocks",)),
    # Krea 2
    "SingleStreamDiT": TrunkLayout(
        blocks=("txtfusion.layerwise_blocks", "txtfusion.refiner_blocks", "blocks")
    ),
    # SeedVR2
    "NaDiT": _BLOCKS,
    # Video and audio lie in one sequence, which is taken apart behind the blocks.
    "MiniMaxH3Model": _BLOCKS,
    # Wan 2.1, 2.2
    "WanModel": _BLOCKS,
    "VaceWanModel": TrunkLayout(
        blocks=("blocks",), beside=("blocks", "vace_blocks", "vace_layers_mapping")
    ),
    "CameraWanModel": _BLOCKS,
    "WanModel_S2V": _BLOCKS,
    "HumoWanModel": _BLOCKS,
    "AnimateWanModel": _BLOCKS,
    "SCAILWanModel": _BLOCKS,
    "SCAIL2WanModel": _BLOCKS,
    "WanDancerModel": _BLOCKS,
}

# What ComfyUI loads and this pack refuses, and why.
_NO_DIFFUSION = "it is no diffusion model"
_BY_METHODS = "a second stream runs through its blocks, by methods of their own"
_BY_PARTS = "parts of its blocks are called one by one"
REFUSED = {
    "StageB": "it runs its blocks several times in one evaluation",
    "CausalWanModel": "its sampler runs parts of it, and keeps what its blocks made, by itself",
    "SenseNovaU15": _BY_METHODS,
    "WanAnimate2Model": _BY_METHODS,
    "Prism": _BY_PARTS,
    "Trellis2": "it is several models, of which each step of its workflow runs another one",
    "RTv4": _NO_DIFFUSION,
    "SAM3Model": _NO_DIFFUSION,
    "DepthAnything3Net": _NO_DIFFUSION,
}

# Layers that take the rows of a batch for the frames of a video: SVD's, and AnimateDiff's.
FRAME_LAYERS = {"VideoResBlock", "SpatialVideoTransformer", "MotionModule"}

# Parts outside the trunk that ComfyUI's conditioning code runs in its own process, before sampling.
HOST_PARTS = {
    "Anima": ("llm_adapter",),
    # Not every version of LTX-2 has all of them.
    "LTXAVModel": (
        "caption_projection",
        "audio_caption_projection",
        "video_embeddings_connector",
        "audio_embeddings_connector",
    ),
    "MiniMaxH3Model": ("condition_proj", "token_refiner"),
}

# Of these no evaluation needs them, so that workers do not hold them.
HOST_ALONE = {"MiniMaxH3Model"}


def layout_of(diffusion_model: torch.nn.Module) -> TrunkLayout:
    """The layout of this architecture, or a guess.

    Raises:
        LayoutError: it is one that cannot be spread, or has nothing to guess from.
    """
    name = type(diffusion_model).__name__
    if name in REFUSED:
        raise LayoutError(
            f"{name} cannot be spread over devices. AsyncDiff has no layout for this architecture, "
            f"since {REFUSED[name]}. Use the model without the AsyncDiff "
            "nodes."
        )
    return LAYOUTS[name] if name in LAYOUTS else guess_layout(diffusion_model)


def has_layout(diffusion_model: torch.nn.Module) -> bool:
    """Whether `layout_of` knows, and does not guess."""
    return type(diffusion_model).__name__ in LAYOUTS


def latents_are_apart(diffusion_model: torch.nn.Module) -> bool:
    """Whether what becomes of a latent of a batch depends on no other one.

    Not where the batch is the frames of a video; and of an architecture that nobody has named it is
    not known.
    """
    layers = {type(module).__name__ for module in diffusion_model.modules()}
    return has_layout(diffusion_model) and not layers & FRAME_LAYERS


def host_parts_of(diffusion_model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the submodules whose weights the ComfyUI process needs."""
    parts = HOST_PARTS.get(type(diffusion_model).__name__, ())
    return tuple(
        part for part in parts if isinstance(getattr(diffusion_model, part, None), torch.nn.Module)
    )


def left_out_of(diffusion_model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the submodules whose weights no worker needs."""
    is_left_out = type(diffusion_model).__name__ in HOST_ALONE
    return host_parts_of(diffusion_model) if is_left_out else ()


def entry_of(diffusion_model: torch.nn.Module) -> str:
    """The method that one evaluation calls.

    ComfyUI's models run the DIFFUSION_MODEL wrappers in `forward` and compute in `_forward`; a few
    (SD3) have no wrappers and compute in `forward`.
    """
    return "_forward" if hasattr(type(diffusion_model), "_forward") else "forward"


def position_of(diffusion_model: torch.nn.Module, parameter: str) -> int:
    """The position of a parameter of the entry method, beyond all if it is one of the **kwargs."""
    cls = type(diffusion_model)
    names = list(inspect.signature(getattr(cls, entry_of(diffusion_model))).parameters)[1:]  # self
    return names.index(parameter) if parameter in names else len(names)
