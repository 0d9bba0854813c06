"""Run ComfyUI's own loaders without reading the weights of the diffusion model.

Detection, conversion of key names, choice of dtype and construction stay ComfyUI's. While
`deferred_weights` is active in a thread, parameters of the models that it builds are on the meta
device, and `BaseModel.load_model_weights` calls a function of ours instead of copying tensors.
Safetensors files are memory-mapped, so nothing but their headers is read.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import comfy.model_base
import comfy.model_management
import torch

from ..errors import LoaderError
from ..frames import require_plain

Reader = Callable[[Any, Callable[[], Any]], None]

# Held while methods of ComfyUI's classes are replaced.
patching = threading.RLock()


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
        if type(patcher).__name__ == "GGUFModelPatcher":
            raise LoaderError(
                f"This {type(patcher.model).__name__} comes from a GGUF file, by the nodes of "
                "ComfyUI-GGUF. Worker processes cannot read it. Load the same model as safetensors "
                "with Load Diffusion Model (weight_dtype fp8_e4m3fn where memory is short), or "
                "remove the AsyncDiff nodes."
            )
        if init is None:
            raise LoaderError(
                f"The loader of this {type(patcher.model).__name__} does not tell which file it "
                "read, so worker processes cannot load their parts. Use one of ComfyUI's own "
                "loaders (Load Checkpoint, Load Diffusion Model) or AsyncDiff's."
            )
        function, args, *index = init
        name = f"{function.__module__}:{function.__qualname__}"
        try:
            require_plain(args)
        except pickle.PickleError as error:
            raise LoaderError(
                f"The loader of this {type(patcher.model).__name__} was called with something that "
                f"cannot be sent to worker processes ({error}). Use one of ComfyUI's own loaders "
                "(Load Checkpoint, Load Diffusion Model) or AsyncDiff's."
            ) from error
        return cls(name, tuple(args), index[0] if index else None)

    def __call__(self, **kwargs: Any) -> Any:
        """Load; the MODEL's ModelPatcher."""
        module, _, name = self.function.rpartition(":")
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        accepted = inspect.signature(function).parameters
        result = function(*self.args, **{k: v for k, v in kwargs.items() if k in accepted})
        return result if self.index is None else result[self.index]

    def without_paging(self) -> Any:
        """Load as a plain ModelPatcher, not as one that pages its weights from a file."""
        return self(disable_dynamic=True)


@contextlib.contextmanager
def deferred_weights(
    read: Reader | None = None, configure: Callable[[Any], None] | None = None, min_numel: int = 0
) -> Iterator[None]:
    """Build models on the meta device within this context, in this thread.

    Args:
        read: called with each BaseModel and the call that copies its weights; by default nothing
            is copied.
        configure: called with the model configuration before the model is built from it.
        min_numel: smaller parameters stay real, with their initial values.
    """
    owner = threading.get_ident()
    model_class = comfy.model_base.BaseModel
    management = comfy.model_management
    register, init = torch.nn.Module.register_parameter, model_class.__init__
    load = model_class.load_model_weights

    def is_ours() -> bool:
        return threading.get_ident() == owner

    def register_on_meta(self: Any, name: str, parameter: Any) -> None:
        if is_ours() and parameter is not None and parameter.numel() >= min_numel:
            parameter = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(self, name, parameter)

    def init_configured(self: Any, model_config: Any, *args: Any, **kwargs: Any) -> None:
        if is_ours() and configure is not None:
            configure(model_config)
        init(self, model_config, *args, **kwargs)

    def load_deferred(self: Any, sd: Any, unet_prefix: str = "", *args: Any, **kwargs: Any) -> Any:
        if not is_ours():
            return load(self, sd, unet_prefix, *args, **kwargs)
        if read is not None:
            read(self, lambda: load(self, sd, unet_prefix))
        for key in [key for key in sd if key.startswith(unet_prefix)]:
            del sd[key]  # as the original does, for the loader reports what is left
        return self

    def stay_on_cpu(original: Callable[..., Any]) -> Callable[..., Any]:
        def device(*args: Any, **kwargs: Any) -> Any:
            return torch.device("cpu") if is_ours() else original(*args, **kwargs)

        return device

    with patching, contextlib.ExitStack() as stack:

        def replace(target: Any, name: str, value: Any) -> None:
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, value)

        replace(torch.nn.Module, "register_parameter", register_on_meta)
        replace(model_class, "__init__", init_configured)
        replace(model_class, "load_model_weights", load_deferred)
        # A GPU that has more room than the host would otherwise get the whole model at once.
        for name in ("unet_inital_load_device", "unet_offload_device"):
            replace(management, name, stay_on_cpu(getattr(management, name)))
        yield


def copy_some_weights(
    base_model: Any, copy_weights: Callable[[], Any], is_wanted: Callable[[str], bool]
) -> None:
    """Run `copy_weights` for the keys, relative to the diffusion model, that are wanted."""
    config = base_model.model_config
    convert = config.process_unet_state_dict
    config.process_unet_state_dict = lambda sd: {
        key: value for key, value in convert(sd).items() if is_wanted(key)
    }
    log = logging.getLogger()  # ComfyUI's
    log.addFilter(_is_about_something)
    try:
        copy_weights()
    finally:
        log.removeFilter(_is_about_something)
        config.process_unet_state_dict = convert


def _is_about_something(record: logging.LogRecord) -> bool:
    """Not ComfyUI's warning that keys are missing, which are those that were not wanted."""
    return not str(record.msg).startswith("unet missing")


def materialise(model: torch.nn.Module) -> None:
    """Real memory for the parameters that are still on meta."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = torch.nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False
                )
