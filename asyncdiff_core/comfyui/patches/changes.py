"""Changes made to a diffusion model itself, past ComfyUI's patches.

Packs replace methods, classes, attributes and lists of blocks on a model's modules, some of them
during one call only. On a skeleton that does nothing, and of a stock MODEL that is spread workers
load the original. So both are watched.
"""

from __future__ import annotations

import dis
import functools
import types
import weakref
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs")
_INNER = ("_modules", "_parameters", "_buffers", *_HOOKS)
_INTERNALS = frozenset(torch.nn.Module().__dict__) - set(_INNER)

# (module, name, value before, value now); the values are _MISSING where there is none.
Change = tuple[torch.nn.Module, str, Any, Any]

_MISSING = object()
_CODE = types.CodeType

# What torch.compile notes on the modules that it is given.
_COMPILED = ("_is_torch_compile", "_compiled_call_impl")


def _is_compilers(change: Change) -> bool:
    return change[1].rpartition(".")[2] in _COMPILED


class Watch:
    """The modules of a model, as they were when this was made.

    Args:
        is_usual: tells changes that are no pack's.
        apart_from: submodules that are not watched.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        is_usual: Callable[[Change], bool] = _is_compilers,
        apart_from: Iterable[str] = (),
    ) -> None:
        self._is_usual = is_usual
        parts = tuple(apart_from)
        prefixes = tuple(f"{part}." for part in parts)
        watched = {
            name: module
            for name, module in model.named_modules()
            if not (name in parts or name.startswith(prefixes))
        }
        self._places = {name: place for place, name in enumerate(watched)}
        # Of each module, in the same order.
        self._modules = list(watched.values())
        self._kinds = list(map(type, self._modules))
        self._attributes = list(map(_snapshot, self._modules))

    def changes(self) -> list[str]:
        """Names of what was replaced since."""
        if self._is_as_it_was():
            return []
        found: list[str] = []
        for name, place in self._places.items():
            module, before = self._modules[place], self._attributes[place]
            if type(module) is not self._kinds[place]:
                found.append(_join(name, "__class__"))
            if not _equal(module.__dict__, before):
                changed = [
                    key
                    for key, old, new in _differing(before, module.__dict__)
                    if not self._is_usual((module, _join(name, key), old, new))
                ]
                found += (_join(name, key) for key in changed)
                if not changed:
                    self.renew([name])
        return found

    def _is_as_it_was(self) -> bool:
        # One comparison of all: it is made in every evaluation, of thousands of modules.
        return _equal(list(map(type, self._modules)), self._kinds) and _equal(
            list(map(vars, self._modules)), self._attributes
        )

    def renew(self, names: Iterable[str]) -> None:
        """Take the modules `names` to be right as they are now."""
        for place in map(self._places.__getitem__, names):
            module = self._modules[place]
            self._kinds[place], self._attributes[place] = type(module), _snapshot(module)

    def expect(self, name: str, child: torch.nn.Module) -> None:
        """Take `child` to be right as the module `name` of the model itself."""
        self._attributes[self._places[""]]["_modules"][name] = child

    def renew_weights(self) -> None:
        """Take the weights of all modules to be right as they are now."""
        for module, attributes in zip(self._modules, self._attributes, strict=True):
            attributes["_parameters"] = dict(module._parameters)


class StockWatch:
    """Watches a model that ComfyUI loads, patches and computes with.

    Args:
        base_model: the model, as ComfyUI's BaseModel.
        patched: gives the names that object patches have replaced.
    """

    def __init__(self, base_model: Any, patched: Callable[[], Collection[str]]) -> None:
        def is_usual(change: Change) -> bool:
            return change[1] in patched() or _is_comfyuis(change)

        self._base_model = weakref.ref(base_model)
        self._watch = Watch(base_model.diffusion_model, is_usual)
        self._loaded = _how_loaded(base_model)

    def begin_run(self) -> None:
        """A sampling run of another model begins: from now on its weights should not change."""
        self._watch.renew_weights()

    def changes(self) -> list[str]:
        """Names of what was replaced since this was made, and of weights since the run began."""
        loaded = _how_loaded(self._base_model())
        if loaded != self._loaded:
            self._loaded = loaded
            self._watch.renew_weights()
        return self._watch.changes()


def _how_loaded(base_model: Any) -> tuple[Any, ...]:
    """Another one whenever ComfyUI has replaced weights of this model."""
    names = ("current_weight_patches_uuid", "device", "model_loaded_weight_memory")
    return tuple(getattr(base_model, name, None) for name in names)


def differences(
    model: torch.nn.Module, skeleton: torch.nn.Module, entry: str, patched: Collection[str] = ()
) -> list[str]:
    """Names of what is not in `model` as in `skeleton`, which the same loader has made.

    Args:
        model: the one that may have been changed.
        skeleton: one that nobody has changed.
        entry: the method that is another one in the skeleton.
        patched: names that object patches have replaced in `model`.
    """
    others = dict(skeleton.named_modules())
    found: list[str] = []
    for name, module in model.named_modules():
        other = others.pop(name, None)
        if other is None:
            found.append(name)
            continue
        if _kind(module) != _kind(other):
            found.append(_join(name, "__class__"))
        attributes = dict(other.__dict__)
        if other is skeleton:
            attributes.pop(entry, None)
        for key, ours, theirs in _differing(attributes, module.__dict__):
            change = module, _join(name, key), ours, theirs
            # Weights are compared by nobody, children further below.
            is_in_both = any(
                key in getattr(module, inner) and key in getattr(other, inner)
                for inner in ("_parameters", "_modules")
            )
            is_alike = is_in_both or _code(ours) == _code(theirs)
            if not (is_alike or change[1] in patched or _is_comfyuis(change)):
                found.append(change[1])
        found += (_join(name, hooks) for hooks in _HOOKS if module.__dict__.get(hooks))
    return [name for name in (*found, *others) if name not in patched]


def is_note_of_comfyui(name: str) -> bool:
    """Whether ComfyUI has an attribute of that name on a module that it has loaded."""
    return "comfy" in name or name.endswith("_function") or name == "seed_key"


def _is_comfyuis(change: Change) -> bool:
    """Whether it is by ComfyUI, which notes how it has loaded a module, or by the model's class."""
    module, path, before, now = change
    name = path.rpartition(".")[2]
    if name in module._modules or name in _HOOKS:
        return False
    if name.startswith("_") or is_note_of_comfyui(name):
        return True
    if name in _INTERNALS or name in module._buffers:
        return True
    if name in getattr(type(module), "VARYING", ()) or name in _stored_by(type(module).__mro__):
        return True
    if name not in module._parameters and any(
        isinstance(value, torch.Tensor) for value in (before, now)
    ):
        return True  # some note what they have computed
    # What ComfyUI leaves where an object patch was.
    own = getattr(type(module), name, None)
    return isinstance(now, types.MethodType) and now.__self__ is module and now.__func__ is own


@functools.cache
def _stored_by(classes: tuple[type, ...]) -> frozenset[str]:
    """Names of the attributes that methods of these classes store, apart from making an object."""
    methods = [
        getattr(value, "fget", getattr(value, "__func__", value))
        for kind in classes[: classes.index(torch.nn.Module)]
        for name, value in vars(kind).items()
        if name != "__init__"
    ]
    codes = [code for f in methods if isinstance(code := getattr(f, "__code__", None), _CODE)]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        codes += (constant for constant in code.co_consts if isinstance(constant, _CODE))
        names.update(i.argval for i in dis.get_instructions(code) if i.opname == "STORE_ATTR")
    return frozenset(names)


def _snapshot(module: torch.nn.Module) -> dict[str, Any]:
    attributes = dict(module.__dict__)
    attributes.update({name: dict(attributes[name]) for name in _INNER if name in attributes})
    return attributes


def _equal(a: Any, b: Any) -> bool:
    try:
        return a == b  # in most cases of the same objects, so that this is all that is done
    except Exception:  # of tensors, whose comparison is no truth value
        return False


def _differing(before: dict[str, Any], now: dict[str, Any]) -> Iterable[tuple[str, Any, Any]]:
    for name in {**before, **now}:
        old, new = before.get(name, _MISSING), now.get(name, _MISSING)
        if name in _INNER and isinstance(old, dict) and isinstance(new, dict):
            where = (name,) if name in _HOOKS else ()
            for key in {**old, **new}:
                if not _same(old.get(key, _MISSING), new.get(key, _MISSING)):
                    yield (*where, str(key))[0], old.get(key), new.get(key)
        elif not _same(old, new):
            yield name, old, new


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or (type(a) is type(b) and bool(a == b))
    except Exception:
        return False


def _kind(module: torch.nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__name__


def _code(value: Any) -> Any:
    """What tells apart two values that were made in the same way, each for its own model."""
    value = getattr(value, "__func__", value)
    if isinstance(value, types.FunctionType):
        return value.__code__
    plain = (int, float, str, bool, bytes, type(None), tuple, torch.dtype)
    return value if isinstance(value, plain) else type(value)


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name
