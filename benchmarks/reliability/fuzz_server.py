"""Prompts with nonsense in the pack's nodes, and nonsense sent to its routes, on a live server.

Allowed are ComfyUI's own refusal (400, with the node and the reason), an error of this project's on
a node, or success. Every prompt must end, and the server must be there afterwards and give the
right picture.
"""

from __future__ import annotations

import copy
import json
import random
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import torch

from asyncdiff_core import errors
from harness import lab
from harness.comfy_server import ComfyServer, PromptRejected
from harness.graphs import Workflow, node, resampled

from .live import Outcome, Watch

SOON = 3.0  # seconds until a prompt that took the nonsense and samples is canceled
PATIENCE = 120.0
OURS = {name for name, value in vars(errors).items() if isinstance(value, type)}
# ComfyUI's own: a device without memory, and a graph that it finds to be none when it runs it.
COMFYUI = {"OutOfMemoryError", "DependencyCycleError"}
# ComfyUI checks no value that stands where a link should. Its own sampling code gets these, as from
# a stock node, and fails with whatever Python says.
UNCHECKED = ("positive", "negative", "latent_image")
LATENTS_AND_CONDS = ("positive", "negative", "empty")
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 17, 65, 10**4, 10**9, -(2**63), 2**64, 2**70),
    *(0.0, -0.5, 1.5, 1e308, float("nan"), float("inf")),
    *("", " ", "auto", "cpu", "cpu,cpu", "cpu,cpu,cpu", "cpu,", "cuda:0", "cuda:99", "CPU, cpu"),
    *("../../../etc/passwd", "/etc/passwd", "tiny-wan.safetensors", "nothing.safetensors"),
    *("x" * 10_000, "\0", "\u202e\U0001f642", "default", "fp8_e4m3fn", "%s{0}$(id)", "true", "1"),
    *([], {}, [[]], {"a": 1}, [0, 0], ["model"], ["model", 0], ["model", 7], ["nowhere", 0]),
    *(["sampler", 0], ["positive", 0], ["empty", 0], ["model", "0"], ["model", -1]),
)

# An input that a node does not know is not checked by ComfyUI, and a link to nowhere in it ends the
# thread that runs prompts, whatever the node: there is nothing to learn about this pack.
NO_LINKS = tuple(value for value in VALUES if not isinstance(value, list))


def bases() -> list[Workflow]:
    """Workflows that together use every node of the pack."""
    wan = lab.workflow("wan", steps=2)
    ours = lab.asyncdiff(wan)
    plan = {"devices": "cpu,cpu", "stages": 0, "replicas": 0, "stride": 1}
    spread = {**wan, "spread": node("AsyncDiffParallelize", model=["model", 0], **plan)}
    scheduled = {
        **spread,
        "schedule": node("AsyncDiffSchedule", model=["spread", 0], warm_up=1, time_shift=False),
    }
    advanced = dict(ours)
    inputs = {k: v for k, v in ours["sampler"]["inputs"].items() if k not in ("seed", "denoise")}
    advanced["sampler"] = node(
        "AsyncDiffKSamplerAdvanced",
        **{**inputs, "add_noise": "enable", "noise_seed": 1, "start_at_step": 0},
        **{"end_at_step": 10000, "return_with_leftover_noise": "disable"},
    )
    return [
        ours,
        lab.asyncdiff(lab.workflow("sd15", steps=2)),
        resampled(scheduled, model=["schedule", 0]),
        advanced,
    ]


def mutated(flow: Workflow, chance: random.Random) -> Workflow:
    """The workflow with nonsense in one to three places of this pack's nodes."""
    flow = copy.deepcopy(flow)
    ours = [one for one in flow.values() if one["class_type"].startswith("AsyncDiff")]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        one = chance.choice(ours)
        inputs, name = one["inputs"], chance.choice(list(one["inputs"]) or ["devices"])
        kind = chance.randrange(10)
        if kind == 0:
            inputs.pop(name, None)
        elif kind == 1:
            inputs[chance.choice(("extra", "", "self", "cls", "\0"))] = chance.choice(NO_LINKS)
        elif kind == 2 and isinstance(inputs.get(name), int):
            inputs[name] = inputs[name] + chance.choice((-1, 1, 0.5, 10**6))
        else:
            inputs[name] = chance.choice(VALUES)
    return flow


def to_nodes(server: ComfyServer, watch: Watch, count: int, seed: int) -> Counter[str]:
    """What became of `count` mutated prompts.

    Raises:
        AssertionError: one of them ended as none may.
    """
    chance, found, flows = random.Random(seed), Counter[str](), bases()
    expected = lab.latent(server, flows[0])
    for _ in range(count):
        flow = mutated(chance.choice(flows), chance)
        found[_answer(server, watch, flow)] += 1
    assert torch.equal(lab.latent(server, flows[0]), expected), "the next picture is another one"
    return found


def _answer(server: ComfyServer, watch: Watch, flow: Workflow) -> str:
    try:
        prompt = watch.send(lab.fresh(flow) if _has_latents(flow) else flow)
    except PromptRejected as rejected:
        assert rejected.node_errors or rejected.error, rejected.body
        return "refused"
    if not prompt.over_within(SOON):
        prompt.step(1, PATIENCE)  # it may be that workers start
        server.post("/interrupt", {"prompt_id": prompt.id})
    outcome = prompt.end(PATIENCE)
    watch.forget(prompt)
    if outcome.kind == "execution_error":
        if outcome.error in OURS | COMFYUI:
            return outcome.error
        assert is_unchecked(flow, outcome), f"{outcome}\nprompt: {json.dumps(flow)}"
        return "as from a stock node"
    return outcome.kind.removeprefix("execution_")


def _has_latents(flow: Workflow) -> bool:
    return isinstance(flow["sampler"]["inputs"].get("latent_image"), list)


def is_unchecked(flow: Workflow, outcome: Outcome) -> bool:
    """Whether the node that failed had been given a value where ComfyUI's sampler wants a link."""
    inputs = flow[outcome.data["node_id"]]["inputs"]
    return any(name in inputs and not is_link(flow, inputs[name]) for name in UNCHECKED)


def is_link(flow: Workflow, value: Any) -> bool:
    """Whether the value leads to an output that can be of the right type: not one of a MODEL."""
    return isinstance(value, list) and len(value) == 2 and value[0] in LATENTS_AND_CONDS


# Routes ----------------------------------------------------------------------------------------


def to_routes(server: ComfyServer, count: int, seed: int) -> Counter[str]:
    """What the server answers to `count` mutated bodies of POST /asyncdiff/release.

    Raises:
        AssertionError: something else than 200, or 400 with a text.
    """
    chance, found = random.Random(seed), Counter[str]()
    for _ in range(count):
        found[_post(server, body(chance))] += 1
    return found


def body(chance: random.Random) -> bytes:
    """What somebody could send to POST /asyncdiff/release."""
    if chance.random() < 0.2:
        return chance.choice((b"", b"{", b"\xff\xfe", b"null", b"[" * 10_000, chance.randbytes(99)))
    keys = ("group", "keep_workers", "groups", "", "__class__")
    values = (*VALUES, "g1", "g2", "g999", "keep")
    value: Any = {
        chance.choice(keys): chance.choice(values) for _ in range(chance.choice((0, 1, 1, 2, 3)))
    }
    if chance.random() < 0.1:
        value = chance.choice(values)
    return json.dumps(value).encode("utf-8", errors="surrogatepass")


def _post(server: ComfyServer, data: bytes) -> str:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + "/asyncdiff/release", data, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=PATIENCE) as response:
            answer = json.loads(response.read())
            assert set(answer) == {"released", "busy"}, (data[:200], answer)
            return "200"
    except urllib.error.HTTPError as error:
        text = error.read()
        assert error.code == 400, (data[:200], error.code, text)
        assert json.loads(text)["error"], (data[:200], text)
        return "400"
