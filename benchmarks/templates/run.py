"""Run reduced templates on a live server: stock, and as users of this pack would have them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness.comfy_server import ComfyServer, PromptFailed, PromptRejected
from harness.graphs import Workflow

from .flatten import Json, flatten
from .judge import Judgement, judge
from .reduce import LackingError, Reduced, reduced
from .spread import WARM_UP, parallelized, with_samplers

PACKAGE = "comfyui_workflow_templates_json"
PARALLEL, LOCAL, REFUSED, DIFFERENT = "parallel", "local", "refused", "different"
STOCK_FAILS, NOT_TRIED = "stock fails", "not tried"
STAYS = "the model stays in ComfyUI's own process: "  # what fallback.py logs
OURS = "asyncdiff_core"  # in the name of an error of this project

_seeds = itertools.count(1)


@dataclass
class Outcome:
    """What came of one way of running a template.

    Attributes:
        kind: one of the words above.
        why: the note, the error or the difference.
    """

    kind: str
    why: str = ""


@dataclass
class Row:
    """A template, what is known of it, and what came of it: by *Parallelize*, by sampler nodes."""

    name: str
    judgement: Judgement
    outcomes: tuple[Outcome, Outcome]
    left_out: list[str] = field(default_factory=list)
    model_class: str = ""


@dataclass
class Run:
    """The latents that a prompt saved, or its error, and what workers did."""

    latents: list[torch.Tensor] = field(default_factory=list)
    error: str = ""
    is_ours: bool = False
    reports: list[Json] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def templates_folder() -> Path | None:
    """Where the package has them, or None."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "templates"
    return folder if folder.is_dir() else None


def workflows(folder: Path) -> Iterator[tuple[str, Json]]:
    """The templates by name. What lies beside them has no nodes."""
    for path in sorted(folder.glob("*.json")):
        if not path.name.startswith("index"):
            content = json.loads(path.read_text(encoding="utf-8"))
            if "nodes" in content:
                yield path.stem, content


def partner_nodes(comfyui: Path) -> set[str]:
    """Words in the modules of partner nodes; the classes are among them."""
    words: set[str] = set()
    for path in (comfyui / "comfy_api_nodes").glob("*.py"):
        words |= set(re.findall(r"\"([A-Za-z0-9_+ ]+)\"", path.read_text(encoding="utf-8")))
    return words


def judged(comfyui: Path, folder: Path, object_info: Json, only: str = "") -> dict[str, Judgement]:
    """The judgements of the templates whose names have the pattern `only` in them."""
    partners = partner_nodes(comfyui) - set(object_info)
    return {
        name: judge(flatten(workflow, object_info), object_info, partners)
        for name, workflow in workflows(folder)
        if re.search(only, name)
    }


def write_models(server: ComfyServer, judgements: Collection[Judgement]) -> dict[str, Json]:
    """Tiny models of the families that are asked for; what each wants, by name."""
    from harness.processes import run

    files = {
        (model.family, kind, "" if model.loader == "UNETLoader" else "checkpoints")
        for judgement in judgements
        for model in judgement.models
        for kind in ("fp32", model.kind)
        if model.family is not None
    }
    wanted = json.dumps(sorted(files))
    return run("template_models.py", server.comfyui, server.models, wanted, timeout=900)


class Trial:
    """A server with tiny models in it, and what came of each template there."""

    def __init__(self, server: ComfyServer, families: dict[str, Json]) -> None:
        self.server, self.families = server, families
        self.object_info: Json = server.get("/object_info")

    def row(self, name: str, judgement: Judgement) -> Row:
        """Run a template in all ways."""
        models = [model.family for model in judgement.models]
        classes = [self.families[f]["class"] for f in models if f in self.families]
        row = Row(name, judgement, (Outcome(NOT_TRIED),) * 2, [], ", ".join(dict.fromkeys(classes)))
        if judgement.lacking:
            row.outcomes = (Outcome(NOT_TRIED, judgement.lacking),) * 2
            return row
        missing = [f for f in models if f is not None and "missing" in self.families[f]]
        if missing:
            row.outcomes = (Outcome(NOT_TRIED, f"this ComfyUI has no {missing[0]}"),) * 2
            return row
        seed = next(_seeds)
        try:
            own, plain = self._reduced(judgement, seed), self._reduced(judgement, seed, cfg=1.0)
        except LackingError as lacking:
            row.outcomes = (Outcome(NOT_TRIED, f"there is nothing in place of {lacking}"),) * 2
            return row
        row.left_out = own.left_out
        stock = self.run(own.workflow)
        if stock.error:
            row.outcomes = (Outcome(STOCK_FAILS, in_short(stock.error)),) * 2
            return row
        first = self._outcome(own, stock, parallelized(own.workflow, self.object_info))
        # With one cond 'auto' chooses stages. Replicas for two are exact too, but not of the same
        # bits.
        if plain.workflow != own.workflow:
            stock = self.run(plain.workflow)
        second = self._outcome(
            plain, stock, with_samplers(plain.workflow, self.object_info, WARM_UP + seed)
        )
        row.outcomes = (first, second)
        return row

    def _reduced(self, judgement: Judgement, seed: int, cfg: float | None = None) -> Reduced:
        return reduced(judgement, self.object_info, self.families, seed, cfg)

    def _outcome(self, of: Reduced, stock: Run, twin: Workflow) -> Outcome:
        ours = self.run(twin)
        if stock.error:
            return Outcome(STOCK_FAILS, in_short(stock.error))
        if ours.error:
            return Outcome(REFUSED if ours.is_ours else DIFFERENT, in_short(ours.error))
        if not all(torch.isfinite(latent).all() for latent in stock.latents):
            return Outcome(STOCK_FAILS, "the latents of ComfyUI itself are not finite")
        difference = different(ours.latents, stock.latents)
        has_replicas = any(report["plan"]["replicas"] > 1 for report in ours.reports)
        if difference and has_replicas and are_close(ours.latents, stock.latents):
            # A sampler that wants both conds with cfg 1 as well, as CFG++ does.
            return Outcome(PARALLEL, f"two replicas, each with one cond: {difference}")
        if difference:
            plans = {str(report["plan"]) for report in ours.reports}
            return Outcome(DIFFERENT, f"{difference} ({', '.join(sorted(plans))})")
        took_part = [report for report in ours.reports if len(report["workers"]) > 1]
        if len(took_part) >= len(of.samplers):
            return Outcome(PARALLEL)
        if ours.notes:
            return Outcome(LOCAL, in_short(ours.notes[0]))
        return Outcome(DIFFERENT, f"{len(took_part)} of {len(of.samplers)} samplers, and no note")

    def run(self, flow: Workflow) -> Run:
        from harness.lab import saved

        done = Run()
        logged = len(self.server.log_text())
        prompt_id = ""
        try:
            prompt_id = self.server.submit(flow)
            done.latents = saved(self.server, self.server.wait(prompt_id))
        except PromptFailed as error:
            done.error = f"{error.node_type}: {error.exception_message}"
            done.is_ours = OURS in error.exception_type
        except PromptRejected as error:
            done.error = f"not a prompt: {error}"
        runs: list[Json] = self.server.get("/asyncdiff/report")["runs"]
        done.reports = [run for run in runs if run["prompt_id"] == prompt_id]
        log = self.server.log_text()[logged:]
        done.notes = [line.partition(STAYS)[2] for line in log.splitlines() if STAYS in line]
        return done

    def files_of(self, judgement: Judgement) -> list[Any]:
        """What tells the files of its tiny models."""
        return [
            model.family
            if "file" in self.families.get(model.family or "", {})
            else (model.family, model.kind, model.loader)
            for model in judgement.models
        ]

    def release(self) -> None:
        """The next family gets the memory of the last one."""
        self.server.post("/asyncdiff/release", {})


def different(some: list[torch.Tensor], other: list[torch.Tensor]) -> str:
    """How latents differ, or nothing."""
    if len(some) != len(other):
        return f"{len(some)} latents and not {len(other)}"
    for number, (ours, stock) in enumerate(zip(some, other, strict=True)):
        if ours.shape != stock.shape:
            return f"latent {number}: shapes {list(ours.shape)} and {list(stock.shape)}"
        if not torch.equal(ours, stock):
            return f"latent {number}: they differ by up to {(ours - stock).abs().max():.2g}"
    return ""


def are_close(some: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """Whether latents differ by rounding at most."""
    return len(some) == len(other) and all(
        ours.shape == stock.shape and (ours - stock).abs().max() <= 1e-4 * stock.abs().max()
        for ours, stock in zip(some, other, strict=True)
    )


def in_short(text: str, length: int = 160) -> str:
    """The first words, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[:length].rsplit(' ', 1)[0]} ..."


def by_family(judgements: dict[str, Judgement]) -> list[str]:
    """The names, those with the same models after each other: workers stay for the next one."""

    def key(name: str) -> Any:
        return [(model.family or "", model.kind) for model in judgements[name].models], name

    return sorted(judgements, key=key)
