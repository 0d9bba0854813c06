"""The ways in which node packs alter a MODEL, each as the smallest thing that does the same.

`WAYS` has them by name. Each takes a MODEL and returns the changed one. What they change past
ComfyUI's patches is put back by `undo_all`, since the tests' server lives on.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import types
import unittest.mock
from collections.abc import Callable, Iterator
from typing import Any

import comfy.lora
import comfy.samplers
import torch
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP

from . import state

Way = Callable[[Any], Any]

WAYS: dict[str, Way] = {}
_undo: list[Callable[[], Any]] = []


def way(function: Way) -> Way:
    WAYS[function.__name__.replace("_", " ")] = function
    return function


def undo_all() -> None:
    while _undo:
        _undo.pop()()


def unet_of(model: Any) -> Any:
    return model.model.diffusion_model


def change(owner: Any, name: str, value: Any) -> None:
    """Set an attribute, for `undo_all` to put back."""
    if name in vars(owner):
        _undo.append(functools.partial(setattr, owner, name, vars(owner)[name]))
    elif name in getattr(owner, "_modules", {}):
        _undo.append(functools.partial(setattr, owner, name, owner._modules[name]))
    else:
        _undo.append(functools.partial(delattr, owner, name))
    setattr(owner, name, value)


# Object patches -----------------------------------------------------------------------------------


@way
def object_patches_bound_to_modules(model: Any) -> Any:
    """A local function as the method of every feed-forward, which keeps its settings on it."""
    model = model.clone()
    config = {"scale": 1.5}

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.chunk_scale = config["scale"]
        return torch.nn.Sequential.forward(self, x) * self.chunk_scale

    for index, block in enumerate(unet_of(model).blocks):
        key = f"diffusion_model.blocks.{index}.ffn.forward"
        model.add_object_patch(key, types.MethodType(forward, block.ffn))
    return model


@way
def object_patches_with_modules_in_closures(model: Any) -> Any:
    """Callables that hold the module and the method that they stand for."""
    model = model.clone()

    def half(attention: Any, before: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        assert args[0].shape[-1] == attention.to_q.in_features
        return before(*args, **kwargs) * 0.5

    for name, module in unet_of(model).named_modules():
        if name.endswith("attn1"):
            patch = functools.partial(half, module, module.forward)
            model.add_object_patch(f"diffusion_model.{name}.forward", patch)
    return model


@way
def object_patch_of_whole_blocks(model: Any) -> Any:
    model = model.clone()

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return x + 0.5 * (y - x)

    for index in (0, 5, 11):
        block = unet_of(model).blocks[index]
        key = f"diffusion_model.blocks.{index}.forward"
        model.add_object_patch(key, types.MethodType(forward, block))
    return model


@way
def object_patch_of_the_models_method(model: Any) -> Any:
    model = model.clone()
    unet = unet_of(model)

    def forward_orig(self: Any, img: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = type(self).forward_orig(self, img * 1.1, *args, **kwargs)
        return result

    patch = types.MethodType(forward_orig, unet)
    model.add_object_patch("diffusion_model.forward_orig", patch)
    return model


@way
def object_patches_of_block_classes(model: Any) -> Any:
    model = model.clone()
    block = unet_of(model).blocks[0]

    class Weaker(type(block)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            y: torch.Tensor = super().forward(x, *args, **kwargs)
            return x + self.strength * (y - x)

    for index in (1, 7):
        model.add_object_patch(f"diffusion_model.blocks.{index}.__class__", Weaker)
        model.add_object_patch(f"diffusion_model.blocks.{index}.strength", 0.25)
    return model


@way
def object_patch_of_the_models_class(model: Any) -> Any:
    model = model.clone()
    kind = type(unet_of(model))

    class Other(kind):  # type: ignore[misc,valid-type]
        def forward_orig(self, img: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            result: torch.Tensor = kind.forward_orig(self, img * 1.2, *args, **kwargs)
            self.seen = result
            return result

    model.add_object_patch("diffusion_model.__class__", Other)
    return model


@way
def object_patch_of_an_embedder(model: Any) -> Any:
    """A module without weights in the place of another one."""
    model = model.clone()
    embedder = copy.deepcopy(unet_of(model).rope_embedder)
    embedder.theta = 500.0
    model.add_object_patch("diffusion_model.rope_embedder", embedder)
    return model


@way
def object_patch_of_a_block(model: Any) -> Any:
    """A module that holds the block in whose place it stands."""
    model = model.clone()

    class Wrapped(torch.nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.held = [block]

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            y: torch.Tensor = self.held[0](x, *args, **kwargs)
            return x + 0.5 * (y - x)

    block = unet_of(model).blocks[4]
    model.add_object_patch("diffusion_model.blocks.4", Wrapped(block))
    return model


# Options of a transformer -------------------------------------------------------------------------


@way
def attention_override(model: Any) -> Any:
    model = model.clone()

    def override(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = func(*args, **kwargs)
        return result * 0.9

    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


@way
def the_model_itself_in_its_options(model: Any) -> Any:
    model = model.clone()
    unet = unet_of(model)
    options = model.model_options["transformer_options"]
    options["model_patch"] = {"unet": unet}

    def patch(h: torch.Tensor, hsp: torch.Tensor, options: Any) -> tuple[torch.Tensor, ...]:
        assert options["model_patch"]["unet"].model_channels == 320
        return h * 0.8, hsp

    model.set_model_output_block_patch(patch)
    return model


@way
def a_flag_that_is_flipped_between_evaluations(model: Any) -> Any:
    model = model.clone()

    class Flag:
        on = False

    flag = Flag()

    def replaced(q: Any, k: Any, v: Any, options: Any) -> torch.Tensor:
        result: torch.Tensor = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return v if flag.on else result

    def flip(executor: Any, *args: Any, **kwargs: Any) -> Any:
        flag.on = not flag.on
        return executor(*args, **kwargs)

    for block in (("middle", 0), ("output", 0)):
        model.set_model_attn1_replace(replaced, *block)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test flag", flip)
    return model


@way
def a_global_variable_that_changes(model: Any) -> Any:
    """A patch of a module whose variable a wrapper changes in every step."""
    model = model.clone()
    _undo.append(functools.partial(setattr, state, "STEP", 0))

    def count(executor: Any, *args: Any, **kwargs: Any) -> Any:
        state.STEP += 1
        return executor(*args, **kwargs)

    model.set_model_output_block_patch(state.scaled_by_step)
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test step", count)
    return model


@way
def one_block_uses_what_another_has_left(model: Any) -> Any:
    model = model.clone()

    def keep(args: Any, extra: Any) -> Any:
        out = extra["original_block"](args)
        args["transformer_options"].setdefault("left", {})["txt"] = out["txt"]
        return out

    def use(args: Any, extra: Any) -> Any:
        out = extra["original_block"](args)
        left = args["transformer_options"]["left"]["txt"]
        return {**out, "img": out["img"] + left.mean()}

    options = model.model_options["transformer_options"]
    options["left"] = {}
    model.set_model_patch_replace(keep, "dit", "double_block", 0)
    last = len(unet_of(model).single_blocks) - 1
    model.set_model_patch_replace(use, "dit", "single_block", last)
    return model


@way
def an_extra_evaluation_with_a_patch(model: Any) -> Any:
    """As guidance by perturbed attention: the patch is in the options of that evaluation alone."""
    model = model.clone()

    def identity(q: Any, k: Any, v: Any, options: Any) -> torch.Tensor:
        result: torch.Tensor = v
        return result

    def guide(args: Any) -> torch.Tensor:
        options = comfy.model_patcher.set_model_options_patch_replace(
            args["model_options"].copy(), identity, "attn1", "middle", 0
        )
        (perturbed,) = comfy.samplers.calc_cond_batch(
            args["model"], [args["cond"]], args["input"], args["sigma"], options
        )
        result: torch.Tensor = args["denoised"] + 0.7 * (args["cond_denoised"] - perturbed)
        return result

    model.set_model_sampler_post_cfg_function(guide)
    return model


# Wrappers -----------------------------------------------------------------------------------------


def _weaker(self: Any, img: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    result: torch.Tensor = type(self).forward_orig(self, img, *args, **kwargs)
    return 0.9 * result


@way
def a_method_replaced_during_a_call(model: Any) -> Any:
    """As caches of the model's output do it."""
    model = model.clone()
    unet = model.get_model_object("diffusion_model")

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        method = types.MethodType(_weaker, unet)
        with unittest.mock.patch.multiple(unet, forward_orig=method):
            result: torch.Tensor = apply(args["input"], args["timestep"], **args["c"])
        return result

    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def a_list_of_blocks_replaced_during_a_call(model: Any) -> Any:
    model = model.clone()
    unet = model.get_model_object("diffusion_model")

    class Cached(torch.nn.Module):
        def __init__(self, blocks: Any) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            for block in self.blocks:
                x = block(x, **kwargs)
            return x * 0.95

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        blocks = torch.nn.ModuleList([Cached(unet.single_blocks)])
        with unittest.mock.patch.object(unet, "single_blocks", blocks):
            result: torch.Tensor = apply(args["input"], args["timestep"], **args["c"])
        return result

    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def an_attribute_of_a_layer_set_in_every_call(model: Any) -> Any:
    """What a patched method reads from its own module."""
    model = model.clone()
    block = unet_of(model).blocks[6]

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.Sequential.forward(self, x) + getattr(self, "added", 0.0)

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        block.ffn.added = float(args["timestep"][0]) * 1e-3
        result: torch.Tensor = apply(args["input"], args["timestep"], **args["c"])
        return result

    _undo.append(lambda: block.ffn.__dict__.pop("added", None))
    patch = types.MethodType(forward, block.ffn)
    model.add_object_patch("diffusion_model.blocks.6.ffn.forward", patch)
    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def a_weight_set_in_every_call(model: Any) -> Any:
    model = model.clone()
    layer = unet_of(model).blocks[2].ffn[0]

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        before = layer.weight
        layer.weight = torch.nn.Parameter(before.detach() * 0.8, requires_grad=False)
        try:
            result: torch.Tensor = apply(args["input"], args["timestep"], **args["c"])
        finally:
            layer.weight = before
        return result

    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def a_layer_used_in_every_call(model: Any) -> Any:
    """As guidance that projects keys by itself."""
    model = model.clone()
    layer = unet_of(model).blocks[3].self_attn.k

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        ones = torch.ones(1, layer.weight.shape[1], device=args["input"].device)
        shift = torch.nn.functional.linear(ones, layer.weight, layer.bias).mean()
        result: torch.Tensor = apply(args["input"], args["timestep"], **args["c"])
        return result + shift

    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def a_method_set_around_sampling(model: Any) -> Any:
    """On the model of the guider's MODEL, whichever that is."""
    model = model.clone()

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        unet = unet_of(executor.class_obj.model_patcher)
        unet.forward_orig = types.MethodType(_weaker, unet)
        try:
            return executor(*args, **kwargs)
        finally:
            del unet.forward_orig

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test method", wrapper)
    return model


@way
def tiles(model: Any) -> Any:
    """A picture in nine tiles that overlap."""
    model = model.clone()

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        x, c = args["input"], args["c"]
        height, width = x.shape[-2] // 2, x.shape[-1] // 2
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for top in (0, height // 2, x.shape[-2] - height):
            for left in (0, width // 2, x.shape[-1] - width):
                part = ..., slice(top, top + height), slice(left, left + width)
                total[part] += apply(x[part], args["timestep"], **c)
                count[part] += 1
        return total / count

    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def torch_compile_that_tells_nothing(model: Any) -> Any:
    """Its modules are in a table of its own; and it hides an error of its MODEL."""
    model = model.clone()

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs) * 1.01

    with contextlib.suppress(Exception):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", wrapper)
    return model


# Changes of the model itself ----------------------------------------------------------------------


@way
def a_method_set_on_the_model(model: Any) -> Any:
    """For good, on the MODEL that is given."""
    unet = unet_of(model)
    change(unet, "extra_layers", torch.nn.ModuleList([torch.nn.Linear(2, 2)]))
    change(unet, "extra_data", {})
    change(unet, "forward_orig", types.MethodType(_weaker, unet))
    return model


@way
def the_class_of_the_model_replaced(model: Any) -> Any:
    unet = unet_of(model)
    kind = type(unet)

    class Other(kind):  # type: ignore[misc,valid-type]
        def forward_orig(self, img: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            result: torch.Tensor = kind.forward_orig(self, img * 1.2, *args, **kwargs)
            return result

    _undo.append(functools.partial(setattr, unet, "__class__", kind))
    unet.__class__ = Other
    return model


@way
def a_block_of_the_model_replaced(model: Any) -> Any:
    unet = unet_of(model)
    block = unet.double_blocks[0]

    class Copied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = block

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            img, txt = self.block(*args, **kwargs)
            return img * 0.9, txt

    _undo.append(functools.partial(unet.double_blocks.__setitem__, 0, block))
    unet.double_blocks[0] = Copied()
    return model.clone()


@way
def methods_of_all_norms_set(model: Any) -> Any:
    for module in unet_of(model).modules():
        if isinstance(module, torch.nn.LayerNorm):
            before = module.forward

            def forward(x: torch.Tensor, before: Any = before) -> torch.Tensor:
                result: torch.Tensor = before(x) * 0.9
                return result

            change(module, "forward", forward)
    return model.clone()


@way
def a_setting_of_a_block_changed(model: Any) -> Any:
    for block in unet_of(model).blocks:
        change(block.norm1, "eps", 0.3)
    return model.clone()


@way
def a_hook_on_a_block(model: Any) -> Any:
    def hook(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * 0.98

    handle = unet_of(model).blocks[1].register_forward_hook(hook)
    _undo.append(handle.remove)
    return model.clone()


@way
def injections(model: Any) -> Any:
    model = model.clone()

    class Added(torch.nn.Module):
        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            return x * 0.9

    def inject(patcher: Any) -> None:
        unet_of(patcher).blocks.insert(2, Added())

    def eject(patcher: Any) -> None:
        del unet_of(patcher).blocks[2]

    model.set_injections("test", [PatcherInjection(inject, eject)])
    return model


# Functions of ComfyUI -----------------------------------------------------------------------------


def _around_sampling(model: Any, context: Callable[[], Any]) -> Any:
    model = model.clone()

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        with context():
            return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "test function", wrapper)
    return model


@way
def a_method_of_a_class_replaced_around_sampling(model: Any) -> Any:
    from comfy.ldm.modules.attention import BasicTransformerBlock

    before = BasicTransformerBlock.forward

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y: torch.Tensor = before(self, x, *args, **kwargs)
        return x + 0.7 * (y - x)

    def context() -> Any:
        return unittest.mock.patch.object(BasicTransformerBlock, "forward", forward)

    return _around_sampling(model, context)


@way
def a_method_of_the_models_class_replaced(model: Any) -> Any:
    """For good, when the node runs."""
    kind = type(unet_of(model))
    before = kind.forward_orig

    def forward_orig(self: Any, img: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = before(self, img * 1.1, *args, **kwargs)
        return result

    change(kind, "forward_orig", forward_orig)
    _undo[-1] = functools.partial(setattr, kind, "forward_orig", before)
    return model.clone()


def _first_weight(model: Any) -> str:
    return next(k for k in model.model.state_dict() if k.endswith("ffn.0.weight"))


def _with_own_kind(model: Any) -> Any:
    model = model.clone()
    key = _first_weight(model)
    value = torch.full(tuple(model.model.state_dict()[key].shape), 0.05)
    model.add_patches({key: ("test", (value,))}, 0.8)
    return model


@way
def a_kind_of_weight_patch_with_the_function_for_it(model: Any) -> Any:
    before = comfy.lora.calculate_weight

    def calculate(patches: Any, weight: torch.Tensor, key: str, *args: Any, **kwargs: Any) -> Any:
        known = [patch for patch in patches if patch[1][0] != "test"]
        for patch in patches:
            if patch[1][0] == "test":
                (value,) = patch[1][1]
                weight = weight + patch[0] * value.to(weight)
        return before(known, weight, key, *args, **kwargs)

    def context() -> Any:
        return unittest.mock.patch.object(comfy.lora, "calculate_weight", calculate)

    return _around_sampling(_with_own_kind(model), context)


@way
def a_kind_of_weight_patch_that_nobody_knows(model: Any) -> Any:
    """ComfyUI itself leaves the weight as it is, and logs it."""
    model = attention_override(_with_own_kind(model))  # so that something changes
    return model


@way
def a_padding_patch_of_the_first_layer(model: Any) -> Any:
    """Four more channels, which a wrapper fills."""
    model = model.clone()
    key = "diffusion_model.input_blocks.0.0.weight"
    generator = torch.Generator().manual_seed(1)
    diff = torch.zeros(320, 8, 3, 3)
    diff[:, 4:] = 0.03 * torch.randn(320, 4, 3, 3, generator=generator)
    model.add_patches({key: ("diff", (diff, {"pad_weight": True}))})

    def wrapper(apply: Any, args: Any) -> torch.Tensor:
        x = args["input"]
        c = {**args["c"], "c_concat": torch.ones_like(x)}
        result: torch.Tensor = apply(x, args["timestep"], **c)
        return result

    model.set_model_unet_function_wrapper(wrapper)
    return model


@way
def weights_used_when_the_node_runs(model: Any) -> Any:
    """A conditioning of its own, through the model's own embedding."""
    model = model.clone()
    unet = unet_of(model)
    generator = torch.Generator().manual_seed(2)
    context = unet.text_embedding(torch.randn(1, 5, 768, generator=generator))

    def forward(self: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        y: torch.Tensor = type(self).forward(self, x, *args, **kwargs)
        return y + 0.1 * context.mean(1, keepdim=True).to(y)

    for index, block in enumerate(unet.blocks):
        key = f"diffusion_model.blocks.{index}.cross_attn.forward"
        model.add_object_patch(key, types.MethodType(forward, block.cross_attn))
    return model


@way
def a_patch_that_holds_its_model(model: Any) -> Any:
    """A function that finds the MODEL, and what belongs to it, in a variable around it."""
    model = model.clone()
    config = model.model.model_config

    def patch(args: dict[str, Any]) -> Any:
        is_its = model.model.model_config is config and "image_model" in config.unet_config
        return args["x"] * (0.9 if is_its else 2.0)

    model.set_model_attn1_patch(patch)
    return model


@way
def weights_altered_in_place(model: Any) -> Any:
    """A merge or a detail node that spares the memory of a patch."""
    for block in unet_of(model).blocks:
        weight = block.ffn[2].weight
        before = weight.data.clone()
        weight.data.mul_(0.5)
        _undo.append(functools.partial(weight.data.copy_, before))
    return model


@way
def switches_of_torch(model: Any) -> Any:
    model = attention_override(model)
    matmul = torch.backends.cuda.matmul

    def turn(on: bool, *_: Any) -> None:
        matmul.allow_fp16_accumulation = on

    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, "test", functools.partial(turn, True))
    model.add_callback_with_key(CallbacksMP.ON_CLEANUP, "test", functools.partial(turn, False))
    return model


def names() -> Iterator[str]:
    yield from WAYS
