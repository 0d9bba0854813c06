// @ts-check
/** From a stock sampler to a parallel one: one entry in the menu of the node. */

/**
 * Which node of this pack has all inputs of a stock node, and a few more.
 * @type {Record<string, string>}
 */
const TWINS = { KSampler: "AsyncDiffKSampler", KSamplerAdvanced: "AsyncDiffKSamplerAdvanced" };

/**
 * What the menu of `node` offers: a list of entries, empty for other nodes.
 * @param {ComfyNode} node
 * @returns {ComfyMenuEntry[]}
 */
export function parallelEntries(node) {
  if (!((node.comfyClass ?? "") in TWINS)) return [];
  return [{ content: "Make parallel (AsyncDiff)", callback: () => makeParallel(node) }];
}

/**
 * Put this pack's node in the place of a stock sampler, with its links, values, title and place.
 * @param {ComfyNode} node
 * @returns {ComfyNode} the new node
 */
export function makeParallel(node) {
  const { graph } = node;
  const twin = LiteGraph.createNode(TWINS[node.comfyClass ?? ""]);
  graph.beforeChange();
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
  for (const input of node.inputs) {
    const link = graph.links.get(input.link);
    if (link) connectInput(graph, link, twin, twin.findInputSlot(input.name));
  }
  node.outputs.forEach((output, slot) => {
    for (const id of [...(output.links ?? [])]) connectOutput(graph, linkOf(graph, id), twin, slot);
  });
  graph.remove(node);
  graph.afterChange();
  return twin;
}

/**
 * @param {ComfyGraph} graph
 * @param {number} id
 */
function linkOf(graph, id) {
  return /** @type {ComfyLink} */ (graph.links.get(id));
}

/**
 * Connect an input of `node` to where `link` comes from, through the same reroutes.
 * @param {ComfyGraph} graph
 * @param {ComfyLink} link
 * @param {ComfyNode} node
 * @param {number} slot
 */
function connectInput(graph, link, node, slot) {
  if (link.originIsIoNode) {
    graph.inputs[link.origin_slot].connect(node.inputs[slot], node, link.parentId);
  } else {
    graph.getNodeById(link.origin_id).connect(link.origin_slot, node, slot, link.parentId);
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
