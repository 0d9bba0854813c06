"""Run in a process of its own: what is around diffusion models, and what stands in for weights.

    python around_the_model.py COMFYUI PACK

What each class of models that ComfyUI supports has besides its diffusion model is real in a
skeleton, with the values that ComfyUI gives it. Weights of skeletons tell their looks and nothing
else. Lost weights are found. Prints one JSON object: what was looked at, and whether it held.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any


def main(comfyui: str, pack: str) -> None:
    sys.path[:0] = [comfyui, pack]
    sys.argv[1:] = ["--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    held = {
        **{f"around {name}": good for name, good in around_all().items()},
        **absent_weights(),
        **changed_models(),
        **lost_weights(),
        **models_of_patches(),
        **newer_hosts(),
    }
    print(json.dumps(held))


# Above every threshold below which something is left as it is.
SIZE = 320


def around_all() -> dict[str, bool]:
    """By class of comfy.supported_models."""
    import comfy.model_base
    import comfy.supported_models
    import torch

    from asyncdiff_core.comfyui.model.loading import deferred_weights

    def small(*_: Any, **__: Any) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(SIZE, SIZE))
        model.dtype = torch.float32
        return model

    # What some take from their file for themselves.
    draw = torch.Generator().manual_seed(0)

    def state() -> dict[str, Any]:
        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=draw)

        seconds = {
            f"conditioner.conditioners.{which}.embedder.embedding.{name}": random(*shape)
            for which in ("seconds_start", "seconds_total")
            for name, shape in {
                "0.weights": (128,),
                "1.weight": (768, 257),
                "1.bias": (768,),
            }.items()
        }
        return {
            "cc_projection.weight": random(SIZE, SIZE),
            "cc_projection.bias": random(SIZE),
            "conditioner.conditioners.prompt.padding_embedding": random(768),
            **seconds,
        }

    # What some take from the configuration that is found in a file.
    more = {
        **{"in_channels": 4, "timestep_features_type": "learned", "hidden_size": SIZE, "dim": SIZE},
        **{"model_channels": SIZE, "n_layer": 2, "sequence_length": 8, "num_layers": 2},
    }

    def make(kind: Any, sd: dict[str, Any]) -> Any:
        config = kind({**kind.unet_config, **more})
        torch.manual_seed(1)
        return config.get_model(sd, "", device=None)

    def parts(model: Any) -> dict[str, torch.Tensor]:
        both = (*model.named_parameters(), *model.named_buffers())
        return {n: v for n, v in both if not n.startswith("diffusion_model.")}

    base = comfy.model_base.BaseModel

    @contextlib.contextmanager
    def small_models() -> Iterator[None]:
        init = base.__init__

        def init_small(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args[:3], **{**kwargs, "unet_model": small})

        base.__init__ = init_small
        try:
            yield
        finally:
            base.__init__ = init

    held = {}
    for kind in comfy.supported_models.models:
        sd = state()
        with small_models():
            stock = parts(make(kind, dict(sd)))
        with deferred_weights(lambda model, load: None), small_models():
            skeleton = make(kind, dict(sd))
        ours = parts(skeleton)
        held[kind.__name__] = (
            skeleton.diffusion_model[0].weight.is_meta
            and ours.keys() == stock.keys()
            and not any(value.is_meta for value in ours.values())
            and all(torch.equal(ours[name], stock[name]) for name in ours)
        )
    return held


def absent_weights() -> dict[str, bool]:
    import torch

    from asyncdiff_core.comfyui.model.absent import AbsentWeight, make_absent
    from asyncdiff_core.errors import UnsupportedPatchError

    model = torch.nn.Sequential(torch.nn.Linear(4, 6, device="meta"), torch.nn.LayerNorm(6))
    make_absent(model, torch.device("cpu"))
    weight = model[0].weight

    def refuses(use: Any) -> bool:
        try:
            use()
        except UnsupportedPatchError as error:
            return "0.weight" in str(error)
        return False

    real = torch.zeros(6, 4)
    return {
        "what is on meta is absent": isinstance(weight, AbsentWeight),
        "what is real stays": not isinstance(model[1].weight, AbsentWeight),
        "an absent weight has looks": (weight.shape, weight.dtype, weight.device, weight.numel())
        == (torch.Size((6, 4)), torch.float32, torch.device("cpu"), 24),
        "it has no sum": refuses(lambda: weight.sum()),
        "it adds nothing": refuses(lambda: real + weight),
        "nothing adds it": refuses(lambda: weight + real),
        "it cannot be copied from": refuses(lambda: real.copy_(weight)),
        "nor to": refuses(lambda: weight.copy_(real)),
        "a layer with it computes nothing": refuses(lambda: model[0](torch.zeros(1, 4))),
        "it has no values": refuses(lambda: weight.tolist()),
    }


def changed_models() -> dict[str, bool]:
    import torch

    from asyncdiff_core.comfyui.patches.changes import StockWatch, Watch, differences

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.scale = 1.0
            self.last = None

        def forward(self, x: Any) -> Any:
            self.last = {"size": x.shape}
            return self.layer(x) * self.scale

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(x)
            return x

    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.diffusion_model = Model()

    class OtherBlock(Block):
        pass

    def method(model: Any) -> None:
        model.blocks[0].forward = lambda x: x

    def kind(model: Any) -> None:
        model.blocks[0].__class__ = OtherBlock

    def attribute(model: Any) -> None:
        model.blocks[1].scale = 2.0

    def exchanged(model: Any) -> None:
        model.blocks[0] = Block()

    def dropped(model: Any) -> None:
        model.blocks = torch.nn.ModuleList([model.blocks[0]])

    def hook(model: Any) -> None:
        model.blocks[0].register_forward_hook(lambda *_: None)

    def evaluated(model: Any) -> None:
        model(torch.zeros(1, 2))

    base = Base()
    watch = Watch(base)
    lent = base.diffusion_model = Model()
    base.other = 1
    watch.expect("diffusion_model", lent)
    held = {"beside an expected change another one is seen": watch.changes() == ["other"]}
    for change in (method, kind, attribute, exchanged, dropped, hook, evaluated):
        is_seen = change is not evaluated  # what a model notes while it computes is no pack's
        skeleton = Base()
        watch = Watch(skeleton.diffusion_model)
        assert watch.changes() == []
        change(skeleton.diffusion_model)
        if is_seen:
            held[f"{change.__name__} on a skeleton"] = watch.changes() != []
        stock = Base()
        watch = StockWatch(stock, tuple)
        assert watch.changes() == []
        change(stock.diffusion_model)
        held[f"{change.__name__} on a stock model"] = (watch.changes() != []) == is_seen
        # An exchanged block of the same kind is the same by name; its weights are the file's.
        if change is not exchanged:
            found = differences(stock.diffusion_model, Model(), "forward")
            held[f"{change.__name__} before it is spread"] = (found != []) == is_seen
    return held


def lost_weights() -> dict[str, bool]:
    import torch

    from asyncdiff_core.comfyui.model.loading import is_zero

    half = torch.zeros(70_000, dtype=torch.bfloat16)
    last = half.clone()
    last[-1] = 1e-30
    fp8 = torch.zeros(70_000).to(torch.float8_e4m3fn)
    return {
        "zeros are zeros": is_zero(half) and is_zero(fp8) and is_zero(torch.zeros(3, 3).T),
        "a last value is seen": not is_zero(last),
        "a transposed one is seen": not is_zero(torch.eye(3).T),
    }


def models_of_patches() -> dict[str, bool]:
    """In a worker: what a stage does not need of them is neither moved nor computed."""
    import torch

    from asyncdiff_core.comfyui.patches.patch_models import (
        SentPatcher,
        fit,
        with_no_useless_work,
    )

    device = torch.device("meta")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    SentPatcher(model, device)
    model[0](torch.ones(1, 2, device=device))
    in_a_file = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    somewhere = torch.zeros(17)[1:5].view(2, 2)
    in_a_file[0].weight = torch.nn.Parameter(somewhere, False)
    SentPatcher(in_a_file, torch.device("cpu"))
    weights = []
    for _ in range(2):
        in_a_file[0](torch.ones(1, 2))
        weights.append(in_a_file[0].weight)
    scratch, calls = torch.zeros(1), []

    class DiffSynthCnetPatch:
        def __call__(self, args: Any) -> Any:
            calls.append(args["img"])
            return args

    class Other(DiffSynthCnetPatch):
        pass

    fit({"patches": {"attn1_patch": [Other()]}}, [torch.zeros(1), torch.zeros(1)])
    calls_to_fit = [*calls]
    code = {"patches": {"double_block": [DiffSynthCnetPatch(), Other()]}}
    with_no_useless_work(code, lambda tensor: tensor is scratch)
    first, second = code["patches"]["double_block"]
    own = torch.ones(1)
    given = [first({"img": scratch})["img"], first({"img": own})["img"], second({"img": scratch})]
    return {
        "a module that is called has its weights on the device": model[0].weight.is_meta,
        "another one has them where they were": not model[1].weight.is_meta,
        "the CPU's have the alignment of ComfyUI's": not weights[0].data_ptr() % 64
        and bool(somewhere.data_ptr() % 64),
        "a model with several latents has patches too": not calls_to_fit,
        "they are taken once": weights[0] is weights[1],
        "a patch is not called for what reaches nothing": [*map(id, calls)]
        == [id(own), id(scratch)],
        "and gives it on": given[0] is scratch and given[1] is own,
    }


def newer_hosts() -> dict[str, bool]:
    """What ComfyUI has since the version of the tests."""
    import contextlib

    import comfy.model_prefetch
    import torch

    from asyncdiff_core.comfyui.model.skeleton import make_remote

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, transformer_options: Any = None) -> None:
            raise AssertionError

    steps = []

    @contextlib.contextmanager
    def pause_malloc_graph() -> Iterator[None]:
        steps.append("pause")
        yield
        steps.append("resume")

    model = Model()
    make_remote(model, lambda call: steps.append("call"))
    model(torch.ones(1), transformer_options={})
    comfy.model_prefetch.pause_malloc_graph = pause_malloc_graph
    model(torch.ones(1), transformer_options={})
    del comfy.model_prefetch.pause_malloc_graph
    return {"remote calls are not recorded": steps == ["call", "pause", "call", "resume"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
