"""What packs do to a MODEL: exact at full warm-up, local with a note, or refused by name."""

from __future__ import annotations

import pytest

from demo.comfy_server import ComfyServer

from .features import write_files
from .ways import PLACES, WAYS, Way, outcome


@pytest.fixture(scope="module", autouse=True)
def files(lab: ComfyServer) -> None:
    write_files(lab.models)


@pytest.mark.parametrize("place", range(len(PLACES)), ids=PLACES)
@pytest.mark.parametrize("way", sorted(WAYS, key=lambda w: w.kind), ids=lambda w: w.name)
def test_way(lab: ComfyServer, way: Way, place: int) -> None:
    came, expected = outcome(lab, way, place), way.outcomes[place]
    assert came == expected if expected in ("exact", "local") else expected in came
