"""What people do to models: exact at full warm-up, or refused by name."""

from __future__ import annotations

import pytest

from harness.comfy_server import ComfyServer
from harness.features import FEATURES, Feature, outcome, write_files


@pytest.fixture(scope="module", autouse=True)
def files(lab: ComfyServer) -> None:
    write_files(lab.models)


# Those of one model after the other: workers take ten seconds to come up.
@pytest.mark.parametrize("feature", sorted(FEATURES, key=lambda f: f.kind), ids=lambda f: f.name)
def test_feature(lab: ComfyServer, feature: Feature) -> None:
    assert outcome(lab, feature) == ("refused" if feature.refusal else "exact")
