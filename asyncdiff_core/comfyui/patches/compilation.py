"""torch.compile, in the workers: each compiles the units of its own stage.

ComfyUI's nodes put a wrapper around `BaseModel.apply_model` that swaps the diffusion model, or some
of its modules, for compiled ones. Here these are a skeleton's, with nothing in them to compile. So
the wrapper is replaced by one that does nothing and tells which modules were meant, and the workers
compile those with the same settings.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Set
from typing import Any, NamedTuple

import torch
from comfy.patcher_extension import WrappersMP

from ...algorithm.stage import StagedModel
from ...algorithm.stages import Stage, units_of
from ...errors import UnsupportedPatchError
from .code_patches import name_of, pack, unpack

# As in comfy_api/torch_helpers/torch_compile.py.
KIND, KEY = WrappersMP.APPLY_MODEL, "torch.compile"
SETTINGS = "torch_compile_kwargs"

ROOT = "diffusion_model"

Forward = Callable[..., Any]


# In the ComfyUI process -------------------------------------------------------------------------


class CompiledElsewhere:
    """In place of `wrapper`, which is ComfyUI's.

    Attributes:
        keys: the modules to compile, as names in a BaseModel; None if `wrapper` does not tell.
    """

    def __init__(self, wrapper: Any) -> None:
        self.wrapper = wrapper
        self.keys: tuple[str, ...] | None = None
        names = wrapper.__code__.co_freevars if isinstance(wrapper, types.FunctionType) else ()
        if "compiled_module_dict" in names:
            cell = wrapper.__closure__[names.index("compiled_module_dict")]
            self.keys = tuple(cell.cell_contents)

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)


def elsewhere(wrapper: Any) -> CompiledElsewhere:
    """What takes the place of `wrapper`, one of `KIND` and `KEY`."""
    return wrapper if isinstance(wrapper, CompiledElsewhere) else CompiledElsewhere(wrapper)


def here(wrapper: Any) -> Any:
    """The wrapper that `elsewhere` has replaced."""
    return wrapper.wrapper if isinstance(wrapper, CompiledElsewhere) else wrapper


def keys_of(patcher: Any) -> tuple[str, ...]:
    """The modules that this MODEL has compiled.

    Raises:
        UnsupportedPatchError: by something that is not of ComfyUI's making. It is told here, before
            a run, since some nodes go on without a word where they cannot add their wrapper.
    """
    keys: list[str] = []
    for wrapper in patcher.get_wrappers(KIND, KEY):
        if wrapper.keys is None:
            raise UnsupportedPatchError(
                f"This MODEL is compiled by {name_of(wrapper.wrapper)}, which does not tell what "
                "it compiles. So worker processes cannot do it. Use TorchCompileModel, or remove "
                "the node."
            )
        keys += wrapper.keys
    return tuple(keys)


def compilation_of(patcher: Any) -> bytes | None:
    """What workers need to know to compile their stages; None if nothing is to be compiled.

    Raises:
        UnsupportedPatchError: a setting cannot cross the process border.
    """
    keys = keys_of(patcher)
    if not keys:
        return None
    data, tensors = pack({"keys": keys, "settings": patcher.model_options[SETTINGS]})
    if tensors:
        raise UnsupportedPatchError("The settings of torch.compile of this MODEL hold tensors.")
    return data


# In a worker ------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a forward can be replaced."""

    original: Forward
    put: Callable[[Forward], None]


class Compilation:
    """The compiled modules of one stage.

    As with TorchCompileModel what was compiled is used again whatever is in `transformer_options`,
    much of which is new in every run. But a model finds there which block it is in, and patches
    that are code. So each module is compiled as a function of its own, and anew for other patches.

    Args:
        payload: see `compilation_of`.
        staged: the stage's model.
        model: the same, as ComfyUI's module.
        stage: the units that are held.
    """

    def __init__(
        self, payload: bytes, staged: StagedModel, model: torch.nn.Module, stage: Stage
    ) -> None:
        held = frozenset(units_of(stage))
        wanted = unpack((payload, ()), torch.device("cpu"))
        self._settings = wanted["settings"]
        self._places = [
            place for key in wanted["keys"] for place in _places(key, staged, model, held)
        ]
        self._compiled: dict[Hashable, list[Forward]] = {}
        self._used: set[Hashable] = set()

    def use(self, patches: Hashable) -> None:
        """Put the modules in force that are compiled for these patches."""
        if patches not in self._compiled:
            self._compiled[patches] = [
                _compiled(place.original, self._settings) for place in self._places
            ]
        self._used.add(patches)
        for place, compiled in zip(self._places, self._compiled[patches], strict=True):
            place.put(compiled)

    def end_run(self) -> None:
        """Forget what was compiled for patches that this run did not have."""
        self._compiled = {key: self._compiled[key] for key in self._used}
        self._used = set()

    def undo(self) -> None:
        """Put the modules in force as they were."""
        for place in self._places:
            place.put(place.original)


def _places(key: str, staged: StagedModel, model: torch.nn.Module, held: Set[int]) -> list[_Place]:
    """The units of the stage that are or are in the module `key`; or, if it has none, itself."""
    name = key.removeprefix(ROOT).removeprefix(".")
    inside = f"{name}." if name else ""
    names = [unit.name for unit in staged.trunk.units]
    within = [i for i, unit in enumerate(names) if unit == name or unit.startswith(inside)]
    if within:
        return [_unit(staged, index) for index in within if index in held]
    owners = [i for i, unit in enumerate(names) if name.startswith(f"{unit}.")]
    if not held >= set(owners):
        return []
    module = model.get_submodule(name)

    def put(forward: Forward) -> None:
        module.forward = forward

    return [_Place(module.forward, put)]


def _unit(staged: StagedModel, index: int) -> _Place:
    def put(forward: Forward) -> None:
        staged.forwards[index] = forward

    return _Place(staged.forwards[index], put)


def _compiled(forward: Forward, settings: dict[str, Any]) -> Forward:
    options = settings["options"]  # torch.compile took ComfyUI's filter of guards out of it
    if settings["mode"] is None:  # which allows no options
        options = {**(options or {}), "guard_filter_fn": _skip_options}
    return torch.compile(_with_code_of_its_own(forward), **{**settings, "options": options})


def _skip_options(guards: list[Any]) -> list[bool]:
    return ["transformer_options" not in guard.name for guard in guards]


def _with_code_of_its_own(forward: Forward) -> Forward:
    """`forward`, with a copy of its code object, which is what torch.compile's cache hangs on."""
    function = getattr(forward, "__func__", None)
    if not isinstance(function, types.FunctionType):
        return forward
    copy = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return types.MethodType(copy, forward.__self__)  # type: ignore[attr-defined]
