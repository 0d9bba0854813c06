"""Whether a stock MODEL's weights are still those of its file: packs alter some in place.

What was altered so is no patch, and nothing tells of it. A few values of each weight do: whoever
alters a weight alters most of them.
"""

from __future__ import annotations

from typing import Any

import torch

from .layouts import MODEL_PREFIX

NUM_VALUES = 16  # of each weight


class WeightSamples:
    """A few values of each weight of a stock MODEL's diffusion model, as they are before patches.

    Two of them are equal if these values are.

    Args:
        patcher: the MODEL. It may be loaded, with patches in force.
    """

    def __init__(self, patcher: Any) -> None:
        before = {key: backup[0] for key, backup in patcher.hook_backup.items()}
        before |= {key: backup.weight for key, backup in patcher.backup.items()}
        samples = {
            name: _sample(before.get(f"{MODEL_PREFIX}{name}", weight))
            for name, weight in patcher.model.diffusion_model.named_parameters()
            if not weight.is_meta
        }
        self._dtypes = {name: sample.dtype for name, sample in samples.items()}
        self._bytes = _as_bytes(samples)
        self.altered: list[str] = []

    def see(self, key: str, tensor: torch.Tensor) -> None:
        """A tensor of the file, by its name in the diffusion model."""
        if key not in self._bytes:
            return
        sample, dtype = _sample(tensor), self._dtypes[key]
        if sample.is_floating_point() and dtype.is_floating_point:
            sample = sample.to(dtype)
        expected, value = self._bytes[key], _as_bytes({key: sample}).get(key, b"")
        # A quantised weight may be there in other pieces than in the file.
        if len(expected) == len(value) and expected != value:
            self.altered.append(key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WeightSamples) and self._bytes == other._bytes

    __hash__ = None  # type: ignore[assignment]


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    """Values of all over a tensor, or of what a quantised one stores: the same whatever its memory
    format is."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is not None:
        tensor = getattr(tensor, flatten()[0][0])
    tensor = tensor.detach()
    size = tensor.numel()
    step = max(1, size // NUM_VALUES)
    if tensor.is_contiguous():  # in one operation, since there are thousands of weights
        number = min(NUM_VALUES, size)
        return tensor.as_strided((number,), (step,))
    places = torch.arange(0, size, step, device=tensor.device)[:NUM_VALUES]
    return tensor[torch.unravel_index(places, tensor.shape)]


def _as_bytes(samples: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Those that are somewhere; a device is waited for once per type."""
    groups: dict[Any, dict[str, torch.Tensor]] = {}
    for name, sample in samples.items():
        if not sample.is_meta and len(sample):
            groups.setdefault((sample.device, sample.dtype), {})[name] = sample
    found: dict[str, bytes] = {}
    for group in groups.values():
        together = torch.cat([*group.values()])
        values, first = together.view(torch.uint8).cpu().numpy().tobytes(), 0
        for name, sample in group.items():
            end = first + len(sample) * together.element_size()
            found[name], first = values[first:end], end
    return found
