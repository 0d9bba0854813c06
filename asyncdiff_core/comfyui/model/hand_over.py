"""MODELs that no file has as they are: their weights are handed over.

Loaders of packs that make a MODEL from tensors (converted, merged, unpacked by themselves) leave no
word of where those come from, and some packs alter weights in place. The weights are then written
to a file that ends with the model, and ComfyUI's own classes load it: in each worker, which takes
its units, and for the skeleton. What they make of it is compared with the MODEL.
"""

from __future__ import annotations

import copy
import secrets
import weakref
from collections.abc import Iterator
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch
from safetensors.torch import load_file

from ...errors import LoaderError, NotPlainError, few
from ...log import get_logger
from ...wire.plain import require_plain
from .loading import Loader, State
from .samples import WeightSamples
from .weights_file import WeightsFile

log = get_logger()

UNET = "model.diffusion_model."  # what names of the diffusion model begin with in the file

# What was handed over of a model, and how its weights were then; lives as long as it.
_loaders: weakref.WeakKeyDictionary[Any, tuple[WeightSamples, Loader]] = weakref.WeakKeyDictionary()
_files: weakref.WeakValueDictionary[str, WeightsFile] = weakref.WeakValueDictionary()

# The class of a model's configuration, the name of its ModelType, and its settings.
Description = tuple[str, str, tuple[tuple[str, Any], ...]]
_SETTINGS = {"unet_config", "sampling_settings", "optimizations", "quant_config"}
_SETTINGS |= {"manual_cast_dtype", "memory_usage_factor"}

# The attribute of a BaseModel that owns its file.
_FILE = "asyncdiff_file"


def loader_of(patcher: Any, samples: WeightSamples) -> Loader:
    """The call that loads what `patcher` was before it was patched.

    It is its own, or, where workers can't make that, one that reads what this process hands over.

    Raises:
        LoaderError: there is none.
    """
    try:
        return Loader.of(patcher)
    except LoaderError as error:
        try:
            return hand_over(patcher, samples)
        except LoaderError as reason:
            raise LoaderError(f"{error} (Its weights cannot be handed over: {reason}.)") from error


def is_handed_over(loader: Loader) -> bool:
    """Whether `loader` reads what was handed over."""
    return loader.function == _LOAD


def hand_over(patcher: Any, samples: WeightSamples) -> Loader:
    """The call that loads the weights that `patcher`, a stock MODEL, has now, without its patches.

    Args:
        patcher: the MODEL.
        samples: of its weights.

    Raises:
        LoaderError: they cannot be handed over.
    """
    # Takes LoRAs out, also for the comparison.
    comfy.model_management.unload_model_and_clones(patcher)
    known = _loaders.get(patcher.model)
    if known is None or known[0] != samples:
        known = _loaders[patcher.model] = samples, _hand_over(patcher)
    return known[1]


def _hand_over(patcher: Any) -> Loader:
    base_model = patcher.model
    if type(patcher).__module__ != comfy.model_patcher.__name__:
        raise LoaderError(f"it is a {type(patcher).__name__}, which is not ComfyUI's own")
    state = base_model.diffusion_model.state_dict()
    unknown = [
        key for key, value in state.items() if type(value) not in (torch.Tensor, torch.nn.Parameter)
    ]
    if unknown:
        raise LoaderError(f"{few(unknown)} are in a format of a pack's own")
    description = _description(base_model)
    besides = base_model.state_dict_for_saving({})
    weights = {f"{UNET}{key}": value for key, value in state.items()}
    file = WeightsFile({**weights, **besides})
    setattr(base_model, _FILE, file)
    _files[file.path] = file
    log.info(
        "%s: workers get weights from this process, since no file has them as they are",
        type(base_model).__name__,
    )
    # Another model's file may have the same path later.
    arguments = file.path, secrets.token_hex(8), description
    return Loader(_LOAD, arguments)


def _description(base_model: Any) -> Description:
    """From what ComfyUI makes such a BaseModel.

    Raises:
        LoaderError: a pack's own code is in it.
    """
    config = base_model.model_config
    kind = type(config)
    if kind.__module__ != comfy.supported_models.__name__ or config.custom_operations is not None:
        raise LoaderError("it has a configuration or layers of a pack's own")
    settings = {name: value for name, value in vars(config).items() if name in _SETTINGS}
    description = kind.__qualname__, base_model.model_type.name, tuple(settings.items())
    try:
        require_plain(description)
    except NotPlainError as error:
        raise LoaderError(str(error)) from error
    return description


def load(path: str, token: str, description: Description, disable_dynamic: bool = True) -> Any:
    """Load what was handed over.

    Args:
        path: of the file.
        token: tells it from others that had this path.
        description: see `_description`.
        disable_dynamic: ComfyUI asks for MODELs that do not page; these never do.

    Returns:
        The MODEL's ModelPatcher.
    """
    kind, model_type, settings = description
    config = getattr(comfy.supported_models, kind)(dict(settings)["unet_config"])
    for name, value in settings:
        setattr(config, name, copy.deepcopy(value))
    # It was found in the file that the pack has read, and not all that tells it can be saved.
    config.model_type = lambda *_: comfy.model_base.ModelType[model_type]
    state: State = load_file(path)
    base_model = config.get_model(state, UNET)
    del config.model_type
    management = comfy.model_management
    devices = {
        "load_device": management.get_torch_device(),
        "offload_device": management.unet_offload_device(),
    }
    patcher = comfy.model_patcher.ModelPatcher(base_model, **devices)
    base_model.load_model_weights(state, UNET)
    patcher.cached_patcher_init = (load, (path, token, description))
    if path in _files:  # in ComfyUI's process
        setattr(base_model, _FILE, _files[path])
    return patcher


_LOAD = f"{load.__module__}:{load.__qualname__}"


class Comparison:
    """A MODEL whose weights were handed over, beside what is loaded of them.

    Args:
        patcher: the MODEL.
    """

    def __init__(self, patcher: Any) -> None:
        self._base_model = patcher.model
        self._state: State = dict(patcher.model.diffusion_model.state_dict())
        self._wrong: list[str] = []

    def see(self, key: str, tensor: torch.Tensor) -> None:
        """A tensor that is loaded, by its name in the diffusion model."""
        expected = self._state.pop(key, None)
        if expected is None or not _are_same_bits(expected, tensor):
            self._wrong.append(key)

    def require_same(self, base_model: Any) -> None:
        """See that `base_model`, all of whose tensors were seen, is the same model.

        Raises:
            LoaderError: it is another one.
        """
        wrong = [*self._wrong, *self._state]
        wrong += _differing(_traits(self._base_model), _traits(base_model))
        ours, theirs = (
            {key: (value.shape, value.dtype) for key, value in model.named_parameters()}
            for model in (self._base_model.diffusion_model, base_model.diffusion_model)
        )
        wrong += _differing(ours, theirs)
        if wrong:
            raise LoaderError(
                f"No file that workers could read has this {type(self._base_model).__name__} as "
                "it is, and what ComfyUI's own classes make of its weights is another model "
                f"({few(wrong)}). Use one of ComfyUI's own loaders, or the MODEL without AsyncDiff."
            )


def _are_same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    first, second = (x.detach().to("cpu").contiguous().view(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(first, second)  # of numbers that are none as well


def _differing(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    return (key for key in {**a, **b} if key not in a or key not in b or a[key] != b[key])


def _traits(base_model: Any) -> dict[str, Any]:
    """What a BaseModel is, apart from its weights."""
    config, sampling = base_model.model_config, base_model.model_sampling
    plain = (int, float, str, bool, type(None))
    parts = {"latent_format": base_model.latent_format, "model_sampling": sampling}
    return {
        "its class": type(base_model),
        "its type": base_model.model_type,
        "its configuration": (type(config), config.unet_config),
        "its type of computation": base_model.manual_cast_dtype,
        "its latent format": type(base_model.latent_format),
        "model_sampling": [
            f"{kind.__module__}.{kind.__qualname__}" for kind in type(sampling).mro()
        ],
        **{
            f"{part}.{name}": value
            for part, its in parts.items()
            for name, value in vars(its).items()
            if isinstance(value, plain)
        },
        **{f"model_sampling.{k}": v.tolist() for k, v in sampling.named_buffers()},
    }
