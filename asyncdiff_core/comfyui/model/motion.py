"""AnimateDiff: motion modules as layers of the UNet of SD 1.5 or SDXL, between those that it has.

A motion module (Guo et al., 2023, arXiv 2307.04725) lets the pixels at one place attend to each
other over the frames of a video, which are the batch. There is one behind the last ResBlock or
SpatialTransformer of every block of the UNet. As layers of the blocks they are units like the other
layers: `load` gives ComfyUI's UNet with them in it, in ComfyUI's process, in a skeleton and in a
worker alike, and each worker holds those of its stage.
"""

from __future__ import annotations

import contextlib
import re
import threading
import types
from collections.abc import Iterator
from typing import Any

import comfy.lora
import comfy.model_base
import comfy.model_sampling
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch
from comfy.ldm.modules.attention import CrossAttention, FeedForward
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel, Upsample

from ...errors import InputError
from .layouts import MODEL_PREFIX
from .loading import Loader, building, patching

NUM_HEADS = 8
NUM_GROUPS = 32
NAME = "motion"  # of a motion module among the layers of its block

_PLACE = r"(?:module\.)?((?:down_blocks|up_blocks)\.\d+|mid_block)\.motion_modules\.(\d+)"
_KEY = re.compile(_PLACE + r"\.temporal_transformer\.(.+)")
_LAYER = r"(transformer_blocks\.\d+\.attention_blocks\.\d+)\.(?:processor\.)?(to_[qkv]|to_out)_lora"
_LORA_KEY = re.compile(_PLACE + rf"\.temporal_transformer\.{_LAYER}\.(down|up)\.weight")

# What files of other kinds of AnimateDiff have besides, which needs more than motion modules.
_OTHER_KINDS = {"conv_in.": "PIA", "img_encoder.": "AnimateLCM-I2V", "FancyVideo": "FancyVideo"}

State = dict[str, dict[str, torch.Tensor]]  # by the place in the file


# Modules, with the parameter names of the files ------------------------------------------------


class MotionModule(torch.nn.Module):
    """Attention over the frames, [batch * frames, channels, height, width] to the same.

    Args:
        state: its weights, of which the shapes are taken.
        operations: ComfyUI's layers, as for the rest of the model.
    """

    VARYING = ("num_frames",)  # what an evaluation changes
    num_frames = 1  # of the evaluation that is going on

    def __init__(self, state: dict[str, torch.Tensor], dtype: Any, operations: Any) -> None:
        super().__init__()
        width, channels = state["proj_in.weight"].shape
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("transformer_"))
        kind = {"dtype": dtype, "operations": operations}
        self.norm = operations.GroupNorm(NUM_GROUPS, channels, eps=1e-6, affine=True, dtype=dtype)
        self.proj_in = operations.Linear(channels, width, dtype=dtype)
        self.transformer_blocks = torch.nn.ModuleList(
            _Block(_below(state, f"transformer_blocks.{index}."), width, kind)
            for index in range(depth)
        )
        self.proj_out = operations.Linear(width, channels, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        y = self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        y = self.proj_in(y)
        for block in self.transformer_blocks:
            y = block(y, self.num_frames)
        y = self.proj_out(y).reshape(batch, height, width, channels)
        return x + y.permute(0, 3, 1, 2).contiguous()


class _Block(torch.nn.Module):
    def __init__(self, state: dict[str, torch.Tensor], width: int, kind: dict[str, Any]) -> None:
        super().__init__()
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("norms."))
        lengths = [
            state[f"attention_blocks.{index}.pos_encoder.pe"].shape[1] for index in range(depth)
        ]
        norm = kind["operations"].LayerNorm
        self.attention_blocks = torch.nn.ModuleList(_Attention(width, n, kind) for n in lengths)
        self.norms = torch.nn.ModuleList(norm(width, dtype=kind["dtype"]) for _ in lengths)
        self.ff = FeedForward(width, glu=True, **kind)
        self.ff_norm = norm(width, dtype=kind["dtype"])

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x = x + attention(norm(x), num_frames)
        return x + self.ff(self.ff_norm(x))


class _Attention(CrossAttention):
    def __init__(self, width: int, max_frames: int, kind: dict[str, Any]) -> None:
        super().__init__(width, heads=NUM_HEADS, dim_head=width // NUM_HEADS, **kind)
        table = torch.empty(1, max_frames, width, dtype=kind["dtype"])
        self.pos_encoder = torch.nn.Module()
        self.pos_encoder.pe = torch.nn.Parameter(table, requires_grad=False)

    def forward(self, x: torch.Tensor, num_frames: int) -> torch.Tensor:
        positions: Any = self.pos_encoder.pe  # [1, frames, width]
        if num_frames > positions.shape[1]:
            raise InputError(
                f"The motion module knows {positions.shape[1]} frames, and this batch has "
                f"{num_frames}. Make it shorter, or put Context Windows on the MODEL (dim 0)."
            )
        pixels, width = x.shape[1:]
        y = x.reshape(-1, num_frames, pixels, width).transpose(1, 2)
        y = y.reshape(-1, num_frames, width)  # [batch * pixels, frames, width]
        y = super().forward(y + comfy.ops.cast_to_input(positions[:, :num_frames], y))
        y = y.reshape(-1, pixels, num_frames, width).transpose(1, 2)
        return y.reshape(x.shape)


class MotionUNetModel(UNetModel):
    """A UNet with motion modules. Each cond of a batch is a video of its own."""

    motion_modules: list[MotionModule]

    def _forward(
        self,
        x: torch.Tensor,
        timesteps: Any = None,
        context: Any = None,
        y: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006 - as in the parent
        **kwargs: Any,
    ) -> Any:
        num_conds = max(1, len(transformer_options.get("cond_or_uncond", ())))
        for module in self.motion_modules:
            module.num_frames = x.shape[0] // num_conds
        return super()._forward(x, timesteps, context, y, control, transformer_options, **kwargs)


# Loading ----------------------------------------------------------------------------------------


def with_motion(loader: Loader, path: str) -> Loader:
    """The call that loads what `loader` loads, with the motion modules of the file `path`."""
    function = f"{load.__module__}:{load.__qualname__}"
    return Loader(function, (path, loader.function, loader.index, *loader.args))


def load(path: str, function: str, index: int | None, *args: Any) -> Any:
    """The MODEL's ModelPatcher; see `with_motion`.

    Raises:
        InputError: the file holds no motion modules, or they do not fit the model.
    """
    with _extending(path):
        patcher = Loader(function, args, index).without_paging()
    patcher.model.model_config.__dict__.pop("process_unet_state_dict")  # it held the weights
    patcher.cached_patcher_init = (load, (path, function, index, *args))
    return patcher


def sampling_of(model_config: Any) -> Any:
    """The noise schedule that motion modules were trained with.

    Those for SD 1.5 have betas on a line, those for SDXL SDXL's own up to a larger beta.
    """

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
        pass

    is_sdxl = isinstance(model_config, comfy.supported_models.SDXL)
    # ComfyUI's names of the schedules.
    own = {"linear_end": 0.02} if is_sdxl else {"beta_schedule": "sqrt_linear"}
    settings = {**model_config.sampling_settings, **own}
    return ModelSampling(types.SimpleNamespace(sampling_settings=settings))


def read(path: str) -> State:
    """The motion modules of a file.

    Raises:
        InputError: it holds none, or other things besides.
    """
    state: State = {}
    for key, tensor in comfy.utils.load_torch_file(path, safe_load=True).items():
        match = _KEY.fullmatch(key)
        if match is not None:
            place, number, name = match.groups()
            state.setdefault(f"{place}.{number}", {})[name] = tensor
        elif kind := next(
            (kind for start, kind in _OTHER_KINDS.items() if key.startswith(start)), ""
        ):
            raise InputError(f"{path} is a model of {kind}. {_USABLE}")
        elif "temporal" in key:
            raise InputError(f"{path} has {key!r}, which is no part of a motion module. {_USABLE}")
        # What else there is are the layers of the UNet that it was trained on.
    if not state:
        raise InputError(f"{path} has no motion modules. {_USABLE}")
    return state


_USABLE = "Motion modules of AnimateDiff v1, v2 and v3 for SD 1.5, and those for SDXL, can be used."


def lora_patches(base_model: Any, path: str) -> dict[str, Any]:
    """The weight patches of a motion LoRA, for ModelPatcher.add_patches.

    Args:
        base_model: a BaseModel with motion modules.
        path: the file.

    Raises:
        InputError: the model has no motion modules, or the file is no motion LoRA that fits them.
    """
    unet = base_model.diffusion_model
    if not isinstance(unet, MotionUNetModel):
        raise InputError("This MODEL has no motion modules. Put them into it first.")
    modules = {
        place: f"{name}.{NAME}"
        for place, name, _ in _places(unet)
        if NAME in unet.get_submodule(name)._modules
    }
    changes: dict[str, torch.Tensor] = {}
    targets: dict[str, str] = {}
    for key, tensor in comfy.utils.load_torch_file(path, safe_load=True).items():
        match = _LORA_KEY.fullmatch(key)
        if match is None and "temporal" in key:
            raise InputError(
                f"{path} has {key!r}, which is no part of a motion LoRA for attention."
            )
        if match is None:
            continue  # of the layers for pictures
        part, number, attention, layer, end = match.groups()
        place = f"{part}.{number}"
        if place.startswith("mid_block") and place not in modules:
            continue  # a LoRA for v2 on modules of v1 or v3
        if place not in modules:
            raise InputError(f"{path} does not fit this model: it has no place for {place}.")
        name = f"{modules[place]}.{attention}.{layer}{'.0' if layer == 'to_out' else ''}.weight"
        weight = unet.get_parameter(name)
        if tensor.ndim != 2 or tensor.shape[end == "down"] != weight.shape[end == "down"]:
            raise InputError(f"{path} does not fit this model: {key} has another width.")
        changes[f"{name}.lora_{end}.weight"] = tensor
        targets[name] = f"{MODEL_PREFIX}{name}"
    if len(changes) != 2 * len(targets) or not targets:
        raise InputError(f"{path} is no motion LoRA, or a part of one.")
    patches: dict[str, Any] = comfy.lora.load_lora(changes, targets, log_missing=False)
    return patches


@contextlib.contextmanager
def _extending(path: str) -> Iterator[None]:
    """Put the motion modules of a file into the UNet that is built within this context."""
    owner = threading.get_ident()
    model_class = comfy.model_base.BaseModel
    init = model_class.__init__

    def init_extended(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if threading.get_ident() == owner:
            _extend(self, path)

    with patching:
        model_class.__init__ = init_extended
        try:
            yield
        finally:
            model_class.__init__ = init


def _extend(base_model: Any, path: str) -> None:
    unet, config = base_model.diffusion_model, base_model.model_config
    state = read(path)
    if type(unet) is not UNetModel:
        kind = type(base_model).__name__
        raise InputError(
            f"{path} holds motion modules for SD 1.5 or SDXL, and this model is a {kind}."
        )
    operations = config.custom_operations or comfy.ops.pick_operations(
        config.unet_config.get("dtype"), base_model.manual_cast_dtype, model_config=config
    )
    try:
        with building():
            weights = extend(unet, state, base_model.get_dtype(), operations)
    except ValueError as error:
        raise InputError(f"{path} does not fit this model: {error}.") from error
    convert = config.process_unet_state_dict
    config.process_unet_state_dict = lambda sd: {**convert(sd), **weights}


def extend(unet: Any, state: State, dtype: Any, operations: Any) -> dict[str, torch.Tensor]:
    """Put motion modules with the shapes of `state` into `unet`; their weights, by their new names.

    Raises:
        ValueError: they do not fit.
    """
    state = dict(state)
    weights: dict[str, torch.Tensor] = {}
    modules = []
    for place, name, position in list(_places(unet)):
        if place == "mid_block.0" and place not in state:
            continue  # only v2 has it
        own = state.pop(place, {})
        block = unet.get_submodule(name)
        module = _module(own, place, _width(block), dtype, operations)
        modules.append(module)
        layers = list(block.named_children())
        layers.insert(position, (NAME, module))
        block._modules = dict(layers)
        weights |= {f"{name}.{NAME}.{key}": tensor for key, tensor in own.items()}
    if state:
        raise ValueError(f"it has no place for {', '.join(state)}")
    unet.__class__ = MotionUNetModel
    unet.motion_modules = modules
    return weights


def _module(
    state: dict[str, torch.Tensor], place: str, width: int, dtype: Any, operations: Any
) -> MotionModule:
    try:
        module = MotionModule(state, dtype, operations).eval().requires_grad_(False)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"weights of {place} are missing ({error})") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    own = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if own != shapes:
        names = sorted(name for name, _ in own.items() ^ shapes.items())
        raise ValueError(f"{names[0]} of {place} is missing, unknown or of another shape")
    if module.norm.num_channels != width:
        raise ValueError(f"{place} is for {module.norm.num_channels} channels, not {width}")
    return module


def _width(block: Any) -> int:
    """Channels of what the layers before a motion module give."""
    width: int = next(layer for layer in block if isinstance(layer, ResBlock)).out_channels
    return width


def _places(unet: Any) -> Iterator[tuple[str, str, int]]:
    """Where motion modules go: name in the file, name of the UNet's block, index in it."""
    index = 1  # behind the first convolution
    for level, number in enumerate(unet.num_res_blocks):
        for each in range(number):
            yield f"down_blocks.{level}.{each}", f"input_blocks.{index}", _end(unet, index)
            index += 1
        index += 1  # the downsampling
    yield "mid_block.0", "middle_block", len(unet.middle_block) - 1
    index = 0
    for level, number in enumerate(reversed(unet.num_res_blocks)):
        for each in range(number + 1):
            block = unet.output_blocks[index]
            end = sum(not isinstance(layer, Upsample) for layer in block)
            yield f"up_blocks.{level}.{each}", f"output_blocks.{index}", end
            index += 1


def _end(unet: Any, index: int) -> int:
    return len(unet.input_blocks[index])


def _below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
