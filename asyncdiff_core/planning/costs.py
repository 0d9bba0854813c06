"""What each unit of a trunk costs, estimated from one forward on the meta device.

The estimate is a roofline: an operation takes as long as its arithmetic or its memory traffic,
whichever is longer. It depends on the model and on the shapes alone, so the cuts that follow from
it, and with them every bit of an asynchronous result, are the same in every session.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..algorithm.stage import Neighbours, StagedModel
from ..algorithm.trunk import Trunk
from ..errors import AsyncDiffError
from ..log import get_logger

log = get_logger("costs")

# (FLOP/s, bytes/s) of a typical device of its kind; only their ratio matters.
_ROOFLINES = {"cpu": (2e11, 5e9), "cuda": (1e14, 1e12)}


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    *batch, tokens, width = query.shape  # [.., L, E]
    pairs = math.prod(batch) * tokens * key.shape[-2]
    return int(2 * pairs * (width + value.shape[-1]))


# Attention counts as one fused operation, whose weights never reach the memory.
_FLOPS = {**flop_registry, torch.ops.aten.scaled_dot_product_attention: _attention_flops}


class _Roofline(TorchDispatchMode):
    """Adds up the seconds of all operations within it."""

    def __init__(self, flops_per_second: float, bytes_per_second: float) -> None:
        super().__init__()
        self._rates = flops_per_second, bytes_per_second
        self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        count_flops = _FLOPS.get(func._overloadpacket)
        if count_flops is None:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out  # its parts have been counted
        out = func(*args, **kwargs)
        if func.is_view or func._overloadpacket is torch.ops.aten._unsafe_view:
            return out
        flops = count_flops(*args, **kwargs, out_val=out) if count_flops else 0
        tensors = [
            x for x in pytree.tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)
        ]
        traffic = sum(x.nbytes for x in tensors)
        self.seconds += max(flops / self._rates[0], traffic / self._rates[1])
        return out


class _Nobody(Neighbours):
    def give(self, unit: int, output: Any) -> None:
        pass  # whatever is done here would be counted


def measure_costs(
    model: torch.nn.Module,
    trunk: Trunk,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    entry: str,
    device_type: str,
) -> list[float]:
    """Estimated seconds of each unit of `trunk` for inputs like `args` and `kwargs`.

    The glue before a unit counts as part of it, and the model's head as part of the last one.

    Args:
        model: the model, its parameters on the meta device.
        trunk: its units.
        args: inputs of an evaluation by position.
        kwargs: those by name.
        entry: the method that an evaluation calls.
        device_type: the kind of device that will compute.

    A model that cannot run on the meta device is cut by the number of its parameters instead, and
    the log says so.
    """
    ends: list[float] = []
    mode = _Roofline(*_ROOFLINES.get(device_type, _ROOFLINES["cuda"]))

    def timed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def unit_forward(*args: Any, **kwargs: Any) -> Any:
            if not ends:
                ends.append(mode.seconds)  # what comes before the trunk, every worker runs
            output = forward(*args, **kwargs)
            ends.append(mode.seconds)
            return output

        return unit_forward

    for unit in trunk.units:
        unit.module.forward = timed(unit.module.forward)
    staged = StagedModel(model, trunk, entry)  # checks the order of the units

    def to_meta(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf

    try:
        with mode:
            args, kwargs = pytree.tree_map(to_meta, (args, kwargs))
            staged.run_stage(((0, len(trunk.units)),), args, kwargs, _Nobody())
    except AsyncDiffError:
        raise
    except Exception as error:
        log.warning(
            "%s cannot run on the meta device (%s); its stages are balanced by their number of "
            "parameters, which may be less even.",
            type(model).__name__,
            error,
        )
        return parameter_costs(trunk)
    ends[-1] = mode.seconds  # what comes after the trunk, the last stage alone runs
    return [stop - start for start, stop in itertools.pairwise(ends)]


def parameter_costs(trunk: Trunk) -> list[float]:
    """The number of parameters of each unit."""
    return [float(sum(p.numel() for p in unit.module.parameters())) for unit in trunk.units]
