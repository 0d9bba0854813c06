"""What ComfyUI asks its workers, and what they answer.

Only plain data and tensors travel: the pack's classes have other module names in ComfyUI than in a
worker, so requests and answers cross as their names and their fields. Every request has a ticket,
which its answer repeats, so that an answer that nobody waits for any more is told from a later one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ..algorithm.schedule import Mode
from ..errors import ChannelDataError
from ..settings import Backend

# Waiting is for a message of another worker.
Activity = Literal["computing", "waiting", "nothing"]
# Out of memory as ComfyUI defines it; the link to another worker broke; it cannot be spread.
Failure = Literal["error", "memory", "link", "refused"]

_MAX_INT = 2**63
_MAX_TEXT = 2**20  # characters of a text: a traceback with its causes

Number = Annotated[int, lambda value: value >= 0]
Seconds = float
# Ranges of units, in order.
Units = Annotated[
    tuple[tuple[Number, Number], ...],
    lambda stage: all(start < stop for start, stop in stage),
]
# Of another worker its rank, how many stages before the last one it is, the units that cross, and
# whether the link is fresh.
LinkFields = tuple[Number, Number, tuple[Number, ...], bool]
# The fields of a report.Span.
SpanFields = tuple[Number, Number, Mode, Seconds, Seconds, Seconds, Seconds]

# To a worker -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Configure:
    """First request: who the worker is, and how it builds its model.

    `builder` is ``module:function``; called with `spec` and the torch device it returns a
    StageModel (see stage_model.py).
    """

    rank: Number
    name: str
    device: str
    num_threads: Annotated[int, lambda value: value >= 1]
    builder: str
    spec: dict[str, Any]
    rendezvous: str


@dataclass(frozen=True)
class Connect:
    """Connect with all other workers, see transport.Transport, and test every link."""

    backend: Backend
    attempt: Number


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

    `distance` is how many stages before the last one this one lies. `incoming` and `outgoing` are
    (rank, distance, units, whether the link is fresh) each, see stages.Link. `lead` is 0, or for an
    extra copy of the last stage how many evaluations older the output is that it yields. `budget`
    is how many bytes of weights may stay on the device, where not all of them may.
    """

    stage: Units
    distance: Number = 0
    incoming: tuple[LinkFields, ...] = ()
    outgoing: tuple[LinkFields, ...] = ()
    lead: Number = 0
    budget: Number | None = None


@dataclass(frozen=True)
class Unload:
    """Give the memory of the weights back.

    With `waits` they may wait in the host's memory, where there is room, for the next Load.
    """

    waits: bool = False


@dataclass(frozen=True)
class MeasureMemory:
    """Tell what is free on the device."""


@dataclass(frozen=True)
class Patch:
    """Weight patches (LoRA and the like) for the owned units, in place of those in force."""

    payload: Any


@dataclass(frozen=True)
class Compile:
    """Compile the owned units as `payload` says, or have them as they are if it is None."""

    payload: Any


@dataclass(frozen=True)
class Keep:
    """What the inputs of evaluations of this run may refer to as `key`.

    That is patches that are code, or the owned units' weight patches of a LoRA on a conditioning.
    """

    key: str
    payload: Any


@dataclass(frozen=True)
class Evaluate:
    """Run a round, see schedule.Round.

    `evaluation` is the one that the worker works for. `inputs` is what InputEncoder made of the
    inputs of the round's first evaluation; `change` has the leaves of them that the worker's own
    time replaces, or is None for a worker that does nothing but receive. `entering` has those that
    the time of the stage within replaces, where that is another one: the outermost stage of a fold
    first runs its way in for it. `goals` are the rounds for whose results the stages work, the last
    stage first; None for those that do nothing.
    """

    lane: Number
    evaluation: Number
    mode: Mode
    inputs: Annotated[tuple[Any, Any], lambda pair: isinstance(pair[1], dict)]
    change: dict[Number, Any] | None
    entering: dict[Number, Any] | None
    goals: list[Number | None]


@dataclass(frozen=True)
class EndRun:
    """The sampling run is over: its lanes die.

    With `gives_back`, memory of the device that PyTorch keeps for the next run is given back.
    """

    gives_back: bool = False


@dataclass(frozen=True)
class Stop:
    """End the process in good order."""


# From a worker ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """The worker is up.

    `speed` is about its matrix multiplication rate, in FLOP/s; `memory_bytes` the memory of its
    device, or 0 where the device shares the host's; `search_path` is where it looks for modules.
    """

    pid: Number
    device_name: str
    speed: Annotated[float, lambda value: value >= 0]
    memory_bytes: Number
    search_path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Costs:
    """Answer to MeasureCosts: seconds, of an imaginary device, per unit."""

    costs: tuple[float, ...]


@dataclass(frozen=True)
class Unloaded:
    """Answer to Unload: how many bytes wait in the host's memory."""

    waiting_bytes: Number


@dataclass(frozen=True)
class Memory:
    """Answer to MeasureMemory: bytes that are free on the device, and that this worker has there.

    A device that shares the host's memory has none of its own: both are 0.
    """

    free_bytes: Number
    held_bytes: Number


@dataclass(frozen=True)
class Loaded:
    """Answer to Load: bytes of its units, of the parts outside the trunk, and of the process.

    `streamed_bytes`: how much of the first two is not on the device.
    """

    weight_bytes: Number
    shared_bytes: Number
    resident_bytes: Number
    streamed_bytes: Number = 0


@dataclass(frozen=True)
class Connected:
    """Answer to Connect: what is wrong, or ""."""

    trouble: str


@dataclass(frozen=True)
class Imported:
    """Answer to Import."""

    is_there: bool


@dataclass(frozen=True)
class Done:
    """Answer to Patch, Compile and Keep."""


@dataclass(frozen=True)
class Result:
    """Answer of the last stage to Evaluate: the model's output.

    `lane_bytes`: what the worker keeps of messages for this lane.
    """

    output: Any
    lane_bytes: Number = 0


@dataclass(frozen=True)
class RunEnded:
    """Answer to EndRun: what was done when, see report.Span; clocks are `time.perf_counter`.

    `activation_bytes`: the peak beyond the weights, see memory.ActivationMemory.
    """

    spans: list[SpanFields]
    resident_bytes: Number
    activation_bytes: Number


@dataclass(frozen=True)
class Beat:
    """Sent once a second by a worker that was busy in it.

    `units` counts the units that it has run; `doing` is what it does now; `activation_bytes` as in
    RunEnded, of the run so far.
    """

    units: Number
    doing: Activity
    activation_bytes: Number = 0


@dataclass(frozen=True)
class Failed:
    """The worker could not do what it was asked."""

    text: str
    kind: Failure = "error"
    traceback: str = field(default="", repr=False)


_TYPES = {
    cls.__name__: cls
    for cls in (
        *(Configure, Connect, MeasureCosts, Import, Load, Unload, Patch, Compile, Keep, Evaluate),
        *(EndRun, Stop, MeasureMemory),
        *(
            Ready,
            Connected,
            Costs,
            Imported,
            Memory,
            Loaded,
            Unloaded,
            Done,
            Result,
            RunEnded,
            Beat,
            Failed,
        ),
    )
}


_HINTS = {name: get_type_hints(cls, include_extras=True) for name, cls in _TYPES.items()}

_SIMPLE: dict[Any, Callable[[Any], bool]] = {
    int: lambda value: type(value) is int and -_MAX_INT <= value < _MAX_INT,
    float: lambda value: type(value) is float and math.isfinite(value),
    str: lambda value: isinstance(value, str) and len(value) <= _MAX_TEXT,
    bool: lambda value: isinstance(value, bool),
    Any: lambda value: True,
}


def _fits(value: Any, hint: Any) -> bool:
    """Whether `value` is what `hint` says, and where that is Annotated, meets its condition."""
    if hint is float and type(value) is int:
        hint = int  # a float may be a whole number
    if hint in _SIMPLE:
        return _SIMPLE[hint](value)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, condition = arguments
        return _fits(value, kind) and bool(condition(value))
    if hint is type(None):
        return value is None
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in value.items()
        )
    # Lists and tuples are not told apart.
    if not isinstance(value, tuple | list):
        return False
    if origin is list or arguments[1:] == (...,):
        return all(_fits(each, arguments[0]) for each in value)
    return len(value) == len(arguments) and all(map(_fits, value, arguments))


def to_wire(request: Any, ticket: int = 0) -> tuple[str, int, tuple[Any, ...]]:
    """`request`, or an answer, as plain data."""
    values = tuple(getattr(request, f.name) for f in fields(request))
    return type(request).__name__, ticket, values


def from_wire(wire: tuple[str, int, tuple[Any, ...]]) -> tuple[Any, int]:
    """The request or answer that `to_wire` took apart, and its ticket.

    Raises:
        ChannelDataError: it is none.
    """
    try:
        name, ticket, values = wire
        if not isinstance(name, str) or name not in _TYPES:
            raise TypeError("there is no request and no answer of this kind")
        request = _TYPES[name](*values)
        for field_name, hint in _HINTS[name].items():
            # Nothing is said of the value itself, which may be anything.
            if not _fits(getattr(request, field_name), hint):
                raise TypeError(f"{name}.{field_name} is none that there can be")
        if not _fits(ticket, Number):
            raise TypeError("the ticket is none that there can be")
    except (TypeError, ValueError) as error:
        raise ChannelDataError(
            "the other end sent something that is no request and no answer "
            f"({type(error).__name__}: {error})"
        ) from error
    return request, ticket
