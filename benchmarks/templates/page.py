"""What came of the templates, as a page. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from .run import DIFFERENT, LOCAL, NOT_TRIED, PARALLEL, REFUSED, STOCK_FAILS, Row

KINDS = {
    PARALLEL: "the bits of the stock result, by two workers",
    LOCAL: "the bits of the stock result, in ComfyUI's own process, and a note says why",
    REFUSED: "an error of this project names what is in the way",
    DIFFERENT: "another result, or something else that is a fault",
    STOCK_FAILS: "ComfyUI itself does not run the small prompt",
    NOT_TRIED: "no small prompt could be made",
}
NOTHING = "-"
HOW = """\
Each template becomes the prompt that the browser would send. Its samplers, guiders, schedules,
patches of the MODEL and the nodes that prepare conditioning and latents stay, with small sizes and
few steps; its loaders get a tiny model of the same class with random weights, its LoRAs a tiny
LoRA. Families that can be small in the stock format are read by ComfyUI's loader, in the format
nearest to what the name of the file tells; for the others a loader of the tests gives ComfyUI's
class a small configuration. Text encoders, autoencoders, image and audio encoders and pictures have
stand-ins, and so have patches that bring a model of their own. What had to be left out is in the
column *without*. Then the prompt runs as it is, and with full warm-up

- with *Parallelize Model* (`cpu,cpu`) behind each loader and *Schedule* before each sampler;
- with this pack's sampler nodes in place of KSampler, and *Schedule* on the stock MODEL before
  custom samplers. Here cfg is 1, in the stock prompt too: for two conds replicas are chosen, whose
  bits are those of the stock sampler with one cond after the other.

Bits are compared with `torch.equal`."""
COLUMNS = """\
*file*: the loader, and the format that the name of the file tells. *steps*: of each sampler, in the
template. *ideal*: how much faster two devices would be with the default warm-up if nothing but the
stages took time: *T* evaluations, *w* of them synchronous, take as long as *w* + (*T* - *w*) / 2.
Numbers behind outcomes lead to the list below the table. (p): it asks a partner's service too; what
that gives has a stand-in."""


def page(rows: list[Row], idle: list[str], num_partner: int, version: str, package: str) -> str:
    """The document.

    Args:
        rows: of the templates that sample a model.
        idle: those that sample none, and ask no partner either.
        num_partner: how many do nothing but ask a partner.
        version: of ComfyUI.
        package: the version of the templates.
    """
    reasons: dict[str, int] = {}
    lines = [
        "# Official templates",
        "",
        f"What becomes of the workflow templates that ComfyUI {version} offers (package",
        f"`comfyui-workflow-templates-json` {package}) with two workers, on the CPU. Made by",
        "",
        "    python3 dev.py python -m benchmarks.templates",
        "",
        *HOW.splitlines(),
        "",
        "## Summary",
        "",
        f"{len(rows) + len(idle) + num_partner} templates: {num_partner} ask a partner's service",
        f"and sample no model here, {len(idle)} sample no model either, {len(rows)} do.",
        "",
        "| outcome | what it means | *Parallelize Model* | sampler nodes |",
        "|---|---|---|---|",
        *(_count(kind, text, rows) for kind, text in KINDS.items()),
        "",
        "## Templates",
        "",
        *COLUMNS.splitlines(),
        "",
        "| template | model | file | patches | steps | ideal | *Parallelize* | sampler | without |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_line(row, reasons) for row in rows),
        "",
        *(f"{number}. {reason}" for reason, number in reasons.items()),
        *([""] if reasons else []),
        "## Templates that sample no model",
        "",
        f"{', '.join(idle)}.",
    ]
    return "\n".join(lines) + "\n"


def counts(rows: list[Row], way: int) -> Counter[str]:
    return Counter(row.outcomes[way].kind for row in rows)


def _count(kind: str, text: str, rows: list[Row]) -> str:
    told = [str(counts(rows, way)[kind] or "none") for way in (0, 1)]
    return f"| {kind} | {text} | {' | '.join(told)} |"


def _line(row: Row, reasons: dict[str, int]) -> str:
    judgement = row.judgement
    files = [f"{m.loader} {m.format}".strip() for m in judgement.models]
    gain = judgement.ideal_gain
    cells = [
        f"{row.name} (p)" if judgement.partner else row.name,
        row.model_class or NOTHING,
        _joined(files),
        _joined(judgement.patches),
        _grouped(["?" if steps is None else str(steps) for steps in judgement.samplers.values()]),
        f"{gain:.2f}x" if gain is not None else NOTHING,
        *(_told(outcome.kind, outcome.why, reasons) for outcome in row.outcomes),
        _joined(row.left_out),
    ]
    return f"| {' | '.join(cells)} |"


def _told(kind: str, why: str, reasons: dict[str, int]) -> str:
    if not why:
        return kind
    return f"{kind} ({reasons.setdefault(why.replace('|', '/'), len(reasons) + 1)})"


def _joined(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words)) or NOTHING


def _grouped(words: list[str]) -> str:
    """Equal ones after each other as one: ``8 x 4``."""
    groups = [(word, len(list(group))) for word, group in itertools.groupby(words)]
    return " + ".join(word if count == 1 else f"{count} x {word}" for word, count in groups)
