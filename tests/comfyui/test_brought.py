"""Weights that come with a patch, and MODELs that no file has as they are."""

from __future__ import annotations

import pytest

from harness.brought import CASES, SPREADS, Case, async_outcome, outcome
from harness.comfy_server import ComfyServer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_workers_give_the_bits_of_comfyuis_own_run(server: ComfyServer, case: Case) -> None:
    """Without, with, and without a LoRA; other plans with it alone."""
    for number, spread in enumerate(SPREADS):
        loras = (1.0,) if number else (0.0, 1.0, 0.0)
        assert outcome(server, case, spread, loras) == "exact"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_asynchronous_evaluations_are_those_of_the_oracle(server: ComfyServer, case: Case) -> None:
    assert async_outcome(server, case) == "exact"
