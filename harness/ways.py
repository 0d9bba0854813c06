"""The ways in which packs alter a MODEL, and what becomes of each: exact, local or refused.

`WAYS` is the table behind test_ways.py and docs/compatibility.md. Each way is tried in three
places: behind this pack's loader, before Parallelize Model, and on a stock MODEL that a sampler
node of this pack gets.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from .comfy_server import ComfyServer, PromptFailed
from .features import parallelized, patched
from .graphs import Workflow, node
from .lab import asyncdiff, latent, latent_once, workflow

STEPS = 4
ALONE = "with a sampler node alone"
PLACES = ("behind the loader", "before Parallelize Model", ALONE)

_numbers = itertools.count(1)
_stocks: dict[str, torch.Tensor] = {}


@dataclass(frozen=True)
class Way:
    """One row.

    Attributes:
        name: of the way in adapter_pack/ways.py.
        kind: which model of lab.py it is tried on.
        packs: some of those that do so.
        outcomes: at each of `PLACES`: `exact`, `local`, or a part of the error.
    """

    name: str
    kind: str
    packs: str
    outcomes: tuple[str, str, str] = ("exact", "exact", "exact")


CHANGED = "was changed itself"
USED = "uses weights of the diffusion model"
REFUSED = (CHANGED, CHANGED, "local")

WAYS = (
    Way("object patches bound to modules", "wan", "KJNodes, DyPE"),
    Way("object patches with modules in closures", "sd15", "perturbed attention, ppm"),
    Way("object patch of whole blocks", "wan", "KJNodes"),
    Way("object patch of the models method", "flux", "IPAdapter-Flux"),
    Way("object patches of block classes", "wan", "RES4LYF"),
    Way(
        *("object patch of the models class", "flux", "RES4LYF"),
        ("object patch", "object patch", "local"),
    ),
    Way("object patch of an embedder", "wan", "KJNodes (RIFLEx)"),
    Way("object patch of a block", "wan", "IPAdapter-Flux"),
    Way("attention override", "sd15", "KJNodes (Sage, Flash)"),
    Way("the model itself in its options", "sd15", "Easy-Use, PuLID"),
    Way("a flag that is flipped between evaluations", "sd15", "LTXVideo"),
    Way("a global variable that changes", "sd15", "WaveSpeed, CacheDiT"),
    Way(
        *("one block uses what another has left", "flux", "PuLID-Flux (ll)"),
        ("gives no numbers", "gives no numbers", "local"),
    ),
    Way("an extra evaluation with a patch", "sd15", "PAG, SEG, SLG"),
    Way("a method replaced during a call", "flux", "TeaCache, MagCache", REFUSED),
    Way("a list of blocks replaced during a call", "flux", "WaveSpeed", REFUSED),
    Way("an attribute of a layer set in every call", "wan", "BrushNet, RAUNet", REFUSED),
    Way("a weight set in every call", "wan", "cd_tuner, INT8-Fast", (USED, CHANGED, "local")),
    Way("a layer used in every call", "wan", "attention guidance", (USED, "exact", "exact")),
    Way("a method set around sampling", "flux", "DreamO, PuLID-Flux (ll)", REFUSED),
    Way("tiles", "sd15", "TiledDiffusion, StableSR"),
    Way(
        *("torch compile that tells nothing", "wan", "KJNodes"),
        ("does not tell what it compiles", "does not tell what it compiles", "local"),
    ),
    Way("a method set on the model", "flux", "PuLID-Flux, x-flux", REFUSED),
    Way("the class of the model replaced", "flux", "Fluxtapoz, LTXVideo", REFUSED),
    Way("a block of the model replaced", "flux", "x-flux", REFUSED),
    Way("methods of all norms set", "sd15", "style_aligned", REFUSED),
    Way("a setting of a block changed", "wan", "LTXVideo, scale crafter", REFUSED),
    Way("a hook on a block", "wan", "INT8-Fast", REFUSED),
    Way("injections", "wan", "AnimateDiff-Evolved", ("injection", "injection", "local")),
    Way("a method of a class replaced around sampling", "sd15", "layerdiffuse, Easy-Use"),
    Way("a method of the models class replaced", "flux", "layerdiffuse, BrushNet"),
    Way("a kind of weight patch with the function for it", "wan", "Fooocus inpaint, Easy-Use"),
    Way(
        *("a kind of weight patch that nobody knows", "wan", "Fooocus inpaint, if unhooked"),
        ("patches of the kind 'test'", "patches of the kind 'test'", "local"),
    ),
    Way("a padding patch of the first layer", "sd15", "IC-Light, layerdiffuse"),
    Way("weights used when the node runs", "wan", "KJNodes (NAG)", (USED, "exact", "exact")),
    Way("a patch that holds its model", "wan", "many"),
    Way("weights altered in place", "wan", "older merge nodes", (USED, "exact", "exact")),
    Way("switches of torch", "sd15", "KJNodes"),
)


def outcome(lab: ComfyServer, way: Way, place: int) -> str:
    """``exact``, ``local`` or the error, as tried now.

    Raises:
        AssertionError: another picture, or the way does nothing.
    """
    # With one cond 'auto' chooses stages. Replicas for two are exact too, but not of the same bits.
    cfg = 1.0 if PLACES[place] == ALONE else 5.0
    plain = workflow(way.kind, steps=STEPS, cfg=cfg)
    flow = patched("TestWay", way=way.name)(plain)
    stock = _stock(lab, flow)
    assert torch.isfinite(stock).all(), way.name
    assert not torch.equal(stock, latent_once(lab, plain)), f"{way.name} does nothing"
    spread = (lambda f: asyncdiff(f, warm_up=100), parallelized, alone)[place](flow)
    before = _num_runs(lab)
    ours = _run(lab, spread)
    if isinstance(ours, str):
        return ours
    assert torch.equal(ours, stock), f"{way.name} {PLACES[place]}: another picture"
    return "exact" if _num_runs(lab) > before else "local"


def alone(flow: Workflow) -> Workflow:
    """A sampler node of this pack on the stock MODEL."""
    inputs = {**flow["sampler"]["inputs"], "warm_up": 100, "time_shift": False}
    return {**flow, "sampler": node("AsyncDiffKSampler", **inputs)}


def _stock(lab: ComfyServer, flow: Workflow) -> torch.Tensor:
    """What ComfyUI alone makes of it, once for all places."""
    key = repr(flow)
    if key not in _stocks:
        came = _run(lab, flow)
        assert isinstance(came, torch.Tensor), came
        _stocks[key] = came
    return _stocks[key]


def _run(lab: ComfyServer, flow: Workflow) -> torch.Tensor | str:
    try:
        return latent(lab, flow)
    except PromptFailed as error:
        return error.exception_message
    finally:
        lab.run({"undo": node("TestUndo", number=next(_numbers))})


def _num_runs(lab: ComfyServer) -> float:
    """Grows with every run that workers took part in."""
    runs: list[dict[str, Any]] = lab.get("/asyncdiff/report?last=1")["runs"]
    return runs[-1]["ended"] if runs else 0.0
