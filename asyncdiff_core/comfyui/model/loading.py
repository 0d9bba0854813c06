"""Run ComfyUI's own loaders without reading the weights of the diffusion model.

Detection, conversion of key names, choice of dtype and construction stay ComfyUI's. While
`deferred_weights` is active in a thread, the diffusion models that it builds have their parameters
on the meta device, and a function of ours decides what `BaseModel.load_model_weights` loads into
them. It is ComfyUI that loads, so that quantised layers become what they are in ComfyUI.
Safetensors files are memory-mapped, so nothing but their headers is read of what is left out.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.memory_management
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import torch

from ...errors import CheckpointError, LoaderError, NotPlainError, few, short_name, text_of
from ...wire.plain import require_plain
from .replaced import is_what_it_says

State = dict[str, torch.Tensor]
# (BaseModel, the call that loads its weights)
LoadWeights = Callable[[Any, Callable[[], Any]], None]
# (name in the diffusion model, tensor of the file, the model's own that it replaces) -> what is
# loaded for it; None leaves it out. Quantised layers have no tensor of their own yet.
Choose = Callable[[str, torch.Tensor, torch.Tensor | None], torch.Tensor | None]

# The key, in the state dict of a quantised layer, whose value says how it is quantised.
QUANTISATION = "comfy_quant"

# Held while methods of ComfyUI's classes are replaced.
patching = threading.RLock()

_thread = threading.local()  # min_numel, while weights are deferred in this thread


@dataclass(frozen=True)
class Loader:
    """A call that loads a MODEL, as ComfyUI's loaders leave it in `cached_patcher_init`.

    Attributes:
        function: ``module:qualified.name``.
        args: its arguments; plain data, so that a worker can make the same call.
        index: which element of its result is the MODEL, if it returns several.
    """

    function: str
    args: tuple[Any, ...]
    index: int | None = None

    @classmethod
    def of(cls, patcher: Any) -> Loader:
        """The call that loaded `patcher`.

        Raises:
            LoaderError: its loader does not tell.
        """
        init = getattr(patcher, "cached_patcher_init", None)
        if init is None and type(patcher).__name__ == "GGUFModelPatcher":
            raise LoaderError(
                f"This {type(patcher.model).__name__} comes from a GGUF file, by a node that does "
                "not tell which. Use Unet Loader (GGUF) of ComfyUI-GGUF; load the same model as "
                "safetensors with Load Diffusion Model (weight_dtype fp8_e4m3fn where memory is "
                "short); or use the MODEL without AsyncDiff."
            )
        if init is None:
            raise LoaderError(
                f"The loader of this {type(patcher.model).__name__} does not tell which file it "
                "read, so worker processes cannot load their parts. Use one of ComfyUI's own "
                "loaders (Load Checkpoint, Load Diffusion Model), or the MODEL without AsyncDiff."
            )
        function, args, *index = init
        if not is_what_it_says(function):
            raise LoaderError(
                f"The loader of this {type(patcher.model).__name__} "
                f"({getattr(function, '__qualname__', function)}) was replaced by a node pack, so "
                "worker processes might load something else. Use the MODEL without AsyncDiff."
            )
        name = f"{function.__module__}:{function.__qualname__}"
        if "<locals>" in name:
            raise LoaderError(
                f"The loader of this {type(patcher.model).__name__} ({name}) is a function within "
                "another one, which worker processes cannot import. Use one of ComfyUI's own "
                "loaders (Load Checkpoint, Load Diffusion Model), or the MODEL without AsyncDiff."
            )
        try:
            require_plain(args)
        except NotPlainError as error:
            raise LoaderError(
                f"The loader of this {type(patcher.model).__name__} was called with something that "
                f"cannot be sent to worker processes ({error}). Use one of ComfyUI's own loaders "
                "(Load Checkpoint, Load Diffusion Model), or the MODEL without AsyncDiff."
            ) from error
        return cls(name, tuple(args), index[0] if index else None)

    def __call__(self, **kwargs: Any) -> Any:
        """Load; the MODEL's ModelPatcher."""
        module, _, name = self.function.rpartition(":")
        try:
            function: Any = importlib.import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
        except Exception as error:
            raise LoaderError(
                f"This MODEL was loaded by {name} of {short_name(module)}, which worker processes "
                f"cannot import ({text_of(error)}). Use one of ComfyUI's own loaders, or the MODEL "
                "without AsyncDiff."
            ) from error
        accepted = inspect.signature(function).parameters
        result = function(*self.args, **{k: v for k, v in kwargs.items() if k in accepted})
        return result if self.index is None else result[self.index]

    def without_paging(self) -> Any:
        """Load as a plain ModelPatcher, not as one that pages its weights from a file."""
        return self(disable_dynamic=True)


@contextlib.contextmanager
def deferred_weights(
    load: LoadWeights, configure: Callable[[Any], None] | None = None, min_numel: int = 0
) -> Iterator[None]:
    """Build diffusion models on the meta device within this context, in this thread.

    What a BaseModel has besides its diffusion model is made and filled as ever.

    Args:
        load: called with each BaseModel and the call that loads its weights, in place of that.
        configure: called with the model configuration before the model is built from it.
        min_numel: smaller parameters stay real, with the initial values that their class gives.
    """
    owner = threading.get_ident()
    model_class = comfy.model_base.BaseModel
    management = comfy.model_management
    init, load_whole = model_class.__init__, model_class.load_model_weights
    signature = inspect.signature(init)

    def is_ours() -> bool:
        return threading.get_ident() == owner

    def init_deferred(*args: Any, **kwargs: Any) -> None:
        if not is_ours():
            init(*args, **kwargs)
            return
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if configure is not None:
            configure(bound.arguments["model_config"])
        build = bound.arguments["unet_model"]

        def build_on_meta(*args: Any, **kwargs: Any) -> Any:
            with building():
                return build(*args, **kwargs)

        bound.arguments["unet_model"] = build_on_meta
        # Layers that may be quantised move what is loaded to the device that they are given. The
        # loaders of checkpoints give one, and nothing can be moved from the meta device.
        bound.arguments["device"] = None
        init(*bound.args, **bound.kwargs)

    def load_deferred(self: Any, sd: Any, unet_prefix: str = "", *args: Any, **kwargs: Any) -> Any:
        if not is_ours():
            return load_whole(self, sd, unet_prefix, *args, **kwargs)
        load(self, lambda: load_whole(self, sd, unet_prefix))
        return self

    def stay_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
        def device(*args: Any, **kwargs: Any) -> Any:
            return torch.device("cpu") if is_ours() else original(*args, **kwargs)

        return device

    with patching, contextlib.ExitStack() as stack:

        def replace(target: Any, name: str, value: Any) -> None:
            if hasattr(target, name):  # not every version of ComfyUI has all of them
                stack.callback(setattr, target, name, getattr(target, name))
                setattr(target, name, value)

        replace(model_class, "__init__", init_deferred)
        replace(model_class, "load_model_weights", load_deferred)
        # A GPU that has more room than the host would otherwise get the whole model at once.
        for name in ("unet_inital_load_device", "unet_offload_device"):
            replace(management, name, stay_on_cpu(getattr(management, name)))
        # With dynamic VRAM layers have no weights before their file is read, nor is it mapped.
        replace(comfy.memory_management, "aimdo_enabled", False)
        replace(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        stack.callback(setattr, _thread, "min_numel", getattr(_thread, "min_numel", None))
        _thread.min_numel = min_numel
        yield


@contextlib.contextmanager
def building() -> Iterator[None]:
    """Parameters made in here are a diffusion model's, and go to meta if weights are deferred."""
    min_numel, owner = getattr(_thread, "min_numel", None), threading.get_ident()
    if min_numel is None:
        yield
        return

    def on_meta(_: Any, __: str, parameter: Any) -> Any:
        if threading.get_ident() != owner or parameter is None or parameter.numel() < min_numel:
            return None  # it stays as it is
        return torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    registration = torch.nn.modules.module.register_module_parameter_registration_hook(on_meta)
    try:
        yield
    finally:
        registration.remove()


def load_chosen(base_model: Any, load_whole: Callable[[], Any], choose: Choose) -> None:
    """Have ComfyUI load what `choose` gives, by the names in the diffusion model, in place of each
    tensor of the file."""
    model, config = base_model.diffusion_model, base_model.model_config
    convert, load = config.process_unet_state_dict, model.load_state_dict

    def converted(sd: State) -> State:
        sd = convert(sd)
        likes = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        chosen: State = {}
        for key, tensor in sd.items():
            layer, _, name = key.rpartition(".")
            is_quantised = name == "weight" and f"{layer}.{QUANTISATION}" in sd
            value = choose(key, tensor, None if is_quantised else likes.get(key))
            if value is not None:
                chosen[key] = value
        return chosen

    config.process_unet_state_dict = converted
    model.load_state_dict = lambda sd, strict=True, assign=True: load(sd, strict, assign=True)
    try:
        load_whole()
    finally:
        config.process_unet_state_dict = convert
        del model.load_state_dict


def is_packed(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is of a pack's own class, and its bytes are not the numbers of its shape."""
    return hasattr(tensor, "tensor_shape")


def as_meta(tensor: torch.Tensor, like: torch.Tensor | None) -> torch.Tensor:
    """`tensor` without its values, as a model has it whose own is `like`."""
    if like is None and is_packed(tensor):
        return tensor.to("meta")
    dtype = tensor.dtype if like is None else like.dtype
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def as_loaded(
    tensor: torch.Tensor,
    like: torch.Tensor | None,
    *,
    copy: bool = True,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """`tensor`, of a file, with the type and the memory format of `like`, which it replaces.

    Args:
        tensor: what the file has.
        like: what the model has; None if it has nothing of the kind.
        copy: a copy, where ComfyUI would make one.
        device: where a copy is made.
    """
    # Layers that may be quantised take a part of the mapped file as their weight. Where it begins
    # is seen in the last bits of what a CPU computes. And wrong shapes are ComfyUI's to complain.
    if like is None or like.shape != tensor.shape:
        return tensor
    if not copy and (like.dtype, like.stride()) == (tensor.dtype, tensor.stride()):
        return tensor
    return torch.empty_like(like, device=device).copy_(tensor)


def is_zero(tensor: torch.Tensor) -> bool:
    """Whether all values are zeros; of a quantised tensor, those that it stores."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        tensor = getattr(tensor, flatten()[0][0])
    if not tensor.is_contiguous():
        tensor = tensor.contiguous()
    # As bytes, since not every type knows how; most have others among the first.
    values = tensor.detach().view(-1).view(torch.uint8)
    return not bool(values[:4096].any()) and not bool(values.any())


@contextlib.contextmanager
def absent(model: torch.nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Submodules `names` of `model` without parameters: what is loaded in here passes them over."""
    modules = {name: model.get_submodule(name) for name in names}

    def put(name: str, module: torch.nn.Module) -> None:
        parent, _, last = name.rpartition(".")
        model.get_submodule(parent)._modules[last] = module

    for name in modules:
        put(name, torch.nn.Module())
    try:
        yield
    finally:
        for name, module in modules.items():
            put(name, module)
            for part in module.modules():
                # ComfyUI's layers that may be quantised have no weight before one is loaded.
                if hasattr(part, "comfy_cast_weights") and not hasattr(part, "weight"):
                    part.register_parameter("weight", None)


def as_unquantised(model: torch.nn.Module) -> None:
    """Make the quantised weights of `model`, which is on meta, those of ordinary layers."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            is_quantised = hasattr(parameter, "__tensor_flatten__")
            if is_quantised or is_packed(parameter):
                dtype = parameter.dtype if is_quantised else torch.float32
                plain = torch.empty(tuple(parameter.shape), dtype=dtype, device="meta")
                module._parameters[name] = torch.nn.Parameter(plain, requires_grad=False)
            if is_quantised:
                module.__dict__.update(layout_type=None, quant_format=None)


def require_loaded(modules: Mapping[str, torch.nn.Module]) -> None:
    """See that `modules`, by their names, have all their weights.

    Raises:
        CheckpointError: the file lacks some; three are named.
    """
    lacking = [
        f"{name}.{key}" if name else key
        for name, module in modules.items()
        for key, parameter in module.named_parameters()
        if parameter.is_meta
    ]
    if lacking:
        raise CheckpointError(
            f"The file lacks weights ({few(lacking)}), so ComfyUI would compute with whatever is "
            "in memory. Download it again, or another one."
        )
