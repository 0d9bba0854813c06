"""Templates without a server: what they become, what is read off them, how they are made small."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.templates.flatten import flatten
from benchmarks.templates.judge import judge, shortened, value_of
from benchmarks.templates.reduce import STEPS, reduced
from benchmarks.templates.spread import parallelized, with_samplers


def declared(output: tuple[str, ...] = (), **inputs: Any) -> dict[str, Any]:
    """A class as the server describes it; an input is a type, or a type with options."""
    its = {key: list(kind) if isinstance(kind, tuple) else [kind] for key, kind in inputs.items()}
    return {"input": {"required": its}, "output": list(output)}


SEED = ("INT", {"control_after_generate": True})
OBJECT_INFO = {
    "UNETLoader": declared(("MODEL",), unet_name="COMBO", weight_dtype="COMBO"),
    "LoraLoaderModelOnly": declared(
        ("MODEL",), model="MODEL", lora_name="COMBO", strength_model="FLOAT"
    ),
    "Patch": declared(("MODEL",), model="MODEL", control_net="CONTROL_NET"),
    "CLIPTextEncode": declared(("CONDITIONING",), text="STRING", clip="CLIP"),
    "EmptyLatentImage": declared(("LATENT",), width="INT", height="INT", batch_size="INT"),
    "KSampler": declared(
        ("LATENT",),
        model="MODEL",
        seed=SEED,
        steps="INT",
        cfg="FLOAT",
        sampler_name="COMBO",
        scheduler="COMBO",
        positive="CONDITIONING",
        negative="CONDITIONING",
        latent_image="LATENT",
        denoise="FLOAT",
    ),
    "PrimitiveInt": declared(("INT",), value=("INT", {"control_after_generate": True})),
    "PrimitiveBoolean": declared(("BOOLEAN",), value="BOOLEAN"),
    "ComfySwitchNode": declared(
        ("COMFY_MATCHTYPE_V3",), switch="BOOLEAN", on_false="*", on_true="*"
    ),
    "SaveLatent": declared(samples="LATENT"),
    "Choice": declared(
        mode=(
            "COMFY_DYNAMICCOMBO_V3",
            {"options": [{"key": "more", "inputs": {"required": {"amount": ["INT", {}]}}}]},
        ),
        after="STRING",
    ),
}
FAMILIES = {
    "qwen-image": {"class": "Q", "file": "q.safetensors", "latent": [[1, 16, 1, 4, 4]], "text": 8}
}


def ui(number: int, kind: str, *widgets: Any, inputs: Any = (), **more: Any) -> dict[str, Any]:
    """A node as the browser saves it; `inputs` are (name, type, link)."""
    slots = [{"name": name, "type": its, "link": link} for name, its, link in inputs]
    return {"id": number, "type": kind, "widgets_values": list(widgets), "inputs": slots, **more}


def out(*kinds: str) -> list[dict[str, Any]]:
    return [{"name": kind, "type": kind} for kind in kinds]


def sampler(number: int = 3, model: int = 1, samples: int | None = None) -> dict[str, Any]:
    inputs = [("model", "MODEL", model), ("latent_image", "LATENT", samples)]
    return ui(number, "KSampler", 7, "randomize", 20, 4.5, "euler", "simple", 1.0, inputs=inputs)


def test_widgets_are_named_in_order_without_the_control_behind_a_seed() -> None:
    flow = {"nodes": [ui(1, "UNETLoader", "a.safetensors", "default"), sampler()]}
    prompt = flatten({**flow, "links": [[1, 1, 0, 3, 0, "MODEL"]]}, OBJECT_INFO)
    assert prompt["1"]["inputs"] == {"unet_name": "a.safetensors", "weight_dtype": "default"}
    assert prompt["3"] == {
        "class_type": "KSampler",
        "inputs": {
            "seed": 7,
            "steps": 20,
            "cfg": 4.5,
            "sampler_name": "euler",
            "scheduler": "simple",
            "denoise": 1.0,
            "model": ["1", 0],
        },
    }


def test_widgets_of_a_chosen_option_come_before_the_next() -> None:
    prompt = flatten({"nodes": [ui(1, "Choice", "more", 3, "text")]}, OBJECT_INFO)
    assert prompt["1"]["inputs"] == {"mode": "more", "mode.amount": 3, "after": "text"}


def test_a_class_that_is_not_known_keeps_the_widgets_that_the_workflow_names() -> None:
    node = ui(1, "Theirs", "a", 2)
    node["inputs"] = [
        {"name": "text", "type": "STRING", "widget": {"name": "text"}, "link": None},
        {"name": "image", "type": "IMAGE", "link": None},
        {"name": "size", "type": "INT", "widget": {"name": "size"}, "link": None},
    ]
    assert flatten({"nodes": [node]}, {})["1"]["inputs"] == {"text": "a", "size": 2}


@pytest.mark.parametrize(("mode", "expected"), [(0, ["2", 0]), (4, ["1", 0]), (2, None)])
def test_bypassed_nodes_pass_on_and_muted_ones_are_gone(mode: int, expected: Any) -> None:
    lora = ui(
        *(2, "LoraLoaderModelOnly", "l.safetensors", 1.0),
        inputs=[("model", "MODEL", 1)],
        outputs=out("MODEL"),
        mode=mode,
    )
    links = [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "MODEL"]]
    flow = {"nodes": [ui(1, "UNETLoader", "a", "default"), lora, sampler(model=2)], "links": links}
    prompt = flatten(flow, OBJECT_INFO)
    assert prompt["3"]["inputs"].get("model") == expected
    assert ("2" in prompt) == (mode == 0)


def test_what_only_the_browser_knows_becomes_what_it_leads_to() -> None:
    nodes = [
        ui(1, "UNETLoader", "a", "default"),
        ui(2, "Reroute", inputs=[("", "*", 1)]),
        ui(4, "SetNode", "model", inputs=[("MODEL", "MODEL", 2)]),
        ui(5, "GetNode", "model"),
        ui(6, "PrimitiveNode", 33, "fixed"),
        ui(7, "MarkdownNote", "text"),
        sampler(model=3),
    ]
    nodes[-1]["inputs"].append({"name": "steps", "type": "INT", "link": 4})
    links = [
        [1, 1, 0, 2, 0, "*"],
        [2, 2, 0, 4, 0, "*"],
        [3, 5, 0, 3, 0, "MODEL"],
        [4, 6, 0, 3, 2, "INT"],
    ]
    prompt = flatten({"nodes": nodes, "links": links}, OBJECT_INFO)
    assert set(prompt) == {"1", "3"}
    assert prompt["3"]["inputs"]["model"] == ["1", 0]
    assert prompt["3"]["inputs"]["steps"] == 33


def link(number: int, origin: int, target: int, slot: int = 0, to: int = 0) -> dict[str, Any]:
    return {
        **{"id": number, "origin_id": origin, "origin_slot": slot},
        **{"target_id": target, "target_slot": to},
    }


def subgraph(name: str, nodes: list[Any], links: list[Any], inputs: list[Any]) -> dict[str, Any]:
    return {
        **{"id": name, "nodes": nodes, "links": links, "inputs": inputs},
        **{"inputNode": {"id": -10}, "outputNode": {"id": -20}},
    }


def test_subgraphs_in_subgraphs_are_unfolded() -> None:
    """The inner one samples; the outer one has a widget for its steps, and gets the model."""
    inner_sampler = sampler(number=1, model=1)
    inner_sampler["inputs"].append({"name": "steps", "type": "INT", "link": 2})
    inner = subgraph(
        "inner",
        [inner_sampler],
        [link(1, -10, 1), link(2, -10, 1, 1, 2), link(3, 1, -20)],
        [{"name": "model", "type": "MODEL"}, {"name": "steps", "type": "INT"}],
    )
    use = ui(5, "inner", 12, inputs=[("model", "MODEL", 1), ("steps", "INT", 2)])
    outer = subgraph(
        "outer",
        [use],
        [link(1, -10, 5), link(2, -10, 5, 1, 1), link(3, 5, -20)],
        [{"name": "model", "type": "MODEL"}, {"name": "steps", "type": "INT"}],
    )
    flow = {
        "nodes": [
            ui(1, "UNETLoader", "a", "default"),
            ui(2, "outer", 9, inputs=[("model", "MODEL", 1)]),
            ui(3, "SaveLatent", inputs=[("samples", "LATENT", 2)]),
        ],
        "links": [[1, 1, 0, 2, 0, "MODEL"], [2, 2, 0, 3, 0, "LATENT"]],
        "definitions": {"subgraphs": [inner, outer]},
    }
    prompt = flatten(flow, OBJECT_INFO)
    assert set(prompt) == {"1", "3", "2:5:1"}
    assert prompt["2:5:1"]["inputs"]["model"] == ["1", 0]
    assert prompt["2:5:1"]["inputs"]["steps"] == 9
    assert prompt["3"]["inputs"]["samples"] == ["2:5:1", 0]
    flow["nodes"][1]["mode"] = 2
    assert set(flatten(flow, OBJECT_INFO)) == {"1", "3"}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def template(model: str = "switch") -> dict[str, Any]:
    text = {"clip": ["clip", 0], "text": "a boat"}
    return {
        "loader": node("UNETLoader", unet_name="qwen_image_fp8_e4m3fn.safetensors"),
        "clip": node("CLIPLoader"),
        "lora": node(
            "LoraLoaderModelOnly", model=["loader", 0], lora_name="fast", strength_model=0.5
        ),
        "on": node("PrimitiveBoolean", value=True),
        "switch": node(
            "ComfySwitchNode", switch=["on", 0], on_false=["loader", 0], on_true=["lora", 0]
        ),
        "patch": node("Patch", model=["switch", 0], control_net=["none", 0]),
        "positive": node("CLIPTextEncode", **text),
        "negative": node("CLIPTextEncode", **text),
        "empty": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
        "steps": node("PrimitiveInt", value=8),
        "sampler": node(
            "KSampler",
            model=[model, 0],
            seed=3,
            steps=["steps", 0],
            cfg=4.0,
            sampler_name="euler",
            scheduler="simple",
            positive=["positive", 0],
            negative=["negative", 0],
            latent_image=["empty", 0],
            denoise=1.0,
        ),
    }


def test_a_judgement_names_models_patches_and_steps() -> None:
    its = judge(template(), OBJECT_INFO, {"Asks"})
    [model] = its.models
    assert (model.node, model.loader, model.family, model.format, model.kind) == (
        *("loader", "UNETLoader", "qwen-image"),
        *("fp8", "fp8"),
    )
    assert its.patches == ["LoraLoaderModelOnly"]
    assert its.samplers == {"sampler": 8}
    assert its.ideal_gain == 8 / (1 + 7 / 2)
    assert not its.partner
    assert judge({"ask": node("Asks")}, OBJECT_INFO, {"Asks"}).partner
    assert judge({}, OBJECT_INFO, {}).lacking


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (4, 2.5), (20, 11.5), (50, 26.5)])
def test_shortened(steps: int, expected: float) -> None:
    assert shortened(steps) == expected


def test_values_come_from_switches_and_primitives() -> None:
    prompt = {**template(), "small": node("PrimitiveInt", value=["steps", 0])}
    assert value_of(prompt, ["small", 0]) == 8
    assert value_of(prompt, 5) == 5
    assert value_of(prompt, ["nobody", 0]) is None


def test_a_reduced_prompt_keeps_samplers_and_patches() -> None:
    its = reduced(judge(template(), OBJECT_INFO, {}), OBJECT_INFO, FAMILIES, seed=5)
    flow = its.workflow
    assert its.samplers == ["sampler"]
    assert its.left_out == []
    assert flow["loader"] == node("TestDescribedModel", unet_name="q.safetensors")
    assert flow["lora"]["inputs"] == {
        **{"model": ["loader", 0], "lora_name": "q.safetensors", "strength_model": 0.5}
    }
    sampling = flow["sampler"]["inputs"]
    assert sampling["steps"] == STEPS
    assert sampling["seed"] == 5
    assert sampling["cfg"] == 4.0
    assert flow[sampling["latent_image"][0]]["class_type"] == "TestLatent"
    texts = [flow[sampling[key][0]] for key in ("positive", "negative")]
    assert [text["class_type"] for text in texts] == ["TestConditioning"] * 2
    assert texts[0] != texts[1]
    assert "clip" not in flow


def test_what_cannot_be_kept_is_left_out_and_told() -> None:
    its = reduced(judge(template("patch"), OBJECT_INFO, {}), OBJECT_INFO, FAMILIES, 1, cfg=1.0)
    assert its.left_out == ["Patch"]
    assert its.workflow["sampler"]["inputs"]["model"] == ["lora", 0]
    assert its.workflow["sampler"]["inputs"]["cfg"] == 1.0


def test_twins() -> None:
    flow = reduced(judge(template(), OBJECT_INFO, {}), OBJECT_INFO, FAMILIES, 1).workflow
    spread = parallelized(flow, OBJECT_INFO)
    assert spread["lora"]["inputs"]["model"] == ["spread loader", 0]
    assert spread["spread loader"]["inputs"]["model"] == ["loader", 0]
    schedule = spread["sampler"]["inputs"]["model"][0]
    assert spread[schedule]["class_type"] == "AsyncDiffSchedule"
    assert spread[schedule]["inputs"]["model"] == ["lora", 0]
    alone = with_samplers(flow, OBJECT_INFO)
    assert alone["sampler"]["class_type"] == "AsyncDiffKSampler"
    assert alone["sampler"]["inputs"]["model"] == ["lora", 0]
    assert flow["sampler"]["class_type"] == "KSampler"
