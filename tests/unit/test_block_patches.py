"""Patches that stand for whole blocks: stages equal the plain model, whatever they leave out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from asyncdiff_core.algorithm.oracle import Oracle
from asyncdiff_core.algorithm.schedule import AsyncSchedule
from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout
from asyncdiff_core.comfyui.patches.block_patches import with_every_unit_called
from asyncdiff_core.errors import LayoutError
from harness.cuts import chain

DEPTH, WIDTH = 5, 8


class Pair(torch.nn.Module):
    """A block with two streams, as those of SD3."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, txt: torch.Tensor, img: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.sin(self.linear(txt)) + img, torch.tanh(self.linear(img) + txt)


class Single(Pair):
    """A block with one, as those of Wan."""

    def forward(self, img: torch.Tensor, txt: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return torch.tanh(self.linear(img) + txt)


class Keeping(Pair):
    """One that also gives what nobody uses, as those of HiDream O1."""

    def forward(self, img: torch.Tensor, txt: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return torch.tanh(self.linear(img) + txt), None


class Model(torch.nn.Module):
    """Its glue code calls blocks as ComfyUI's transformers do."""

    def __init__(self, block: type[Pair]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(block() for _ in range(DEPTH))

    def forward(self, img: torch.Tensor, txt: torch.Tensor, patches: Any) -> torch.Tensor:
        for i, block in enumerate(self.blocks):

            def block_wrap(args: Any, block: torch.nn.Module = block) -> dict[str, Any]:
                out = {}
                if isinstance(block, Single):
                    out["img"] = block(args["img"], args["txt"])
                elif isinstance(block, Keeping):
                    out["img"], _ = block(args["img"], args["txt"])
                else:
                    out["txt"], out["img"] = block(args["txt"], args["img"])
                return out

            args = {"img": img, "txt": txt}
            if i in patches:
                args.update(patches[i](args, {"original_block": block_wrap}))
            else:
                args.update(block_wrap(args))
            img, txt = args["img"], args["txt"]
        return img + txt


def skip(args: Any, extra: Any) -> Any:
    return args


def weaken(args: Any, extra: Any) -> Any:
    return {"img": 0.5 * args["img"], "txt": args["txt"]}


def pass_on(args: Any, extra: Any) -> Any:
    return extra["original_block"]({**args, "txt": args["txt"] + 1})


def patches(**names: Callable[[Any, Any], Any]) -> dict[int, Any]:
    return {int(key[1:]): patch for key, patch in names.items()}


SETS = {
    "first": patches(b0=skip),
    "last": patches(b4=skip),
    "neighbours": patches(b1=skip, b2=skip, b3=weaken),
    "all": dict.fromkeys(range(DEPTH), skip),
    "one that calls its block": patches(b2=pass_on, b3=skip),
}


@pytest.fixture(params=[Pair, Single, Keeping], ids=["two streams", "one stream", "and more"])
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(3)
    return Model(request.param).requires_grad_(False)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, WIDTH, generator=generator), torch.randn(2, WIDTH, generator=generator)


@pytest.mark.parametrize("name", SETS)
def test_stages_equal_the_plain_model(model: Model, name: str) -> None:
    plain = model(*inputs(), SETS[name])
    without = model(*inputs(), {})
    assert not torch.equal(plain, without)
    staged = StagedModel(model, Trunk.of(model, TrunkLayout(blocks=("blocks",))))
    code = {"patches_replace": {"dit": dict(SETS[name])}}
    with_every_unit_called(code, lambda: staged)
    wrapped = code["patches_replace"]["dit"]
    for cuts in ((1, 5), (2, 5), (3, 5), (4, 5), (1, 2, 5), (2, 3, 4, 5), (5,)):
        oracle = Oracle(staged, chain(*zip((0, *cuts), cuts, strict=False)))
        oracle.begin_run(AsyncSchedule(warm_up=1))
        assert torch.equal(oracle.evaluate("lane", (*inputs(), wrapped), {}), plain), cuts
        assert torch.equal(oracle.evaluate("other", (*inputs(), {}), {}), without), cuts
        # Nothing changed since, so the asynchronous result is that of the first evaluation.
        assert torch.equal(oracle.evaluate("lane", (*inputs(), wrapped), {}), plain), cuts
        oracle.end_run()


def test_a_unit_that_is_never_called_is_still_an_error(model: Model) -> None:
    staged = StagedModel(model, Trunk.of(model, TrunkLayout(blocks=("blocks",))))
    oracle = Oracle(staged, chain((0, 2), (2, 5)))
    oracle.begin_run(AsyncSchedule())
    with pytest.raises(LayoutError, match="skips"):
        oracle.evaluate("lane", (*inputs(), {3: skip}), {})


def test_errors_name_the_patch() -> None:
    class Object:
        def __call__(self, args: Any, extra: Any) -> Any:
            return args

    code = {"patches_replace": {"dit": {0: skip, 1: Object()}, "attn1": {2: skip}}}
    with_every_unit_called(code, lambda: pytest.fail("not needed yet"))
    replaced = code["patches_replace"]
    assert replaced["dit"][0].__qualname__ == "skip"
    assert replaced["dit"][1].__qualname__.endswith("Object")
    assert replaced["attn1"][2] is skip
