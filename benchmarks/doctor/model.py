"""The model that the doctor computes, its builder, and workers that do it badly."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Stage, units_of
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout, drop_parameters, parameter_bytes

NUM_UNITS = 12
KINDS = ("slow", "corrupt", "missing")


class Unit(nn.Module):
    """What a transformer does most: products of matrices."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(x))) * 0.1


class Model(nn.Module):
    """A chain of units, called as ComfyUI calls a diffusion model."""

    layout = TrunkLayout(blocks=("blocks",))

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Unit(width) for _ in range(NUM_UNITS))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = x * (1.0 + t.view(-1, 1, 1))
        for block in self.blocks:
            x = block(x)
        return x


def make_model(width: int) -> Model:
    """With weights that are the same in every process."""
    generator = torch.Generator().manual_seed(3)
    model = Model(width).requires_grad_(False)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(values / parameter.shape[-1] ** 0.5)
    return model


def make_inputs(width: int, tokens: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of an evaluation: x [1, tokens, width], t [1]."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(1, tokens, width, generator=generator), torch.tensor([1.0 - step / 64])


class DoctorModel:
    """workers.StageModel. `spec` has `width` and `dtype`, and perhaps `sabotage`, one of KINDS, and
    `slow`, a unit that takes three times as long as it should."""

    def __init__(self, spec: dict[str, Any], device: torch.device) -> None:
        self._spec, self._device = spec, device
        self.staged: StagedModel
        self._owned: list[nn.Module] = []

    def _make(self) -> Model:
        dtype = getattr(torch, self._spec["dtype"])
        return make_model(self._spec["width"]).to(dtype)

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[float]:
        return [1.0] * NUM_UNITS

    def can_import(self, module: str, root: str, file: str) -> bool:
        return False

    def load(self, stage: Stage, budget: int | None) -> tuple[int, int, int]:
        model = self._make()
        trunk = Trunk.of(model, model.layout)
        held = set(units_of(stage))
        rest = [unit.module for i, unit in enumerate(trunk.units) if i not in held]
        drop_parameters(rest)
        self._owned = [trunk.units[i].module for i in held]
        for module in self._owned:
            module.to(self._device)
            if self._spec.get("slow") in held:
                module.forward = _slow(module.forward)
        self.staged = StagedModel(model, trunk)
        return parameter_bytes(self._owned), 0, 0

    def verify(self) -> None:
        pass

    def unload(self, waits: bool = False) -> int:
        self._owned = []
        self.__dict__.pop("staged", None)
        return 0

    def patch(self, payload: Any) -> None:
        pass

    def compile(self, payload: Any) -> None:
        pass

    def keep(self, key: str, payload: Any) -> None:
        raise NotImplementedError

    def forget_kept(self) -> None:
        pass


def _slow(forward: Any) -> Any:
    def slow(*args: Any) -> Any:
        start = time.perf_counter()
        output = forward(*args)
        time.sleep(2 * (time.perf_counter() - start) + 0.002)
        return output

    return slow


def build(spec: dict[str, Any], device: torch.device) -> DoctorModel:
    """The builder that workers call."""
    kind = spec.get("sabotage")
    if kind == "missing":
        os._exit(3)
    if kind == "corrupt":
        sabotage_links(kind)
    return DoctorModel(spec, device)


def sabotage_links(kind: str) -> None:
    """In this process links are not what they should be."""
    from asyncdiff_core.links.ring import RingSender

    send = RingSender.send

    def worse(self: RingSender, number: int) -> None:
        if kind == "slow":
            time.sleep(0.02)
        else:
            self.slots[number % len(self.slots)][0] ^= 1
        send(self, number)

    RingSender.send = worse  # type: ignore[method-assign]
