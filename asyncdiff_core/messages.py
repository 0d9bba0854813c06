"""The messages between ComfyUI and its workers.

Only plain data and tensors travel: the pack's classes have other module names in ComfyUI than in a
worker, so a message crosses as its name and its fields. Every request has a ticket, which its
answer repeats, so that an answer that nobody waits for any more is told from a later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from .errors import ChannelDataError
from .partition import Stage

# Waiting is for a message of another worker.
Activity = Literal["computing", "waiting", "nothing"]
# Out of memory as ComfyUI defines it; the link to another worker broke; it cannot be spread.
Failure = Literal["error", "memory", "link", "refused"]

# The fields of a report.Span.
SpanFields = tuple[int, int, Literal["sync", "async"], float, float, float, float]

# To a worker -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configure:
    """First message: who the worker is, and how it builds its model.

    `builder` is ``module:function``; called with `spec` and the torch device it returns a
    StageModel (see worker.py).
    """

    rank: int
    name: str
    device: str
    num_threads: int
    builder: str
    spec: dict[str, Any]
    backend: str
    rendezvous: str


@dataclass(frozen=True)
class MeasureCosts:
    """Estimate what each unit costs for inputs like these (no weights needed)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Import:
    """Import a module of a node pack, if that is possible. `root` is the pack's, in `file`."""

    module: str
    root: str
    file: str


@dataclass(frozen=True)
class Load:
    """Own the units of `stage`, and exchange activations along these links.

    `incoming` and `outgoing` are (rank, units, whether the link is fresh) each, see
    partition.Link. `lead` is 0, or for an extra copy of the last stage how many evaluations older
    the output is that it yields.
    """

    stage: Stage
    incoming: tuple[tuple[int, tuple[int, ...], bool], ...] = ()
    outgoing: tuple[tuple[int, tuple[int, ...], bool], ...] = ()
    lead: int = 0


@dataclass(frozen=True)
class Unload:
    """Give the memory of the weights back."""


@dataclass(frozen=True)
class Patch:
    """Weight patches (LoRA and the like) for the owned units, in place of those in force."""

    payload: Any


@dataclass(frozen=True)
class Compile:
    """Compile the owned units as `payload` says, or have them as they are if it is None."""

    payload: Any


@dataclass(frozen=True)
class Attach:
    """What the inputs of evaluations of this run may refer to as `key`.

    That is patches that are code, or the owned units' weight patches of a LoRA on a conditioning.
    """

    key: str
    payload: Any


@dataclass(frozen=True)
class Evaluate:
    """Run a round.

    `inputs` is what InputEncoder made of the inputs of its first evaluation. `variants` has, for
    each evaluation that the round yields, the leaves of these inputs that its timestep replaces.
    """

    lane: int
    index: int
    evaluation: int
    mode: str
    inputs: Any
    variants: list[dict[int, Any]]


@dataclass(frozen=True)
class EndRun:
    """The sampling run is over: its lanes die."""


@dataclass(frozen=True)
class Stop:
    """End the process in good order."""


# From a worker ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The worker is up.

    `speed` is its matrix multiplication rate, in FLOP/s; `memory_bytes` the memory of its device,
    or 0 where the device shares the host's; `search_path` is where it looks for Python modules.
    """

    pid: int
    device_name: str
    speed: float
    memory_bytes: int
    search_path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Costs:
    """Answer to MeasureCosts: seconds, of an imaginary device, per unit."""

    costs: tuple[float, ...]


@dataclass(frozen=True)
class Loaded:
    """Answer to Load: bytes of its units, of the parts outside the trunk, and of the process."""

    weight_bytes: int
    shared_bytes: int
    resident_bytes: int


@dataclass(frozen=True)
class Imported:
    """Answer to Import."""

    is_there: bool


@dataclass(frozen=True)
class Done:
    """Answer to Patch, Compile, Attach and Unload."""


@dataclass(frozen=True)
class Result:
    """Answer of the last stage to Evaluate: the model's output.

    `lane_bytes`: what the worker keeps of messages for this lane.
    """

    output: Any
    lane_bytes: int = 0


@dataclass(frozen=True)
class RunEnded:
    """Answer to EndRun: what was done when, see report.Span; clocks are `time.perf_counter`.

    `activation_bytes`: the peak beyond the weights, see memory.ActivationMemory.
    """

    spans: list[SpanFields]
    resident_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class Beat:
    """Sent once a second by a worker that was busy in it.

    `units` counts the units that it has run; `doing` is what it does now; `activation_bytes` as in
    RunEnded, of the run so far.
    """

    units: int
    doing: Activity
    activation_bytes: int = 0


@dataclass(frozen=True)
class Failed:
    """The worker could not do what it was asked."""

    text: str
    kind: Failure = "error"
    traceback: str = field(default="", repr=False)


_TYPES = {
    cls.__name__: cls
    for cls in (
        *(Configure, MeasureCosts, Import, Load, Unload, Patch, Compile, Attach, Evaluate),
        *(EndRun, Stop),
        *(Ready, Costs, Imported, Loaded, Done, Result, RunEnded, Beat, Failed),
    )
}


_MAX_INT = 2**63
_MAX_TEXT = 2**20  # characters of a text: a traceback with its causes


def _is_int(value: Any) -> bool:
    return type(value) is int and -_MAX_INT <= value < _MAX_INT


def _is_float(value: Any) -> bool:
    return _is_int(value) or (type(value) is float and math.isfinite(value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _is_span(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) == 7
        and all(map(_is_int, value[:2]))
        and value[2] in ("sync", "async")
        and all(map(_is_float, value[3:]))
    )


def _all(is_good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple | list) and all(map(is_good, value))


# What fields of these types may be. Nothing is said of the value itself, which may be anything.
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "int": _is_int,
    "float": _is_float,
    "str": _is_text,
    "bool": lambda value: isinstance(value, bool),
    "Activity": lambda value: isinstance(value, str) and value in get_args(Activity),
    "Failure": lambda value: isinstance(value, str) and value in get_args(Failure),
    "tuple[float, ...]": _all(_is_float),
    "tuple[str, ...]": _all(_is_text),
    "list[SpanFields]": _all(_is_span),
}


def _check(name: str, value: Any, kind: str) -> None:
    if not _CHECKS.get(kind, lambda value: True)(value):
        raise TypeError(f"{name} is no {kind}")


def to_wire(message: Any, ticket: int = 0) -> tuple[str, int, tuple[Any, ...]]:
    """`message` as plain data."""
    values = tuple(getattr(message, f.name) for f in fields(message))
    return type(message).__name__, ticket, values


def from_wire(wire: tuple[str, int, tuple[Any, ...]]) -> tuple[Any, int]:
    """The message that `to_wire` took apart, and its ticket.

    Raises:
        ChannelDataError: it is none.
    """
    try:
        name, ticket, values = wire
        if not isinstance(name, str) or name not in _TYPES:
            raise TypeError("there is no message of this kind")
        message = _TYPES[name](*values)
        for field_ in fields(message):
            _check(field_.name, getattr(message, field_.name), str(field_.type))
        _check("ticket", ticket, "int")
    except (TypeError, ValueError) as error:
        raise ChannelDataError(
            f"the other end sent something that is no message ({type(error).__name__}: {error})"
        ) from error
    return message, ticket
