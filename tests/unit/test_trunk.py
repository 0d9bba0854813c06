"""Finding the units of a model, and holding some of them only."""

import pytest
import torch
from torch import nn

from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout, drop_parameters, parameter_bytes
from asyncdiff_core.errors import LayoutError
from harness.toys import Chain, SkipNet, make_model


def test_the_units_of_a_chain_are_its_blocks() -> None:
    model = make_model("chain")
    trunk = Trunk.of(model, Chain.layout)
    assert [unit.name for unit in trunk.units] == [f"blocks.{i}" for i in range(6)]
    assert all(unit.module is model.get_submodule(unit.name) for unit in trunk.units)
    assert trunk.skips == ()


def test_the_units_of_a_unet_are_layers_and_its_skips_go_between_them() -> None:
    model = make_model("skipnet")
    trunk = Trunk.of(model, SkipNet.layout)
    assert [unit.name for unit in trunk.units] == [
        *("inputs.0.0", "inputs.1.0", "inputs.1.1", "inputs.2.0", "inputs.3.0", "inputs.3.1"),
        *("middle.0", "middle.1"),
        *("outputs.0.0", "outputs.1.0", "outputs.1.1", "outputs.2.0", "outputs.3.0"),
    ]
    assert all(unit.module is model.get_submodule(unit.name) for unit in trunk.units)
    # Last layer of input block i to the first layer of output block n-1-i.
    assert set(trunk.skips) == {(0, 12), (2, 11), (3, 9), (5, 8)}


def test_an_attribute_that_is_missing_is_named() -> None:
    with pytest.raises(LayoutError, match="Chain has no attribute 'transformer_blocks'"):
        Trunk.of(make_model("chain"), TrunkLayout(blocks=("blocks", "transformer_blocks")))


def test_an_attribute_that_is_none_is_skipped() -> None:
    model = make_model("chain")
    model.middle = None
    trunk = Trunk.of(model, TrunkLayout(blocks=("middle", "blocks")))
    assert len(trunk.units) == 6


def test_parameter_bytes_counts_what_is_real_and_once() -> None:
    first = nn.Linear(4, 8)  # 32 + 8 floats
    tied = nn.Linear(4, 8, bias=False)
    tied.weight = first.weight
    virtual = nn.Linear(100, 100, device="meta")
    norm = nn.BatchNorm1d(3)  # 4 x 3 floats and a whole number
    assert parameter_bytes([first, tied, virtual]) == 40 * 4
    assert parameter_bytes([norm]) == 12 * 4 + 8
    assert parameter_bytes([]) == 0


def test_dropped_parameters_take_no_memory_and_leave_the_rest_alone() -> None:
    model = make_model("skipnet")
    kept = parameter_bytes([model.middle])
    whole = parameter_bytes([model])
    dropped = [*model.inputs, *model.outputs]
    gone = parameter_bytes(dropped)
    drop_parameters(dropped)
    assert parameter_bytes(dropped) == 0
    assert parameter_bytes([model]) == whole - gone
    assert parameter_bytes([model.middle]) == kept > 0
    assert not any(name.startswith(("inputs", "outputs")) for name in model.state_dict())
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the layer says
        model.inputs[0](torch.zeros(1, 4, 8, 8))


def test_dropped_buffers_go_too() -> None:
    norm = nn.BatchNorm1d(3)
    drop_parameters([norm])
    assert parameter_bytes([norm]) == 0
    assert list(norm.parameters()) == list(norm.buffers()) == []
