// @ts-check
/**
 * The choice of devices on a node: a button that offers what this machine has.
 *
 * The widget `devices` stays free text. Where it names a device that this machine does not have, as
 * in a workflow from another one, the button says so, and what is queued has `auto` in its place, and
 * the defaults of the other numbers of the plan. The workflow keeps what it says, for the machine that
 * it came from.
 */

import { bytes } from "./panel/words.js";

/** @import { Machine } from "./types/server.js" */

const CHOOSE = "Choose devices";
const LINKED = "Devices come from a link";

// The placement of a node whose devices are those of another machine.
const ELSEWHERE = { devices: "auto", stages: 0, replicas: 0, stride: 1 };

/** @type {Promise<Machine | null> | null} */
let machine = null; // a promise of what the server has; null if it is not known
/** @type {PointerEvent | null} */
let lastPointer = null; // Vue nodes do not tell their buttons where they were clicked

document.addEventListener("pointerdown", (event) => (lastPointer = event), true);

/**
 * Add the button to a node that has a widget `devices` of this pack.
 * @param {ComfyNode} node
 * @param {ComfyApi} api
 */
export function addDeviceChoice(node, api) {
  const devices = node.widgets?.find((widget) => widget.name === "devices");
  if (!devices || !node.comfyClass?.startsWith("AsyncDiff")) return;
  const isLinked = () =>
    Boolean(node.inputs?.some((input, slot) => input.widget?.name === "devices" && node.isInputConnected(slot)));
  const button = node.addWidget("button", "choose_devices", null, async () => {
    const known = await askMachine(api);
    if (known && !isLinked()) openMenu(known, devices, update);
  });
  // It comes last and is not saved: saved values are told apart by their position.
  button.serialize = false;
  button.options.serialize = false;
  button.label = CHOOSE;

  const update = async () => {
    const known = await askMachine(api);
    // What a link gives is not known before the graph is queued. Links may have come meanwhile.
    const label = isLinked() ? LINKED : (warning(devices.value, known) ?? CHOOSE);
    if (button.label === label) return;
    button.label = label;
    node.setDirtyCanvas?.(true, true);
  };
  const { callback } = devices;
  devices.callback = function (...args) {
    update();
    return callback?.apply(this, args);
  };
  const { onConfigure } = node;
  node.onConfigure = function (...args) {
    update();
    return onConfigure?.apply(this, args);
  };
  const { onConnectionsChange } = node;
  node.onConnectionsChange = function (...args) {
    update();
    return onConnectionsChange?.apply(this, args);
  };
}

/**
 * Have the browser queue `auto` in the place of devices that this machine does not have, wherever they come
 * from: a widget, a node linked to it, or a subgraph around it. What is saved or exported stays as it is.
 * @param {ComfyApi} api
 * @param {(text: string) => void} tell shows a warning, once per node and devices, since the node may be
 *     out of sight
 */
export function replaceForeignDevices(api, tell) {
  const { queuePrompt } = api;
  const told = new Set();
  api.queuePrompt = async function (number, prompt, ...args) {
    const output = { ...prompt.output };
    for (const [id, node] of Object.entries(output)) {
      const { class_type, inputs, _meta } = node;
      if (!class_type?.startsWith("AsyncDiff") || typeof inputs.devices !== "string") continue;
      const complaint = warning(inputs.devices, await askMachine(api));
      if (!complaint) continue;
      output[id] = { ...node, inputs: { ...inputs, ...ELSEWHERE } };
      const text = `${_meta?.title ?? class_type}: ${complaint}`;
      if (!told.has(text)) tell(text);
      told.add(text);
    }
    return queuePrompt.call(this, number, { ...prompt, output }, ...args);
  };
}

/** Ask for the devices again, since a server that was started anew may have others. */
export function forgetMachine() {
  machine = null;
}

/**
 * What to say about `text`, or null if `known`, the machine, has all devices that it names.
 * @param {unknown} text
 * @param {Machine | null} known
 */
export function warning(text, known) {
  if (!known) return null;
  const names = new Set(known.devices.map((device) => device.name));
  const missing = listed(text).filter((name) => name && name !== "auto" && !names.has(name));
  return missing.length ? `⚠ no ${[...new Set(missing)].join(", ")} here: auto` : null;
}

/**
 * The devices that a text names, as PyTorch calls them.
 * @param {unknown} text
 */
function listed(text) {
  const names = String(text).split(",").map((name) => name.trim().toLowerCase());
  return names.map((name) => (/^[a-z]+$/.test(name) && name !== "cpu" && name !== "auto" ? `${name}:0` : name));
}

/**
 * What the server has; null if it does not say, and then it is asked again next time.
 * @param {ComfyApi} api
 */
function askMachine(api) {
  machine ??= api
    .fetchApi("/asyncdiff/devices")
    .then((answer) => {
      if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
      return answer.json();
    })
    .catch((error) => {
      console.warn("AsyncDiff: the devices of this machine are not known:", error);
      machine = null;
      return null;
    });
  return machine;
}

/** What memory a device has, and how much of it is free. @param {Machine["devices"][0]} device */
function memory({ memory_bytes: all, free_bytes: free }) {
  if (!all) return "";
  return `, ${bytes(all)}${free === null ? "" : `, ${bytes(free)} free`}`;
}

/**
 * @param {Machine} machine
 * @param {ComfyWidget} widget
 * @param {() => void} update
 */
function openMenu({ devices, auto }, widget, update) {
  /** @param {string} value */
  const set = (value) => {
    widget.value = value;
    widget.callback?.(value);
    update();
  };
  const here = devices.map((device) => device.name);
  const now = listed(widget.value);
  const isList = now.every((name) => here.includes(name));
  const entries = [{ content: `auto: ${auto.join(", ")}`, callback: () => set("auto") }];
  const gpus = here.filter((name) => name !== "cpu");
  for (let number = 2; number <= gpus.length; number += 1) {
    const list = gpus.slice(0, number).join(",");
    entries.push({ content: list, callback: () => set(list) });
  }
  for (const device of devices) {
    const list = (isList ? [...now, device.name] : [device.name, device.name]).join(",");
    const what = `${device.title}${memory(device)}`;
    const content = `${isList ? "Add" : "Twice"} ${device.name} (${what})`;
    entries.push({ content, callback: () => set(list) });
  }
  if (isList && now.length > 1) {
    const shorter = now.slice(0, -1).join(",");
    entries.push({ content: `Remove the last ${now.at(-1)}`, callback: () => set(shorter) });
  }
  new LiteGraph.ContextMenu(entries, { event: lastPointer, title: "Devices of this machine" });
}
