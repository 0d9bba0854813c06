"""In a worker: build ComfyUI's model class, and load the weights of one stage into it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import comfy.options

# Workers run on ComfyUI's own command line, which its modules read when they are imported.
comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import torch  # noqa: E402

from ..costs import measure_costs  # noqa: E402
from ..dataflow import require_chain  # noqa: E402
from ..errors import LayoutError  # noqa: E402
from ..partition import Stage, units_of  # noqa: E402
from ..stage import StagedModel  # noqa: E402
from ..trunk import Trunk, drop_parameters, parameter_bytes  # noqa: E402
from . import pickling  # noqa: E402
from .attachments import NoRandomness, expand, names_of, patches_of, unpack  # noqa: E402
from .compilation import Compilation  # noqa: E402
from .hooks import HOOK, StageHooks  # noqa: E402
from .layouts import entry_of, has_layout, layout_of  # noqa: E402
from .loading import Loader, copy_some_weights, deferred_weights, materialise  # noqa: E402
from .skipped_blocks import with_every_unit_called  # noqa: E402

# Below this a parameter keeps the initial value that its class gives it until the file's value
# replaces it, as in ComfyUI; above, it would only cost memory.
MIN_META_NUMEL = 2**16


def spec_of(base_model: Any, loader: Loader) -> dict[str, Any]:
    """What a worker needs to know to make its part of the model that `loader` loads.

    `dtype` and `manual_cast_dtype` are as this process chose them, so that workers on unequal
    devices compute alike.
    """
    config = base_model.model_config
    # In ComfyUI the pack's modules have longer names than in a worker.
    function = loader.function.removeprefix(__package__.removesuffix("asyncdiff_core.host"))
    return {
        "loader": (function, loader.args, loader.index),
        "dtype": config.unet_config.get("dtype"),
        "manual_cast_dtype": config.manual_cast_dtype,
    }


class ComfyStageModel:
    """worker.StageModel for ComfyUI's models.

    Args:
        spec: see `spec_of`.
        device: where the stage computes.
    """

    def __init__(self, spec: dict[str, Any], device: torch.device) -> None:
        self._loader = Loader(*spec["loader"])
        self._dtype, self._manual_cast_dtype = spec["dtype"], spec["manual_cast_dtype"]
        self._device = device
        self._patcher: Any = None
        self._attached: dict[str, dict[str, Any]] = {}
        self._hooks = StageHooks()
        self._contents: dict[str, bytes] = {}  # what was attached, as bytes
        self._stage: Stage = ()
        self._compilation: Compilation | None = None
        self.staged: StagedModel

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[float]:
        """Cost of each unit for these inputs, from one forward on the meta device.

        Raises:
            LayoutError: the architecture has no layout, and its blocks are no pipeline.
        """
        with deferred_weights(configure=self._configure):
            model = self._loader.without_paging().model.diffusion_model
        trunk = Trunk.of(model, layout_of(model))
        entry = entry_of(model)
        with _attention_on_meta():
            if not has_layout(model):
                require_chain(model, trunk, args, kwargs, entry=entry)
            return measure_costs(
                model, trunk, args, kwargs, entry=entry, device_type=self._device.type
            )

    def load(self, stage: Stage) -> tuple[int, int]:
        """Load the units of `stage` and the parts outside the trunk to the device."""
        self.unload()
        trunk: Trunk | None = None
        held = frozenset(units_of(stage))

        def read(base_model: Any, copy_weights: Callable[[], Any]) -> None:
            nonlocal trunk
            model = base_model.diffusion_model
            trunk = Trunk.of(model, layout_of(model))
            foreign = [unit for index, unit in enumerate(trunk.units) if index not in held]
            drop_parameters(unit.module for unit in foreign)
            materialise(model)
            prefixes = tuple(f"{unit.name}." for unit in foreign)
            copy_some_weights(base_model, copy_weights, lambda key: not key.startswith(prefixes))

        with deferred_weights(read, self._configure, MIN_META_NUMEL):
            patcher = self._loader.without_paging()
        assert trunk is not None
        model = patcher.model.diffusion_model
        patcher.load_device = self._device
        patcher.patch_model(device_to=self._device)
        self._patcher, self._stage = patcher, stage
        self._put_attachments_in(model)
        self.staged = StagedModel(model, trunk, entry_of(model))
        owned = parameter_bytes(trunk.units[index].module for index in held)
        return owned, parameter_bytes([model]) - owned

    def unload(self) -> None:
        """Give the memory of the weights back."""
        self._patcher = self._compilation = None
        self.__dict__.pop("staged", None)
        gc.collect()
        comfy.model_management.soft_empty_cache()

    def patch(self, payload: Any) -> None:
        """Put the weight patches of `payload` in force, with ComfyUI's own code."""
        patcher = self._patcher
        patcher.unpatch_model(device_to=None)  # restores the original weights exactly
        patcher.patches = pickling.unpack(payload, self._device)
        patcher.patch_model(device_to=self._device)

    def compile(self, payload: Any) -> None:
        """Compile the stage, see compilation.py."""
        if self._compilation is not None:
            self._compilation.undo()
            self._compilation = None
        if payload is not None:
            model = self._patcher.model.diffusion_model
            self._compilation = Compilation(payload, self.staged, model, self._stage)

    def attach(self, key: str, payload: Any) -> None:
        """Keep patches that are code (attachments.py), or the weights of a hook (hooks.py)."""
        if key.startswith(HOOK):
            self._hooks.add(key, pickling.unpack(payload, self._device))
        else:
            code = unpack(payload, self._device)
            with_every_unit_called(code, lambda: self.staged)
            self._attached[key] = code
            self._contents[key] = payload[0]

    def forget_attached(self) -> None:
        """Drop what was attached."""
        self._attached.clear()
        self._contents.clear()
        self._hooks.forget(self._patcher)
        if self._compilation is not None:
            self._compilation.end_run()

    def _put_attachments_in(self, model: torch.nn.Module) -> None:
        """Have the model's entry method find the attached patches in its transformer_options."""
        entry = entry_of(model)
        original = getattr(model, entry)

        def with_attached(*args: Any, **kwargs: Any) -> Any:
            if self._compilation is not None:
                self._compilation.use(patches_of((args, kwargs), self._contents))
            (args, kwargs), code, hooks = expand((args, kwargs), self._attached)
            self._hooks.apply(self._patcher, hooks)
            if not code:
                return original(*args, **kwargs)
            try:
                with NoRandomness(code, self._device):
                    return original(*args, **kwargs)
            except LayoutError as error:
                raise LayoutError(
                    f"{error} The patches of this MODEL are {'; '.join(names_of(code))}."
                ) from error

        setattr(model, entry, with_attached)

    def _configure(self, model_config: Any) -> None:
        model_config.unet_config["dtype"] = self._dtype
        model_config.manual_cast_dtype = self._manual_cast_dtype


@contextlib.contextmanager
def _attention_on_meta() -> Iterator[None]:
    """Let ComfyUI's attention run on meta tensors: it asks how much memory the device has."""
    management = comfy.model_management
    original = management.get_free_memory

    def get_free_memory(dev: Any = None, torch_free_too: bool = False) -> Any:
        if getattr(dev, "type", None) != "meta":
            return original(dev, torch_free_too)
        return (2**40, 2**40) if torch_free_too else 2**40

    management.get_free_memory = get_free_memory
    try:
        yield
    finally:
        management.get_free_memory = original


def build(spec: dict[str, Any], device: torch.device) -> ComfyStageModel:
    """The builder that workers call."""
    return ComfyStageModel(spec, device)
