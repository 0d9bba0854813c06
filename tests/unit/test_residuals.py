"""Control residuals: each stage gets those that it needs, and they suffice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asyncdiff_core.algorithm.activations import copy_output
from asyncdiff_core.algorithm.stage import Neighbours, StagedModel
from asyncdiff_core.algorithm.trunk import Trunk
from asyncdiff_core.wire.channel import encode_frame
from asyncdiff_core.wire.residuals import Residuals
from harness.toys import make_inputs, make_model


@pytest.fixture
def trunk() -> Trunk:
    model = make_model("skipnet")
    return Trunk.of(model, model.layout)


@pytest.fixture
def residuals(trunk: Trunk) -> Residuals:
    found = Residuals.of(trunk, 3)
    assert found is not None
    return found


def kept(inputs: Any) -> dict[str, list[int]]:
    control = inputs[1]["control"]
    return {k: [i for i, entry in enumerate(v) if entry is not None] for k, v in control.items()}


def test_each_stage_gets_its_own(residuals: Residuals) -> None:
    # Units: inputs 0, 1-2, 3, 4-5; middle 6-7; outputs 8, 9-10, 11, 12. Entries from the end.
    inputs = make_inputs("skipnet", 0)
    assert kept(residuals.for_stage(inputs, ((0, 6),))) == {
        "input": [1, 2, 3],
        "middle": [],
        "output": [],
    }
    assert kept(residuals.for_stage(inputs, ((6, 10),))) == {
        "input": [0, 1],  # what the middle reads, and the skip of output block 1
        "middle": [0],
        "output": [2, 3],
    }
    assert kept(residuals.for_stage(inputs, ((10, 13),))) == {
        "input": [2, 3],
        "middle": [],
        "output": [0, 1],
    }


def test_they_suffice_wherever_the_trunk_is_cut(trunk: Trunk, residuals: Residuals) -> None:
    model = make_model("skipnet")
    plain = model(*make_inputs("skipnet", 0)[0], **make_inputs("skipnet", 0)[1])
    staged = StagedModel(model, trunk := Trunk.of(model, model.layout))
    num_units = len(trunk.units)
    for cut in range(1, num_units):
        sent: dict[int, Any] = {}

        class Given(Neighbours):
            consumed = sent

            def take(self, unit: int) -> Any:
                return copy_output(self.consumed[unit])

            def give(self, unit: int, output: Any) -> None:
                super().give(unit, output)
                self.consumed[unit] = copy_output(output)

        others = Given()
        for units in ((0, cut), (cut, num_units)):
            args, kwargs = residuals.for_stage(make_inputs("skipnet", 0), (units,))
            result = staged.run_stage((units,), args, kwargs, others)
        assert torch.equal(result, plain), cut


def test_a_message_has_no_bytes_of_the_others(residuals: Residuals) -> None:
    args, kwargs = make_inputs("skipnet", 0)
    control = {k: [e.expand(2, 8, 16, 16).clone() for e in v] for k, v in kwargs["control"].items()}
    inputs = args, {"control": control}
    size = 2 * 8 * 16 * 16 * 4

    def num_bytes(message: Any) -> int:
        return sum(len(part) for part in encode_frame(message))

    everything = num_bytes(inputs)
    assert everything > 9 * size
    for stage, needed in (
        *((((0, 6),), 3), (((6, 10),), 5), (((10, 13),), 4)),
        *((((3, 10),), 6), (((0, 3), (10, 13)), 4)),
    ):
        saved = everything - num_bytes(residuals.for_stage(inputs, stage))
        assert saved == pytest.approx((9 - needed) * size, abs=1000)


def test_lists_of_other_lengths(residuals: Residuals) -> None:
    """A T2I adapter gives fewer, and some are None; more than there are blocks nobody reads."""
    few = {"input": [torch.ones(1), None]}  # for the blocks 1 and 0
    assert kept(residuals.for_stage(((), {"control": few}), ((0, 3),))) == {"input": []}
    assert kept(residuals.for_stage(((), {"control": few}), ((3, 8),))) == {"input": [0]}
    many = {"middle": [torch.ones(1), torch.ones(1)]}
    assert kept(residuals.for_stage(((), {"control": many}), ((0, 3),))) == {"middle": [0]}


def test_what_is_not_known_stays(residuals: Residuals) -> None:
    control = {"input": (1, 2), "more": [torch.ones(1)], "middle": torch.ones(1)}
    _, kwargs = residuals.for_stage(((), {"control": control}), ((0, 1),))
    assert kwargs["control"] == control
    inputs = ((1, 2), {"control": None})
    assert residuals.for_stage(inputs, ((0, 1),)) is inputs
    assert Residuals.of(Trunk.of(make_model("chain"), make_model("chain").layout), 3) is None


def test_positional(residuals: Residuals) -> None:
    args, kwargs = make_inputs("skipnet", 0)
    inputs = (*args, kwargs["context"], kwargs["control"]), {}
    (*_, control), _ = residuals.for_stage(inputs, ((0, 6),))
    assert kept(((), {"control": control})) == {"input": [1, 2, 3], "middle": [], "output": []}
