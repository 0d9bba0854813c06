"""What packs do to a MODEL: exact at full warm-up, local with a note, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo import shapes
from harness.comfy_server import ComfyServer
from harness.features import patched, write_files
from harness.graphs import Workflow
from harness.lab import ADAPTER_PACK, asyncdiff, last_report, latent, workflow, write_models
from harness.ways import PLACES, WAYS, Way, outcome


@pytest.fixture(scope="module")
def lab(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server of its own, since what packs do to a model may keep it for ever."""
    base_dir, packs = tmp_path_factory.mktemp("ways"), [shapes.PACK, ADAPTER_PACK]
    env = {"OMP_NUM_THREADS": "1", "ASYNCDIFF_MAX_GROUPS": "4"}
    with ComfyServer(comfyui_path, base_dir, env=env, more_packs=packs) as running:
        write_models(running.models)
        write_files(running.models)
        yield running


@pytest.mark.parametrize("place", range(len(PLACES)), ids=PLACES)
@pytest.mark.parametrize("way", sorted(WAYS, key=lambda w: w.kind), ids=lambda w: w.name)
def test_way(lab: ComfyServer, way: Way, place: int) -> None:
    """At full warm-up, the one thing or the other: nothing is silently another picture."""
    came, expected = outcome(lab, way, place), way.outcomes[place]
    assert came == expected if expected in ("exact", "local") else expected in came


def test_tiles_are_as_good_as_the_whole(lab: ComfyServer) -> None:
    """Each tile is predicted from its own past, so that tiles cost no fidelity."""

    def error(change: Callable[[Workflow], Workflow]) -> float:
        flow = change(workflow("sd15", steps=10))
        stock = latent(lab, flow)
        ours = latent(lab, asyncdiff(flow, warm_up=2))
        assert {e["mode"] for e in last_report(lab)["evaluations"]} == {"sync", "async"}
        return float((ours - stock).norm() / stock.norm())

    whole, tiled = error(lambda flow: flow), error(patched("TestWay", way="tiles"))
    assert 0 < tiled <= 1.5 * whole, (tiled, whole)
