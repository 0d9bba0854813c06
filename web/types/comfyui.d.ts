/** What this pack uses of ComfyUI's page, and nothing else of it. */

/** One input, output, link, widget or node of the canvas, as far as it is used here. */
interface ComfyWidget {
  name: string;
  value: unknown;
  label?: string;
  serialize?: boolean;
  options: { serialize?: boolean };
  callback?(this: unknown, value: unknown, ...more: unknown[]): unknown;
}

interface ComfyInput {
  name: string;
  type: string;
  widget?: { name: string };
}

interface ComfyOutput {
  name: string;
  type: string;
}

interface ComfyLink {
  origin_id: number;
  origin_slot: number;
  target_id: number;
  target_slot: number;
  /** The reroute that it goes through. */
  parentId?: number;
  /** Whether it comes from an input of the subgraph, or goes to an output. */
  originIsIoNode: boolean;
  targetIsIoNode: boolean;
}

interface ComfyNode {
  id: number;
  /** The class of nodes that the server knows it by. */
  comfyClass?: string;
  readonly constructor: Function & { title?: string };
  title: string;
  pos: number[];
  size: number[];
  mode: number;
  flags: { collapsed?: boolean };
  color?: string;
  bgcolor?: string;
  graph: ComfyGraph;
  /** What a node stands for that is a subgraph. */
  subgraph?: ComfyGraph;
  inputs: ComfyInput[];
  outputs: ComfyOutput[];
  widgets?: ComfyWidget[];
  addWidget(type: string, name: string, value: unknown, callback: () => void): ComfyWidget;
  connect(slot: number, target: ComfyNode, targetSlot: number, reroute?: number): void;
  findInputSlot(name: string): number;
  isInputConnected(slot: number): boolean;
  setDirtyCanvas?(foreground: boolean, background: boolean): void;
  setSize(size: number[]): void;
  onConfigure?(...args: unknown[]): unknown;
  onConnectionsChange?(...args: unknown[]): unknown;
}

/** An input of a subgraph within it, to which nodes connect; or an output. */
interface ComfySubgraphSlot {
  connect(slot: ComfyInput | ComfyOutput, node: ComfyNode, reroute?: number): void;
}

interface ComfyGraph {
  links: Map<number | null, ComfyLink>;
  _nodes: ComfyNode[];
  /** The last numbers that were given away. */
  state?: { lastLinkId: number };
  /** The one that this is a subgraph of, and all subgraphs of that one. */
  rootGraph?: ComfyGraph;
  subgraphs?: Map<string, ComfyGraph>;
  /** Those of a subgraph. */
  inputs: ComfySubgraphSlot[];
  outputs: ComfySubgraphSlot[];
  add(node: ComfyNode): void;
  remove(node: ComfyNode): void;
  getNodeById(id: number): ComfyNode;
  beforeChange(): void;
  afterChange(): void;
}

interface ComfyMenuEntry {
  content: string;
  callback(): void;
}

declare const LiteGraph: {
  createNode(type: string): ComfyNode;
  ContextMenu: new (entries: ComfyMenuEntry[], options: { event: Event | null; title: string }) => object;
};

/** A node of the graph in the API format. */
interface ComfyPromptNode {
  class_type?: string;
  inputs: Record<string, unknown>;
  _meta?: { title?: string };
}

interface ComfyPrompt {
  output: Record<string, ComfyPromptNode>;
}

interface ComfyApi {
  addEventListener(event: string, listener: (event: CustomEvent) => void): void;
  apiURL(path: string): string;
  fetchApi(path: string, options?: RequestInit): Promise<Response>;
  queuePrompt(number: number, prompt: ComfyPrompt, ...more: unknown[]): Promise<unknown>;
}

interface ComfyExtension {
  name: string;
  commands?: { id: string; label: string; icon: string; function(): void }[];
  setup?(): void;
  getCanvasMenuItems?(): (ComfyMenuEntry | null)[];
  getNodeMenuItems?(node: ComfyNode): ComfyMenuEntry[];
  nodeCreated?(node: ComfyNode): void;
}

interface ComfyApp {
  graph: ComfyGraph;
  registerExtension(extension: ComfyExtension): void;
  extensionManager: {
    toast: { add(message: { severity: string; summary: string; detail: string; life: number }): void };
    registerSidebarTab(tab: {
      id: string;
      icon: string;
      title: string;
      tooltip: string;
      type: "custom";
      render(element: HTMLElement): void;
      destroy(): void;
    }): void;
  };
}

declare module "*/scripts/app.js" {
  export const app: ComfyApp;
}

declare module "*/scripts/api.js" {
  export const api: ComfyApi;
}
