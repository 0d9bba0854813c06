"""The paths between units that a layout describes, besides those from one unit to the next."""

from __future__ import annotations

import pytest
import torch

from asyncdiff_core.algorithm.stages import links_between
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout
from asyncdiff_core.errors import LayoutError
from harness.cuts import chain


def blocks(number: int) -> torch.nn.ModuleList:
    return torch.nn.ModuleList(torch.nn.Identity() for _ in range(number))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.noise, self.main = blocks(2), blocks(1), blocks(3)
        self.inner = torch.nn.Module()
        self.inner.named = torch.nn.ModuleDict({"a": torch.nn.Identity(), "b": torch.nn.Identity()})
        self.side, self.side_after = blocks(2), {0: 0, 2: 1}
        self.absent = None


def names(layout: TrunkLayout) -> list[str]:
    return [unit.name for unit in Trunk.of(Model(), layout).units]


def test_order_is_that_of_the_lists() -> None:
    assert names(TrunkLayout(blocks=("text", "absent", "main"))) == [
        *("text.0", "text.1", "main.0", "main.1", "main.2")
    ]


def test_dotted_names_and_dicts_of_blocks() -> None:
    assert names(TrunkLayout(blocks=("inner.named",))) == ["inner.named.a", "inner.named.b"]


def test_a_renamed_attribute_is_named() -> None:
    with pytest.raises(LayoutError, match=r"no attribute 'inner.blocks'"):
        Trunk.of(Model(), TrunkLayout(blocks=("inner.blocks",)))


def test_a_join_leads_past_the_blocks_between() -> None:
    layout = TrunkLayout(blocks=("text", "noise", "main"), joins=(("text", "main"),))
    trunk = Trunk.of(Model(), layout)
    assert trunk.skips == ((1, 3),)  # text.1 -> main.0
    (link,) = links_between(chain((0, 3), (3, 6)), trunk.skips)
    assert link.units == (1, 2)
    (link,) = links_between(chain((0, 4), (4, 6)), trunk.skips)
    assert link.units == (3,)  # behind main.0 nothing reads the text


def test_what_is_shared_reaches_every_block() -> None:
    layout = TrunkLayout(blocks=("text", "main"), shared=(("text", "main"),))
    trunk = Trunk.of(Model(), layout)
    assert trunk.skips == ((1, 2), (1, 3), (1, 4))
    first, second, third = links_between(chain((0, 3), (3, 4), (4, 5)), trunk.skips)
    assert (first.target, first.units) == (1, (1, 2))
    assert (second.target, second.units) == (2, (1,))  # straight from the first stage
    assert third.units == (3,)


def test_skips_within_one_list() -> None:
    model = Model()
    model.main = blocks(6)
    trunk = Trunk.of(model, TrunkLayout(blocks=("main",), skips=(("main", "main"),)))
    assert trunk.skips == ((0, 5), (1, 4), (2, 3))


def test_a_second_stream_beside_the_first() -> None:
    layout = TrunkLayout(blocks=("main",), beside=("main", "side", "side_after"))
    trunk = Trunk.of(Model(), layout)
    assert [u.name for u in trunk.units] == ["main.0", "side.0", "main.1", "main.2", "side.1"]
    # Each block reads the one before it in its own stream; the next unit is read anyway.
    assert trunk.skips == ((0, 2), (1, 4))
    (link,) = links_between(chain((0, 3), (3, 5)), trunk.skips)
    assert link.units == (1, 2)
