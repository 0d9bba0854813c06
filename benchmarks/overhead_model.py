"""A model whose units cost nothing, and its builder: workers import this module too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Stage
from asyncdiff_core.algorithm.trunk import Trunk, TrunkLayout

NUM_UNITS = 8
NUM_MODULES = 2000  # as SDXL has them; the host looks whether they are what they were
LAYOUT = TrunkLayout(blocks=("blocks",))


class FreeModel(torch.nn.Module):
    """A chain of units that do nothing, called like one of ComfyUI's models."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Identity() for _ in range(NUM_UNITS))
        self.unused = torch.nn.ModuleList(torch.nn.Identity() for _ in range(NUM_MODULES))

    def forward(self, x: Any, timesteps: Any, **kwargs: Any) -> Any:
        return self._forward(x, timesteps, **kwargs)

    def _forward(
        self, x: Any, timesteps: Any, context: Any = None, transformer_options: Any = None
    ) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


class FreeStageModel:
    """workers.StageModel without weights."""

    def __init__(self) -> None:
        model = FreeModel()
        self.staged = StagedModel(model, Trunk.of(model, LAYOUT), "_forward")

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[float]:
        return [1.0] * NUM_UNITS

    def can_import(self, module: str, root: str, file: str) -> bool:
        return False

    def load(self, stage: Stage, budget: int | None) -> tuple[int, int, int]:
        return 0, 0, 0

    def verify(self) -> None:
        pass

    def unload(self, waits: bool = False) -> int:
        return 0

    def patch(self, payload: Any) -> None:
        pass

    def keep(self, key: str, payload: Any) -> None:
        pass

    def forget_kept(self) -> None:
        pass


def build(spec: dict[str, Any], device: torch.device) -> FreeStageModel:
    """The builder that workers call."""
    return FreeStageModel()
