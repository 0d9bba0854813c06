// @ts-check
/** From stock samplers to parallel ones, and back: entries in the menus of nodes and canvas. */

/**
 * Which node of this pack has all inputs and outputs of a stock node, and a few more.
 * @type {Record<string, string>}
 */
const TWINS = {
  KSampler: "AsyncDiffKSampler",
  KSamplerAdvanced: "AsyncDiffKSamplerAdvanced",
  CheckpointLoaderSimple: "AsyncDiffCheckpointLoader",
  UNETLoader: "AsyncDiffDiffusionModelLoader",
};
const STOCK = Object.fromEntries(Object.entries(TWINS).map(([stock, twin]) => [twin, stock]));
const SAMPLERS = ["KSampler", "KSamplerAdvanced"];

/** What goes between any MODEL and the node that samples it. */
const SCHEDULE = "AsyncDiffSchedule";
/** Nodes of this pack through which a MODEL goes. */
const PASSED = [SCHEDULE, "AsyncDiffParallelize"];
const [GAP, TITLE, COLLAPSED] = [10, 30, 200]; // pixels between nodes, of titles, of collapsed ones
const ALWAYS = 0; // the mode of a node that is neither muted nor bypassed

/**
 * What the menu of `node` offers: a list of entries, empty for nodes without a MODEL.
 * @param {ComfyNode} node
 * @returns {ComfyMenuEntry[]}
 */
export function parallelEntries(node) {
  const canTakeSchedule = !isOurNode(node) && !node.subgraph && openModels(node).length;
  return SAMPLERS.includes(node.comfyClass ?? "") || canTakeSchedule
    ? [{ content: "Make parallel (AsyncDiff)", callback: () => makeParallel(node) }]
    : [];
}

/**
 * Make one node sample in parallel: one of this pack in the place of a stock sampler, a schedule
 * on the MODEL of any other.
 * @param {ComfyNode} node
 * @returns {ComfyNode} the new node
 */
export function makeParallel(node) {
  const { graph } = node;
  graph.beforeChange();
  renewLinkNumbers(graph);
  const made = SAMPLERS.includes(node.comfyClass ?? "")
    ? replace(node, TWINS[node.comfyClass ?? ""])
    : insertSchedules(graph, openModels(node))[0];
  graph.afterChange();
  return made;
}

/**
 * Make everything that samples parallel, in all subgraphs too. No node is replaced, so that
 * whatever names a node by its number still finds it.
 * @param {ComfyGraph} root
 * @returns {number} how many nodes sample in parallel that did not
 */
export function makeAllParallel(root) {
  const samplers = graphsOf(root).flatMap((graph) =>
    graph._nodes.filter((node) => isSampler(node) && openModels(node).length),
  );
  if (!samplers.length) return 0;
  root.beforeChange();
  renewLinkNumbers(root);
  for (const graph of graphsOf(root)) {
    const links = samplers.filter((node) => node.graph === graph).flatMap(openModels);
    insertSchedules(graph, links);
  }
  root.afterChange();
  return samplers.length;
}

/**
 * Take all nodes of this pack out again, or put stock ones in their place.
 * @param {ComfyGraph} root
 * @returns {number} how many there were
 */
export function makeAllLocal(root) {
  const ours = graphsOf(root).flatMap((graph) => graph._nodes.filter(isOurNode));
  if (!ours.length) return 0;
  root.beforeChange();
  renewLinkNumbers(root);
  for (const node of ours) {
    const stock = STOCK[node.comfyClass ?? ""];
    if (stock) replace(node, stock);
    else takeOut(node);
  }
  root.afterChange();
  return ours.length;
}

/**
 * The graph itself and all of its subgraphs.
 * @param {ComfyGraph} graph
 * @returns {ComfyGraph[]}
 */
function graphsOf(graph) {
  const root = graph.rootGraph ?? graph;
  return [root, ...(root.subgraphs?.values() ?? [])];
}

/**
 * Whether a node samples a MODEL, or hands it to what does: with conditioning, or as a guider.
 * @param {ComfyNode} node
 */
function isSampler(node) {
  if (node.subgraph || (node.comfyClass ?? "") in STOCK) return false;
  const takes = (/** @type {string} */ type) => node.inputs?.some((slot) => slot.type === type);
  const gives = (/** @type {string} */ type) => node.outputs?.some((slot) => slot.type === type);
  const isPatch = gives("MODEL") && !gives("LATENT") && !gives("IMAGE");
  return takes("MODEL") && (takes("CONDITIONING") || gives("GUIDER")) && !isPatch;
}

/**
 * Whether a node is of this pack, and a MODEL comes out of it or is sampled in it.
 * @param {ComfyNode} node
 */
function isOurNode({ comfyClass = "" }) {
  return comfyClass in STOCK || PASSED.includes(comfyClass);
}

/**
 * Links that bring a MODEL to `node` that comes through no node of this pack.
 * @param {ComfyNode} node
 * @returns {ComfyLink[]}
 */
function openModels(node) {
  return linksInto(node, ["MODEL"]).filter((link) => !isOurs(node.graph, link, new Set()));
}

/**
 * Whether a MODEL has come through a node of this pack, as far as this graph shows.
 * @param {ComfyGraph} graph
 * @param {ComfyLink} link
 * @param {Set<ComfyNode>} seen
 * @returns {boolean}
 */
function isOurs(graph, link, seen) {
  if (link.originIsIoNode) return false;
  const node = graph.getNodeById(link.origin_id);
  if (!node || seen.has(node)) return false;
  seen.add(node);
  if (isOurNode(node)) return true;
  return linksInto(node, ["MODEL", "*"]).some((before) => isOurs(graph, before, seen));
}

/**
 * Put a schedule on these links; one on all that begin at the same output.
 * @param {ComfyGraph} graph
 * @param {ComfyLink[]} links
 * @returns {ComfyNode[]} the schedules
 */
function insertSchedules(graph, links) {
  /** @type {Map<string, ComfyNode>} */
  const made = new Map();
  for (const link of links) {
    const origin = `${link.originIsIoNode} ${link.origin_id} ${link.origin_slot}`;
    const target = graph.getNodeById(link.target_id);
    const slot = link.target_slot;
    let schedule = made.get(origin);
    if (!schedule) {
      schedule = LiteGraph.createNode(SCHEDULE);
      schedule.pos = above(graph, target);
      schedule.flags.collapsed = true; // its defaults are right, and it needs little room
      graph.add(schedule);
      schedule.mode = target.mode; // one of a muted sampler would ask for what is muted too
      connectInput(graph, link, schedule, schedule.findInputSlot("model"));
      made.set(origin, schedule);
    }
    if (target.mode === ALWAYS) schedule.mode = ALWAYS;
    schedule.connect(0, target, slot);
  }
  return [...made.values()];
}

/**
 * A place for a collapsed node that is as near above `target` as can be, so that it belongs to the
 * same group: the first that is free, or that right above.
 * @param {ComfyGraph} graph
 * @param {ComfyNode} target
 * @returns {number[]}
 */
function above(graph, target) {
  const taken = graph._nodes.map(box);
  const places = Array.from({ length: 8 }, (_, row) => [
    target.pos[0],
    target.pos[1] - TITLE - GAP - row * (TITLE + GAP),
  ]);
  const isFree = (/** @type {number[]} */ [x, y]) =>
    !taken.some(([a, b, width, height]) =>
      [
        [x, COLLAPSED, a, width],
        [y - TITLE, TITLE, b, height],
      ].every(([from, length, other, its]) => from < other + its + GAP && other < from + length + GAP),
    );
  return places.find(isFree) ?? places[0];
}

/**
 * Where a node lies, with its title: x, y, width, height.
 * @param {ComfyNode} node
 * @returns {number[]}
 */
function box({ pos, size, flags }) {
  const [width, height] = flags?.collapsed ? [COLLAPSED, 0] : size;
  return [pos[0], pos[1] - TITLE, width, height + TITLE];
}

/**
 * Take a node out through which one value goes, and connect what it gave with what it got.
 * @param {ComfyNode} node
 */
function takeOut(node) {
  const { graph } = node;
  const [before] = linksInto(node, ["MODEL"]);
  const after = linksOf(node, 0);
  if (before) for (const link of after) reconnect(graph, before, link);
  graph.remove(node);
}

/**
 * Have what `link` goes to come from where `before` comes from.
 * @param {ComfyGraph} graph
 * @param {ComfyLink} before
 * @param {ComfyLink} link
 */
function reconnect(graph, before, link) {
  if (link.targetIsIoNode) {
    const output = graph.outputs[link.target_slot];
    if (before.originIsIoNode) {
      // A subgraph's input cannot be linked to its output but through a node.
      const between = LiteGraph.createNode("Reroute");
      graph.add(between);
      between.pos = [...graph.getNodeById(link.origin_id).pos];
      connectInput(graph, before, between, 0);
      output.connect(between.outputs[0], between);
      return;
    }
    const origin = graph.getNodeById(before.origin_id);
    output.connect(origin.outputs[before.origin_slot], origin, before.parentId ?? link.parentId);
    return;
  }
  const target = graph.getNodeById(link.target_id);
  connectInput(graph, before, target, link.target_slot, before.parentId ?? link.parentId);
}

/**
 * Put another node in the place of one, with its links, values, title and place.
 * @param {ComfyNode} node
 * @param {string} type which has the same outputs, and inputs of the same names
 * @returns {ComfyNode} the new node
 */
function replace(node, type) {
  const { graph } = node;
  const twin = LiteGraph.createNode(type);
  graph.add(twin);
  twin.pos = [...node.pos];
  twin.setSize([Math.max(node.size[0], twin.size[0]), twin.size[1]]);
  twin.mode = node.mode;
  if (node.title !== node.constructor.title) twin.title = node.title;
  if (node.color) twin.color = node.color;
  if (node.bgcolor) twin.bgcolor = node.bgcolor;
  for (const widget of node.widgets ?? []) {
    const same = twin.widgets?.find((other) => other.name === widget.name);
    if (same) same.value = widget.value;
  }
  for (const link of linksInto(node)) {
    const slot = twin.findInputSlot(node.inputs[link.target_slot].name);
    if (slot >= 0) connectInput(graph, link, twin, slot);
  }
  node.outputs.forEach((_, slot) => {
    for (const link of linksOf(node, slot)) connectOutput(graph, link, twin, slot);
  });
  graph.remove(node);
  return twin;
}

/**
 * The links of an output of `node`, as they are now.
 * @param {ComfyNode} node
 * @param {number} slot
 * @returns {ComfyLink[]}
 */
function linksOf(node, slot) {
  const isOf = (/** @type {ComfyLink} */ link) =>
    !link.originIsIoNode && link.origin_id === node.id && link.origin_slot === slot;
  return [...node.graph.links.values()].filter(isOf);
}

/**
 * The links into inputs of `node`: those of these types, by default all.
 * @param {ComfyNode} node
 * @param {string[]} [types]
 * @returns {ComfyLink[]}
 */
function linksInto(node, types) {
  const isOf = (/** @type {ComfyLink} */ link) =>
    !link.targetIsIoNode &&
    link.target_id === node.id &&
    (!types || types.includes(node.inputs[link.target_slot]?.type));
  return [...node.graph.links.values()].filter(isOf);
}

/**
 * Connect an input of `node` to where `link` comes from, through the same reroutes.
 * @param {ComfyGraph} graph
 * @param {ComfyLink} link
 * @param {ComfyNode} node
 * @param {number} slot
 * @param {number} [reroute]
 */
function connectInput(graph, link, node, slot, reroute = link.parentId) {
  if (link.originIsIoNode) {
    graph.inputs[link.origin_slot].connect(node.inputs[slot], node, reroute);
  } else {
    graph.getNodeById(link.origin_id).connect(link.origin_slot, node, slot, reroute);
  }
}

/**
 * Connect an output of `node` to where `link` goes, through the same reroutes.
 * @param {ComfyGraph} graph
 * @param {ComfyLink} link
 * @param {ComfyNode} node
 * @param {number} slot
 */
function connectOutput(graph, link, node, slot) {
  if (link.targetIsIoNode) {
    graph.outputs[link.target_slot].connect(node.outputs[slot], node, link.parentId);
  } else {
    node.connect(slot, graph.getNodeById(link.target_id), link.target_slot, link.parentId);
  }
}

/**
 * Some files say that their last link had a smaller number than it has. The next one would take
 * the place of another.
 * @param {ComfyGraph} graph
 */
function renewLinkNumbers(graph) {
  for (const each of graphsOf(graph)) {
    const state = each.state;
    for (const id of each.links.keys()) {
      if (state && id !== null && id > state.lastLinkId) state.lastLinkId = id;
    }
  }
}
