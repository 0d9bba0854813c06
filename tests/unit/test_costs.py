"""Unit costs: estimated from shapes alone, the same in every session."""

import logging
from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout
from asyncdiff_core.errors import LayoutError
from asyncdiff_core.planning.costs import measure_costs, parameter_costs
from harness.toys import MODELS, Chain, make_inputs


class Stack(nn.Module):
    layout = TrunkLayout(blocks=("units",))

    def __init__(self, *units: nn.Module) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for unit in self.units:
            x = unit(x)
        return x


def costs_of(model: nn.Module, *args: Any, device_type: str = "cpu", **kwargs: Any) -> list[float]:
    trunk = Trunk.of(model, model.layout)
    return measure_costs(
        model.to("meta"), trunk, args, kwargs, entry="forward", device_type=device_type
    )


@pytest.mark.parametrize("device_type", ["cpu", "cuda", "something else"])
@pytest.mark.parametrize("name", ["chain", "skipnet"])
def test_every_unit_costs_something_and_always_the_same(name: str, device_type: str) -> None:
    args, kwargs = make_inputs(name, 0)
    first = costs_of(MODELS[name](), *args, device_type=device_type, **kwargs)
    assert len(first) == len(Trunk.of(MODELS[name](), MODELS[name].layout).units)
    assert min(first) > 0
    args, kwargs = make_inputs(name, 9)  # other values, other weights
    assert costs_of(MODELS[name](), *args, device_type=device_type, **kwargs) == first


def test_twice_the_work_costs_about_twice_as_much() -> None:
    (once,) = costs_of(Stack(nn.Conv2d(64, 64, 3)), torch.zeros(1, 64, 64, 64))
    (twice,) = costs_of(Stack(nn.Conv2d(64, 64, 3)), torch.zeros(2, 64, 64, 64))
    assert twice == pytest.approx(2 * once, rel=0.1)


def test_a_bias_is_next_to_nothing() -> None:
    x = torch.zeros(4, 256, 512)
    with_bias, without = costs_of(Stack(nn.Linear(512, 512), nn.Linear(512, 512, bias=False)), x)
    assert without == pytest.approx(with_bias, rel=0.05)


def test_arithmetic_counts_where_there_is_much_of_it() -> None:
    x = torch.zeros(64, 64, 512)
    linear, activation = costs_of(Stack(nn.Linear(512, 512), nn.ReLU()), x)
    assert linear > 3 * activation
    (thin,) = costs_of(Stack(nn.Linear(512, 8)), x)
    assert thin < linear / 3


def test_views_are_free() -> None:
    class Fold(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.transpose(1, 2).unflatten(1, (8, -1)).permute(0, 2, 1, 3)[:, 1:]

    costs = costs_of(Stack(nn.ReLU(), Fold(), nn.ReLU()), torch.zeros(2, 64, 64))
    assert costs[1] == 0 < costs[0]


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, L, E]
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_attention_is_one_operation() -> None:
    """Its weights, tokens x tokens, never reach the memory; its arithmetic is quadratic."""
    short, long = (
        costs_of(Stack(Attention()), torch.zeros(1, tokens, 64))[0] for tokens in (4096, 8192)
    )
    assert long == pytest.approx(4 * short, rel=0.05)
    weights_traffic = 4096 * 4096 * 4
    (copy,) = costs_of(Stack(nn.ReLU()), torch.zeros(weights_traffic // 4))
    assert short < 4 * copy


def test_nothing_outside_the_trunk_counts_for_the_first_unit() -> None:
    class Headed(Stack):
        def __init__(self, width: int) -> None:
            super().__init__(nn.Linear(8, 8), nn.Linear(8, 8))
            self.embed = nn.Sequential(nn.Linear(8, width), nn.Linear(width, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(self.embed(x))

    x = torch.zeros(2, 16, 8)
    assert costs_of(Headed(8), x)[0] == pytest.approx(costs_of(Headed(4096), x)[0])


def test_a_model_that_cannot_run_on_meta_is_cut_by_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Peeks(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum().item() > 0 else x

    model = Stack(Peeks(4, 4), nn.Linear(4, 6), nn.ReLU())
    with caplog.at_level(logging.WARNING, logger="asyncdiff"):
        assert costs_of(model, torch.zeros(1, 4)) == [20.0, 30.0, 0.0]
    assert "Stack cannot run on the meta device" in caplog.text


def test_a_trunk_that_does_not_fit_its_layout_is_an_error_here_already() -> None:
    class Backwards(Chain):
        def forward(self, x: Any, t: Any, context: Any = None, control: Any = None) -> Any:
            h, emb = self.embed(x), self.time(t.view(-1, 1, 1))
            for block in reversed(self.blocks):
                _, h = block(context, h, emb)
            return h

    args, kwargs = make_inputs("chain", 0)
    with pytest.raises(LayoutError, match=r"Backwards called unit blocks\.5"):
        costs_of(Backwards(), *args, **kwargs)


def test_parameter_costs() -> None:
    model = Stack(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
    assert parameter_costs(Trunk.of(model, Stack.layout)) == [20.0, 0.0, 10.0]
