"""Small models without ComfyUI, and their builder: workers import this module too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncdiff_core.algorithm.stage import StagedModel
from asyncdiff_core.algorithm.stages import Stage, units_of
from asyncdiff_core.algorithm.trunk import (
    ControlLayout,
    Trunk,
    TrunkLayout,
    drop_parameters,
    parameter_bytes,
)


class Block(nn.Module):
    """Two outputs, one of them a side stream, like the blocks of SD3."""

    def __init__(self, width: int, last: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.last = last

    def forward(self, side: torch.Tensor, x: torch.Tensor, emb: torch.Tensor) -> Any:
        x = x + torch.tanh(self.a(x) + emb + side.mean(1, keepdim=True))
        return (None if self.last else torch.sin(self.b(side))), x


class Chain(nn.Module):
    """A transformer-like chain; its glue writes into unit outputs in place."""

    layout = TrunkLayout(blocks=("blocks",))

    def __init__(self, depth: int = 6, width: int = 16) -> None:
        super().__init__()
        self.embed, self.time = nn.Linear(4, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, i == depth - 1) for i in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Any, t: Any, context: Any = None, control: Any = None) -> torch.Tensor:
        h = self.embed(x)  # [B, L, width]
        emb = self.time(t.view(-1, 1, 1))
        context *= 1.5  # some models do write into their inputs
        side = context
        for i, block in enumerate(self.blocks):
            side, h = block(side, h, emb)
            if control is not None:
                h += control[i]
        return self.head(h)


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x)).to(memory_format=torch.channels_last)


class Conv(nn.Module):
    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(fan_in, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(x))


class Up(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, scale_factor=2)


class SkipNet(nn.Module):
    """A UNet whose units are the layers inside its blocks."""

    layout = TrunkLayout(
        blocks=("inputs", "middle", "outputs"),
        layers=True,
        skips=(("inputs", "outputs"),),
        control=ControlLayout(
            after=(("input", "inputs"), ("middle", "middle")),
            before=(("output", "outputs"),),
            from_end=True,
        ),
    )

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        blocks = [[Conv(4, w)], [Conv(w, w), Conv(w, w)], [Down(w)], [Conv(w, w), Conv(w, w)]]
        self.inputs = nn.ModuleList(nn.Sequential(*layers) for layers in blocks)
        self.middle = nn.Sequential(Conv(w, w), Conv(w, w))
        blocks = [[Conv(2 * w, w)], [Conv(2 * w, w), Up()], [Conv(2 * w, w)], [Conv(2 * w, w)]]
        self.outputs = nn.ModuleList(nn.Sequential(*layers) for layers in blocks)
        self.head = nn.Conv2d(w, 4, 1)

    def forward(self, x: Any, t: Any, context: Any = None, control: Any = None) -> torch.Tensor:
        residuals = {key: list(entries) for key, entries in (control or {}).items()}

        def controlled(h: torch.Tensor, key: str) -> torch.Tensor:
            residual = residuals[key].pop() if residuals.get(key) else None
            if residual is not None:
                h += residual
            return h

        h = x + t.view(-1, 1, 1, 1)
        skips = []
        for block in self.inputs:
            for layer in block:
                h = layer(h)
            skips.append(controlled(h, "input"))
        for layer in self.middle:
            h = layer(h)
        h = controlled(h, "middle")
        for block in self.outputs:
            h = torch.cat([h, controlled(skips.pop(), "output")], dim=1)
            for layer in block:
                h = layer(h)
        return self.head(h)


MODELS = {"chain": Chain, "skipnet": SkipNet}


def make_model(name: str) -> nn.Module:
    """The model `name` with fixed weights."""
    generator = torch.Generator().manual_seed(7)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return model.requires_grad_(False)


def make_inputs(name: str, step: int, batch: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of evaluation `step`: x and t change, the context does not."""
    generator = torch.Generator().manual_seed(100 + step)
    t = torch.full((batch,), 1.0 - step / 50)
    if name == "chain":
        x = torch.randn(batch, 5, 4, generator=generator)
        control: Any = [torch.full((1, 1, 16), 0.01 * i) for i in range(6)]
    else:
        x = torch.randn(batch, 4, 16, 16, generator=generator)
        sizes = {"input": 4, "middle": 1, "output": 4}
        control = {
            key: [0.1 * torch.randn(1, 8, 1, 1, generator=generator) for _ in range(size)]
            for key, size in sizes.items()
        }
    context = torch.randn(batch, 3, 16, generator=torch.Generator().manual_seed(5))
    return (x, t), {"context": context, "control": control}


class ToyStageModel:
    """workers.StageModel for the toys. A patch adds a number to every weight of its stage.

    `spec` has `model`, a key of MODELS, and may have:

    - `costs`: a list of unit costs per batch size, as text, in place of the toy's own;
    - `fail`: ``build``, or ``evaluate`` or ``memory``, which fail in unit `unit`;
    - `unit_seconds`: how long every unit takes at least;
    - `gate`: a folder. As long as it holds one of these files, a worker waits:
      ``starting``: all workers but the first, before they build;
      ``loading``: before it loads;
      ``unit-<i>``: before it runs unit i.
      A worker that waits says so by a file ``waiting-<pid>``.
    """

    def __init__(self, spec: dict[str, Any], device: torch.device) -> None:
        self._spec = spec
        self.staged: StagedModel
        self._owned: list[nn.Module] = []
        self._original: dict[str, torch.Tensor] = {}
        self._gate = Path(spec["gate"]) if "gate" in spec else None
        if spec.get("fail") == "build":
            raise ValueError("the toy was told to fail")
        if self._gate is not None and (self._gate / "starting").exists():
            try:
                (self._gate / "first").touch(exist_ok=False)
            except FileExistsError:
                self._pass_gate("starting")

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[float]:
        costs = self._spec.get("costs", {}).get(str(len(args[0])))
        model = make_model(self._spec["model"])
        return costs or [1.0 + i % 2 for i in range(len(Trunk.of(model, model.layout).units))]

    def can_import(self, module: str, root: str, file: str) -> bool:
        return False

    def load(self, stage: Stage, budget: int | None) -> tuple[int, int, int]:
        self._pass_gate("loading")
        model = make_model(self._spec["model"])
        trunk = Trunk.of(model, model.layout)
        held = list(units_of(stage))
        drop_parameters(unit.module for i, unit in enumerate(trunk.units) if i not in held)
        self._owned = [trunk.units[index].module for index in held]
        self._original = {}
        for index in held:
            unit = trunk.units[index].module
            unit.forward = self._with_options(index, unit.forward)
        self.staged = StagedModel(model, trunk)
        weight_bytes = parameter_bytes(self._owned)
        return weight_bytes, parameter_bytes([model]) - weight_bytes, 0

    def verify(self) -> None:
        pass

    def unload(self, waits: bool = False) -> int:
        self._owned, self._original = [], {}
        self.__dict__.pop("staged", None)
        return 7 if waits else 0

    def keep(self, key: str, payload: Any) -> None:
        raise NotImplementedError

    def forget_kept(self) -> None:
        pass

    def patch(self, payload: Any) -> None:
        names = [(i, n, p) for i, m in enumerate(self._owned) for n, p in m.named_parameters()]
        for i, name, parameter in names:
            original = self._original.setdefault(f"{i}.{name}", parameter.data.clone())
            parameter.data = original + payload["add"] if payload else original

    def _with_options(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        fail = self._spec.get("fail") if index == self._spec.get("unit") else None
        seconds = self._spec.get("unit_seconds")
        if not (fail or seconds or self._gate):
            return forward

        def unit_forward(*args: Any) -> Any:
            if fail == "memory":
                raise MemoryError("the toy was told to run out of memory")
            if fail == "evaluate":
                raise ValueError("the toy was told to fail")
            if seconds:
                time.sleep(seconds)
            self._pass_gate(f"unit-{index}")
            return forward(*args)

        return unit_forward

    def _pass_gate(self, name: str) -> None:
        if self._gate is None or not (self._gate / name).exists():
            return
        waiting = self._gate / f"waiting-{os.getpid()}"
        waiting.touch()
        while (self._gate / name).exists():
            time.sleep(0.005)
        waiting.unlink(missing_ok=True)


def build(spec: dict[str, Any], device: torch.device) -> ToyStageModel:
    """The builder that workers call."""
    return ToyStageModel(spec, device)
