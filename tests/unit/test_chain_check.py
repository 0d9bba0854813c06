"""Which blocks of an unknown architecture pass for units, and why others do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from asyncdiff_core.algorithm.trunk import Trunk, guess_layout
from asyncdiff_core.errors import LayoutError
from asyncdiff_core.planning.chain_check import require_chain
from harness.toys import Chain

WIDTH = 8


class Model(nn.Module):
    """Four blocks in a row; what else happens is up to each test."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.kept: list[torch.Tensor] = []
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return h


class FromTheInput(Model):
    """Every block sees the input again, and the time in between: that is glue, and allowed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(x)
        h = embedded
        for block in self.blocks:
            h += 1  # in place
            h = block(h) + embedded
        return h * 2


class Skip(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [self.embed(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1] + (outputs[2] if len(outputs) == 4 else 0)))
        return outputs[-1]


class HeadReadsAll(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, total = x, torch.zeros_like(x)
        for block in self.blocks:
            h = block(h)
            total += h
        return total


class Reversed(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return x


class Twice(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(super().forward(x))


class NotAll(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks[:-1]:
            x = block(x)
        return x


class Asks(Model):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = super().forward(x)
        return h if h.sum() > 0 else -h


class FromBefore(Model):
    """Keeps an output for the next evaluation, as a cache would."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x + self.kept.pop() if self.kept else x)
        self.kept.append(x)
        return x


class Aside(nn.Linear):
    """A block that has a second way out, by a dict that all of them share."""

    def __init__(self, index: int, shared: dict[str, torch.Tensor]) -> None:
        super().__init__(WIDTH, WIDTH)
        self.index, self.shared = index, shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.index == 0:
            self.shared["first"] = torch.tanh(x)
        return super().forward(x) + self.shared["first"]


class SideDoor(Model):
    def __init__(self) -> None:
        super().__init__()
        shared = {"first": torch.zeros(WIDTH)}
        self.blocks = nn.ModuleList(Aside(index, shared) for index in range(4))


class Counting(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x)


calls = 0


class CountingInAGlobal(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        global calls
        calls += 1
        return super().forward(x) * calls


class CountsInAGlobal(Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CountingInAGlobal(WIDTH, WIDTH) for _ in range(4))


class Counts(Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Counting(WIDTH, WIDTH) for _ in range(4))


class InPlace(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.add_(super().forward(x))


class InPlaceChain(Model):
    """Blocks that write into what they get and return it, as LTX-2's do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InPlace(WIDTH, WIDTH) for _ in range(4))


class InPlaceSeen(InPlaceChain):
    """The name of an output whose memory a later block has written into."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = h = self.blocks[0](self.embed(x))
        for block in self.blocks[1:]:
            h = block(h)
        return h + first


def check(model: nn.Module, *args: Any) -> None:
    model = model.to("meta")
    require_chain(model, Trunk.of(model, guess_layout(model)), args, {}, entry="forward")


@pytest.mark.parametrize("kind", [Model, FromTheInput, InPlaceChain])
def test_chains(kind: type[nn.Module]) -> None:
    check(kind(), torch.zeros(2, WIDTH))


def test_blocks_with_two_outputs() -> None:
    check(Chain(), torch.zeros(2, 5, 4), torch.zeros(2), torch.zeros(2, 3, 16))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Skip, "blocks.3 reads the output of blocks.1"),
        (HeadReadsAll, "what comes after the last of them reads the output of blocks."),
        (Reversed, "blocks.3 is called where blocks.0 is due"),
        (Twice, "blocks.0 is called where none of them is due"),
        (NotAll, "blocks.3 is not called"),
        (Asks, "cannot be checked without weights"),
        (FromBefore, "blocks.0 reads the output of blocks.3 of the evaluation before"),
        (SideDoor, "blocks.1 reads something inside blocks.0"),
        (Counts, "blocks.0 changes something beside its output"),
        (CountsInAGlobal, "blocks.0 changes something beside its output"),
        (InPlaceSeen, "what comes after the last of them reads"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_chain_is_refused_with_the_reason(kind: type[nn.Module], reason: str) -> None:
    with pytest.raises(LayoutError, match=kind.__name__) as caught:
        check(kind(), torch.zeros(2, WIDTH))
    assert reason in str(caught.value)


def test_the_model_is_left_as_it_was() -> None:
    model = Model().to("meta")
    trunk = Trunk.of(model, guess_layout(model))
    forwards = [unit.module.forward for unit in trunk.units]
    require_chain(model, trunk, (torch.zeros(2, WIDTH),), {}, entry="forward")
    assert [unit.module.forward for unit in trunk.units] == forwards


def test_the_largest_lists_are_guessed() -> None:
    model = Model()
    model.small = nn.ModuleList(nn.Linear(1, 1) for _ in range(3))
    model.large = nn.ModuleList(nn.ModuleList([nn.Linear(WIDTH, WIDTH)]) for _ in range(3))
    assert guess_layout(model).blocks == ("blocks", "large")


def test_no_list_of_blocks() -> None:
    with pytest.raises(LayoutError, match="Linear has no list of blocks"):
        guess_layout(nn.Linear(1, 1))
