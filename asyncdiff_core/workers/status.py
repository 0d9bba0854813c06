"""What a group and its workers are doing now, as plain data. Read from any thread."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from ..reports.progress import num_steps_done
from .group import WorkerGroup
from .members import Member
from .memory import resident_bytes

GroupState = Literal["starting", "idle", "loading", "sampling", "parked", "broken"]
WorkerState = Literal["starting", "loading", "idle", "computing", "waiting", "stopped"]


def group_status(group: WorkerGroup) -> dict[str, Any]:
    """The state of `group` and of its workers."""
    group.look()
    state = group_state(group)
    members = list(group.members)
    return {
        "id": group.id,
        "model": group.source.name,
        "files": [Path(file).name for file in group.source.files],
        "state": state,
        "plan": {**dataclasses.asdict(group.plan), "devices": list(group.plan.devices)},
        "notes": list(group.holdings.notes),
        "links": group.members.links,
        "run": _run(group),
        "last_error": group.error,
        "workers": [_worker(group, member, state) for member in members],
    }


def group_state(group: WorkerGroup) -> GroupState:
    """What the group as a whole does. Parked: its workers are up, without weights."""
    if not group.is_alive():
        return "broken"
    if any(member.process.ready is None for member in list(group.members)):
        return "starting"
    if group.holdings.are_loading:
        return "loading"
    if group.is_running:
        return "sampling"
    return "idle" if group.holdings.are_loaded else "parked"


def _run(group: WorkerGroup) -> dict[str, Any] | None:
    report = group.report
    if report is None:
        return None
    evaluations = list(report.evaluations)
    return {
        "prompt_id": report.prompt_id,
        "node_id": report.node_id,
        "warm_up": report.schedule["warm_up"],
        "steps": report.steps,
        "evaluations": num_steps_done(report),
        "mode": evaluations[-1].mode if evaluations else None,
    }


def _worker(group: WorkerGroup, member: Member, state: GroupState) -> dict[str, Any]:
    process, place = member.process, member.placement
    return {
        "rank": place.rank,
        "device": process.device,
        "device_name": process.ready.device_name if process.ready else None,
        "pid": process.pid,
        "replica": place.replica,
        "stage": place.stage,
        "lead": place.lead,
        "units": [list(units) for units in member.stage],
        "unit_names": [list(names) for names in group.source.names_of(member.stage)],
        "num_units": len(group.source.units),
        "state": _worker_state(member, state),
        "weight_bytes": member.loaded.weight_bytes,
        "shared_bytes": member.loaded.shared_bytes,
        "streamed_bytes": member.loaded.streamed_bytes,
        "waiting_bytes": member.waiting_bytes,
        "activation_bytes": process.activation_bytes,
        "resident_bytes": resident_bytes(process.pid),
        "log_file": str(process.log_file),
    }


def _worker_state(member: Member, state: GroupState) -> WorkerState:
    process = member.process
    if not process.is_alive():
        return "stopped"
    if process.ready is None:
        return "starting"
    if process.doing == "nothing" or state in ("idle", "parked"):
        return "idle"
    if state == "loading":
        return "loading"
    return "waiting" if process.doing == "waiting" else "computing"
