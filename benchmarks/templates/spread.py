"""What a user of this pack makes of a workflow: twins with its nodes. Pure."""

from __future__ import annotations

from harness.graphs import SAMPLERS, Workflow, node

from .flatten import Json
from .judge import input_type, is_link

LOADERS = ("UNETLoader", "CheckpointLoaderSimple", "ImageOnlyCheckpointLoader")
TINY_LOADER = "TestDescribedModel"
PLAN = {"devices": "cpu,cpu", "stages": 0, "replicas": 0, "stride": 1}
WARM_UP = 100  # more than any run here has evaluations: all are synchronous
# Nodes that evaluate a MODEL, or hold it for one that does.
CUSTOM = (
    *("SamplerCustom", "BasicGuider", "CFGGuider", "DualCFGGuider", "DualModelGuider"),
    "PerpNegGuider",
)


def parallelized(flow: Workflow, object_info: Json) -> Workflow:
    """*Parallelize Model* behind each loader, and *Schedule* before each sampler."""
    twin = dict(flow)
    for name, one in flow.items():
        if one["class_type"] in (*LOADERS, TINY_LOADER):
            spread = f"spread {name}"
            for other, its in twin.items():
                relinked = {
                    key: [spread, 0] if value == [name, 0] else value
                    for key, value in its["inputs"].items()
                }
                twin[other] = node(its["class_type"], **relinked)
            twin[spread] = node("AsyncDiffParallelize", model=[name, 0], **PLAN)
    for name, one in list(twin.items()):
        if one["class_type"] in (*SAMPLERS, *CUSTOM):
            twin.update(_scheduled(twin, name, object_info, WARM_UP))
    return twin


def with_samplers(flow: Workflow, object_info: Json, warm_up: int = WARM_UP) -> Workflow:
    """This pack's sampler nodes on stock MODELs, and *Schedule* before custom samplers.

    With another `warm_up` ComfyUI does not answer out of its cache, and notes are given anew.
    """
    twin = dict(flow)
    for name, one in flow.items():
        kind = one["class_type"]
        if kind in SAMPLERS:
            twin[name] = node(SAMPLERS[kind], **one["inputs"], warm_up=warm_up, time_shift=False)
        elif kind in CUSTOM:
            twin.update(_scheduled(twin, name, object_info, warm_up))
    return twin


def _scheduled(flow: Workflow, name: str, object_info: Json, warm_up: int) -> Workflow:
    """The node, and *Schedule* before each MODEL that it gets."""
    one, made = flow[name], {}
    inputs = dict(one["inputs"])
    for key, value in inputs.items():
        if is_link(value) and input_type(one["class_type"], key, object_info) == "MODEL":
            schedule = f"schedule {name} {key}"
            made[schedule] = node(
                "AsyncDiffSchedule", model=value, warm_up=warm_up, time_shift=False
            )
            inputs[key] = [schedule, 0]
    return {**made, name: node(one["class_type"], **inputs)}
