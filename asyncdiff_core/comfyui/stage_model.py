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
import psutil  # noqa: E402
import torch  # noqa: E402
from torch.utils import _pytree as pytree  # noqa: E402

from ..algorithm.stage import StagedModel  # noqa: E402
from ..algorithm.stages import Stage, units_of  # noqa: E402
from ..algorithm.trunk import Trunk, drop_parameters, parameter_bytes  # noqa: E402
from ..errors import LayoutError, NumbersError, UnsupportedPatchError, few  # noqa: E402
from ..planning.chain_check import require_chain  # noqa: E402
from ..planning.costs import measure_costs  # noqa: E402
from .model import plain_objects  # noqa: E402, F401  (has them cross)
from .model.kept_tokens import keep_no_tokens  # noqa: E402
from .model.layouts import (  # noqa: E402
    MODEL_PREFIX,
    entry_of,
    has_layout,
    layout_of,
    left_out_of,
)
from .model.loading import (  # noqa: E402
    QUANTISATION,
    Loader,
    absent,
    as_meta,
    as_unquantised,
    deferred_weights,
    is_zero,
    load_chosen,
    require_loaded,
)
from .model.streaming import Streaming  # noqa: E402
from .patches import packs, pickling  # noqa: E402
from .patches.block_patches import with_every_unit_called  # noqa: E402
from .patches.code_patches import (  # noqa: E402
    FUNCTIONS,
    OBJECTS,
    NoRandomness,
    expand,
    key_of,
    names_of,
    patches_of,
    unpack,
)
from .patches.compilation import Compilation  # noqa: E402
from .patches.flags import with_flags  # noqa: E402
from .patches.flowing import Flow, flow_of  # noqa: E402
from .patches.object_patches import PatchedObjects  # noqa: E402
from .patches.patch_models import with_no_useless_work  # noqa: E402
from .patches.weight_hooks import HOOK, StageHooks  # noqa: E402
from .patches.weight_patches import put_in_force, take_out_of_force  # noqa: E402

# Below this a parameter keeps the initial value that its class gives it until the file's value
# replaces it, as in ComfyUI; above, it would only cost memory.
MIN_META_NUMEL = 2**16

# Of the memory that is free, the most that weights that left their device may take.
RAM_SHARE = 0.5


class ComfyStageModel:
    """workers.StageModel for ComfyUI's models.

    Args:
        spec: see `launch.spec_of`.
        device: where the stage computes.
    """

    def __init__(self, spec: dict[str, Any], device: torch.device) -> None:
        packs.add(dict(spec["packs"]))
        self._loader = Loader(*spec["loader"])
        self._dtype, self._manual_cast_dtype = spec["dtype"], spec["manual_cast_dtype"]
        self._device = device
        self._patcher: Any = None
        self._kept: dict[str, dict[str, Any]] = {}
        self._flows: dict[str | None, Flow | None] = {}  # of what was kept
        self._hooks = StageHooks()
        self._contents: dict[str, bytes] = {}  # what was kept, as bytes
        # Of what was kept, object patches and functions.
        self._replacements: dict[str | None, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._patched: PatchedObjects | None = None
        self._stage: Stage = ()
        self._streaming = Streaming(device, None)
        self._budget: int | None = None
        # What weights that have left the device, and are in the host's memory, are of.
        self._waiting: tuple[Stage, int | None] | None = None
        self._not_zero: set[str] = set()  # names of weights, as they were loaded
        self._compilation: Compilation | None = None
        self.staged: StagedModel

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[float]:
        """Cost of each unit for these inputs, from one forward on the meta device.

        Raises:
            LayoutError: the architecture has no layout, and its blocks are no pipeline.
        """

        def load(base_model: Any, load_whole: Callable[[], Any]) -> None:
            def choose(
                key: str, tensor: torch.Tensor, like: torch.Tensor | None
            ) -> torch.Tensor | None:
                return tensor if key.endswith(QUANTISATION) else as_meta(tensor, like)

            load_chosen(base_model, load_whole, choose)

        with deferred_weights(load, self._configure):
            model = self._loader.without_paging().model.diffusion_model
        as_unquantised(model)
        keep_no_tokens(model)
        trunk = Trunk.of(model, layout_of(model))
        entry = entry_of(model)
        with _attention_on_meta():
            if not has_layout(model):
                require_chain(model, trunk, args, kwargs, entry=entry)
            return measure_costs(
                model, trunk, args, kwargs, entry=entry, device_type=self._device.type
            )

    def can_import(self, module: str, root: str, file: str) -> bool:
        """Import a module of a node pack, see packs.py."""
        packs.add({root: file})
        return packs.can_import(module)

    def load(self, stage: Stage, budget: int | None) -> tuple[int, int, int]:
        """Load the units of `stage` and the parts outside the trunk to the device."""
        if self._waiting is not None and self._waiting == (stage, budget):
            self._waiting = None
            self._streaming.patch(self._patcher)
            return self._bytes()
        self.unload()
        streaming = Streaming(self._device, budget)
        trunk: Trunk | None = None
        held = frozenset(units_of(stage))
        not_zero: set[str] = set()

        def load(base_model: Any, load_whole: Callable[[], Any]) -> None:
            nonlocal trunk
            model = base_model.diffusion_model
            trunk = Trunk.of(model, layout_of(model))
            foreign = [unit.name for index, unit in enumerate(trunk.units) if index not in held]
            foreign += left_out_of(model)
            drop_parameters(map(model.get_submodule, foreign))
            prefixes = tuple(f"{name}." for name in foreign)

            def choose(
                key: str, tensor: torch.Tensor, like: torch.Tensor | None
            ) -> torch.Tensor | None:
                if key.startswith(prefixes):
                    return None
                value = streaming.value(model, key, tensor, like)
                if not is_zero(value):  # as it is loaded: small numbers may be zeros of its type
                    not_zero.add(key)
                streaming.was_read(key, value)
                return value

            with absent(model, foreign):
                load_chosen(base_model, load_whole, choose)
                require_loaded({"": model})

        with deferred_weights(load, self._configure, MIN_META_NUMEL):
            patcher = self._loader.without_paging()
        assert trunk is not None
        model = patcher.model.diffusion_model
        patcher.load_device = self._device
        streaming.patch(patcher)
        self._streaming = streaming
        self._patcher, self._stage, self._not_zero = patcher, stage, not_zero
        keep_no_tokens(model)
        self._put_code_patches_in(model)
        self.staged = StagedModel(model, trunk, entry_of(model))
        self._patched = PatchedObjects(patcher.model, self.staged, stage)
        self._budget = budget
        return self._bytes()

    def _bytes(self) -> tuple[int, int, int]:
        """Of the weights of the units, of the shared parts, and of what is streamed."""
        model, trunk = self._patcher.model.diffusion_model, self.staged.trunk
        owned = parameter_bytes(trunk.units[index].module for index in units_of(self._stage))
        return owned, parameter_bytes([model]) - owned, self._streaming.streamed_bytes(model)

    def verify(self) -> None:
        """See that no weight is all zeros that is not so in the file.

        Raises:
            NumbersError: one is.
        """
        patched, lost = self._patcher.patches, []
        for name, weight in self._patcher.model.diffusion_model.named_parameters():
            if name in self._not_zero and f"{MODEL_PREFIX}{name}" not in patched:
                if is_zero(weight):
                    lost.append(name)
                self._streaming.was_read(name, weight)
        if lost:
            raise NumbersError(
                f"Weights were lost when they were loaded ({few(lost)}). This is a fault of "
                "AsyncDiff: use the MODEL without it, and please report it with the worker's log."
            )

    def unload(self, waits: bool = False) -> int:
        """Give the memory of the weights back."""
        if waits and self._patcher is not None and self._may_wait():
            self.compile(None)
            take_out_of_force(self._patcher, torch.device("cpu"))
            self._waiting = self._stage, self._budget
            comfy.model_management.soft_empty_cache()
            return sum(self._bytes()[:2])
        self._waiting = None
        self._patcher = self._compilation = self._patched = None
        self.__dict__.pop("staged", None)
        gc.collect()
        comfy.model_management.soft_empty_cache()
        return 0

    def _may_wait(self) -> bool:
        """Whether weights that leave the device have a place in the host's memory."""
        if self._device.type == "cpu":
            return False  # they are there
        return sum(self._bytes()[:2]) < RAM_SHARE * psutil.virtual_memory().available

    def patch(self, payload: Any) -> None:
        """Put the weight patches of `payload` in force, with ComfyUI's own code."""
        put_in_force(self._patcher, payload, self._device, self._streaming)

    def compile(self, payload: Any) -> None:
        """Compile the stage, see compilation.py."""
        if self._compilation is not None:
            self._compilation.undo()
            self._compilation = None
        if payload is not None:
            model = self._patcher.model.diffusion_model
            self._compilation = Compilation(payload, self.staged, model, self._stage)

    def keep(self, key: str, payload: Any) -> None:
        """Keep patches that are code, or the weights of a hook (weight_hooks.py)."""
        if key.startswith(HOOK):
            self._hooks.add(key, pickling.unpack(payload, self._device))
        else:
            code = unpack(payload, self._device, self._patcher.model)
            self._replacements[key] = code.pop(OBJECTS, {}), code.pop(FUNCTIONS, {})
            with_every_unit_called(code, lambda: self.staged)
            with_no_useless_work(code, lambda tensor: self.staged.is_scratch(tensor))
            self._flows[key] = flow_of(code, lambda: self.staged)
            self._kept[key] = code
            self._contents[key] = payload[0]

    def forget_kept(self) -> None:
        """Drop what was kept."""
        self._kept.clear()
        self._flows.clear()
        self._contents.clear()
        self._replacements.clear()
        if self._patched is not None:
            self._patched.put_in_force({}, {})
        self._hooks.forget(self._patcher)
        if self._compilation is not None:
            self._compilation.end_run()

    def _put_code_patches_in(self, model: torch.nn.Module) -> None:
        """Have the model's entry method find the kept patches in its transformer_options."""
        entry = entry_of(model)
        original = getattr(model, entry)

        def with_kept(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = with_flags((args, kwargs))
            key = key_of((args, kwargs))
            replacements = self._replacements.get(key, ({}, {}))
            self.staged.beside = self._flows.get(key)
            objects, functions = replacements
            assert self._patched is not None
            self._patched.put_in_force(*replacements)
            if self._compilation is not None:
                if whole := self._patched.whole_units(objects):
                    raise UnsupportedPatchError(
                        f"This MODEL is compiled, and a patch replaces {whole[0]}. Remove one of "
                        "the two."
                    )
                self._compilation.use(patches_of((args, kwargs), self._contents))
            (args, kwargs), code, hooks = expand((args, kwargs), self._kept)
            self._hooks.apply(self._patcher, hooks)
            forward = self._patched.entry or original
            # What a patch takes out of a unit of another stage must not reach the result.
            self.staged.poisons_scratch = is_patched = bool(code or objects or functions)
            if not is_patched:
                return forward(*args, **kwargs)
            code = {**code, OBJECTS: objects, FUNCTIONS: functions}
            try:
                with NoRandomness(code, self._device):
                    output = forward(*args, **kwargs)
                    require_numbers(output, names_of(code))
                    return output
            except LayoutError as error:
                raise LayoutError(
                    f"{error} The patches of this MODEL are {few(names_of(code))}."
                ) from error

        setattr(model, entry, with_kept)

    def _configure(self, model_config: Any) -> None:
        model_config.unet_config["dtype"] = self._dtype
        model_config.manual_cast_dtype = self._manual_cast_dtype


def require_numbers(output: Any, patches: Sequence[str]) -> None:
    """See that an output of a model with these patches consists of numbers.

    Raises:
        UnsupportedPatchError: it does not.
    """
    tensors = (x for x in pytree.tree_leaves(output) if isinstance(x, torch.Tensor))
    if any(torch.isnan(tensor).any() for tensor in tensors):
        raise UnsupportedPatchError(
            "With its patches this MODEL gives no numbers (NaN). It does so where one block uses "
            "what a patch has left in another one, since these are on different devices. The "
            f"patches are {few(patches)}. Remove the node that adds them, or use the MODEL without "
            "AsyncDiff."
        )


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
