"""A workflow as the browser saves it, as the prompt that the browser would send. Pure.

What only the browser knows goes: subgraphs are unfolded, muted nodes left out, bypassed ones pass
on their inputs, Reroute, PrimitiveNode, SetNode and GetNode become what they lead to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Prompt = dict[str, Json]  # node id -> class_type, inputs

MUTED, BYPASSED = 2, 4
CONTROLS = ("fixed", "increment", "decrement", "randomize")  # the widget behind a seed
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
NOTES = {"Note", "MarkdownNote"}
VIRTUAL = NOTES | {"Reroute", "PrimitiveNode", "SetNode", "GetNode"}


@dataclass(frozen=True)
class Value:
    """What a widget holds, where a link leads to one."""

    value: Any


@dataclass
class Scope:
    """The nodes of a workflow, or of one use of a subgraph.

    Attributes:
        prefix: of the ids of its nodes.
        links: which node and output each link comes from, by its id.
        results: the links that lead to the subgraph's outputs.
        names: of the subgraph's inputs.
        parent: where it is used, and by which node.
    """

    prefix: str
    nodes: dict[Any, Json]
    links: dict[int, tuple[Any, int]]
    results: dict[int, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    parent: tuple[Scope, Json] | None = None
    promoted: dict[str, Any] = field(default_factory=dict)  # values of widgets, by input
    inner: dict[Any, Scope] = field(default_factory=dict)  # of nodes that stand for subgraphs


def flatten(workflow: Json, object_info: Json) -> Prompt:
    """The prompt of a workflow; nodes inside of subgraphs are called ``outer:inner``.

    Args:
        workflow: as the browser saves it.
        object_info: the server's, which has the widgets of each class in order. A class that it
            does not know keeps those that the workflow names.
    """
    definitions = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", [])}
    links = {link[0]: (link[1], link[2]) for link in workflow.get("links", []) if link}
    top = Scope("", {node["id"]: node for node in workflow["nodes"]}, links)
    _unfold(top, definitions)
    prompt = {}
    for scope in _scopes(top):
        for node in scope.nodes.values():
            if _is_off(node) or node["type"] in VIRTUAL or node["id"] in scope.inner:
                continue
            inputs = widgets_of(node, object_info.get(node["type"]))
            for slot in node.get("inputs") or ():
                found = _follow(scope, slot.get("link"))
                if isinstance(found, Value):
                    inputs[slot["name"]] = found.value
                elif found is not None:
                    inputs[slot["name"]] = found
            prompt[f"{scope.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def _is_off(node: Json) -> bool:
    return node.get("mode", 0) in (MUTED, BYPASSED)


def _scopes(scope: Scope) -> Iterator[Scope]:
    yield scope
    for name, inner in scope.inner.items():
        if not _is_off(scope.nodes[name]):
            yield from _scopes(inner)


def _unfold(scope: Scope, definitions: dict[str, Json]) -> None:
    """Make the scopes of the subgraphs that are used in `scope`."""
    for node in scope.nodes.values():
        definition = definitions.get(node["type"])
        if definition is None:
            continue
        links, results = {}, {}
        for link in definition["links"]:
            links[link["id"]] = (link["origin_id"], link["origin_slot"])
            if link["target_id"] == definition["outputNode"]["id"]:
                results[link["target_slot"]] = link["id"]
        inner = Scope(
            prefix=f"{scope.prefix}{node['id']}:",
            nodes={one["id"]: one for one in definition["nodes"]},
            links=links,
            results=results,
            names=[one["name"] for one in definition["inputs"]],
            parent=(scope, node),
            promoted=_promoted(node, definition),
        )
        _put_proxies(node, inner)
        scope.inner[node["id"]] = inner
        _unfold(inner, definitions)


def _promoted(node: Json, definition: Json) -> dict[str, Any]:
    """The values of the widgets that a node which stands for a subgraph shows, by input."""
    names = [one["name"] for one in definition["inputs"] if _is_widget_type(one["type"])]
    values = node.get("widgets_values")
    if isinstance(values, dict):
        return {name: values[name] for name in names if name in values}
    values = [value for value in values or () if value not in CONTROLS]
    if len(values) != len(names):
        return {}
    return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def _put_proxies(node: Json, inner: Scope) -> None:
    """Older files: widgets of inner nodes, shown on the outer one, by node and name."""
    proxies = node.get("properties", {}).get("proxyWidgets") or []
    values = node.get("widgets_values")
    if not isinstance(values, list) or len(values) != len(proxies) or inner.promoted:
        return
    for (name, widget), value in zip((proxy[:2] for proxy in proxies), values, strict=True):
        for key, one in inner.nodes.items():
            if str(key) == str(name) and value is not None:
                inner.nodes[key] = {**one, "proxied": {**one.get("proxied", {}), widget: value}}


def _is_widget_type(kind: Any) -> bool:
    return isinstance(kind, list) or str(kind) in WIDGETS or str(kind) == DYNAMIC_COMBO


def _follow(scope: Scope, link: Any) -> list[Any] | Value | None:
    """The node and output, or the value, that a link leads to; None where there is nothing."""
    if link is None or link not in scope.links:
        return None
    origin, slot = scope.links[link]
    if origin not in scope.nodes:
        return _follow_out(scope, slot)
    node = scope.nodes[origin]
    if node.get("mode", 0) == MUTED:
        return None
    if node.get("mode", 0) == BYPASSED:
        return _follow(scope, _passed_by(node, slot))
    kind = node["type"]
    if kind == "Reroute":
        return _follow(scope, _first_link(node))
    if kind == "PrimitiveNode":
        values = node.get("widgets_values") or [None]
        return Value(values[0])
    if kind == "GetNode":
        name = (node.get("widgets_values") or [None])[0]
        for one in scope.nodes.values():
            if one["type"] == "SetNode" and (one.get("widgets_values") or [None])[0] == name:
                return _follow(scope, _first_link(one))
        return None
    if origin in scope.inner:
        inner = scope.inner[origin]
        return _follow(inner, inner.results.get(slot))
    return [f"{scope.prefix}{origin}", slot]


def _follow_out(scope: Scope, slot: int) -> list[Any] | Value | None:
    """What a subgraph's input gets from where the subgraph is used."""
    if scope.parent is None or not 0 <= slot < len(scope.names):
        return None
    outer, node = scope.parent
    name = scope.names[slot]
    for one in node.get("inputs") or ():
        if one["name"] == name and one.get("link") is not None:
            return _follow(outer, one["link"])
    return Value(scope.promoted[name]) if name in scope.promoted else None


def _first_link(node: Json) -> Any:
    return next((one.get("link") for one in node.get("inputs") or ()), None)


def _passed_by(node: Json, slot: int) -> Any:
    """The link that a bypassed node passes on: of the input beside the output, or of its type."""
    outputs, inputs = node.get("outputs") or [], node.get("inputs") or []
    if slot >= len(outputs):
        return None
    kind = outputs[slot]["type"]
    beside = [inputs[slot]] if slot < len(inputs) else []
    for one in (*beside, *inputs):
        if one.get("type") == kind and one.get("link") is not None:
            return one["link"]
    return None


def widgets_of(node: Json, info: Json | None) -> Json:
    """The values of a node's widgets, by input."""
    values = node.get("widgets_values")
    if isinstance(values, dict):
        found = dict(values)
    else:
        found = {}
        left = list(values or ())
        names = _declared(info) if info else _named(node)
        for name, kind in names:
            _take(name, kind, left, found)
    return {**found, **node.get("proxied", {})}


def _declared(info: Json) -> Iterator[tuple[str, Any]]:
    for section in ("required", "optional"):
        yield from info["input"].get(section, {}).items()


def _named(node: Json) -> Iterator[tuple[str, Any]]:
    for one in node.get("inputs") or ():
        if "widget" in one:
            yield one["name"], [one["type"]]


def _take(name: str, kind: Any, left: list[Any], found: Json) -> None:
    """Take the values of one input, if it is a widget, from the front of `left`."""
    options = kind[1] if len(kind) > 1 and isinstance(kind[1], dict) else {}
    if not _is_widget_type(kind[0]) or options.get("forceInput") or not left:
        return
    value = found[name] = left.pop(0)
    if kind[0] == DYNAMIC_COMBO:
        for option in options.get("options", ()):
            if option.get("key") == value:
                for section in ("required", "optional"):
                    for inner, its in option.get("inputs", {}).get(section, {}).items():
                        _take(f"{name}.{inner}", its, left, found)
    elif left and isinstance(left[0], str) and left[0] in CONTROLS and _has_control(name, kind):
        left.pop(0)


def _has_control(name: str, kind: Any) -> bool:
    options = kind[1] if len(kind) > 1 and isinstance(kind[1], dict) else {}
    return bool(options.get("control_after_generate")) or kind[0] == "INT"
