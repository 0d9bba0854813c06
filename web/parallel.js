/** From a stock sampler to a parallel one: one entry in the menu of the node. */

/** Which node of this pack has all inputs of a stock node, and a few more. */
const TWINS = { KSampler: "AsyncDiffKSampler", KSamplerAdvanced: "AsyncDiffKSamplerAdvanced" };

/** What the menu of `node` offers: a list of entries, empty for other nodes. */
export function parallelEntries(node) {
  if (!(node.comfyClass in TWINS)) return [];
  return [{ content: "Make parallel (AsyncDiff)", callback: () => makeParallel(node) }];
}

/**
 * Put this pack's node in the place of a stock sampler, with its links, values, title and place.
 * @returns the new node
 */
export function makeParallel(node) {
  const { graph } = node;
  const twin = LiteGraph.createNode(TWINS[node.comfyClass]);
  graph.beforeChange();
  graph.add(twin);
  twin.pos = [...node.pos];
  twin.setSize([Math.max(node.size[0], twin.size[0]), twin.size[1]]);
  twin.mode = node.mode;
  if (node.title !== node.constructor.title) twin.title = node.title;
  if (node.color) twin.color = node.color;
  if (node.bgcolor) twin.bgcolor = node.bgcolor;
  for (const widget of node.widgets ?? []) {
    const same = twin.widgets.find((other) => other.name === widget.name);
    if (same) same.value = widget.value;
  }
  node.inputs.forEach((input, slot) => {
    const source = node.getInputNode(slot);
    if (!source) return;
    const { origin_slot } = graph.links.get(input.link);
    source.connect(origin_slot, twin, twin.findInputSlot(input.name));
  });
  node.outputs.forEach((output, slot) => {
    for (const id of [...(output.links ?? [])]) {
      const { target_id, target_slot } = graph.links.get(id);
      twin.connect(slot, graph.getNodeById(target_id), target_slot);
    }
  });
  graph.remove(node);
  graph.afterChange();
  return twin;
}
