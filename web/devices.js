/**
 * The choice of devices on a node: a button that offers what this machine has.
 *
 * The widget `devices` stays free text. Where it names a device that this machine does not have, as
 * in a workflow from another one, the button says so, and what is queued has `auto` in its place. The
 * workflow keeps what it says, for the machine that it came from.
 */

import { bytes } from "./panel/words.js";

const CHOOSE = "Choose devices";

// The placement of a node whose devices are those of another machine.
const ELSEWHERE = { devices: "auto", stages: 0, replicas: 0, stride: 1 };

let machine = null; // what the server has, asked once
let lastPointer = null; // Vue nodes do not tell their buttons where they were clicked

document.addEventListener("pointerdown", (event) => (lastPointer = event), true);

/** Add the button to a node that has a widget `devices` of this pack. */
export function addDeviceChoice(node, api) {
  const devices = node.widgets?.find((widget) => widget.name === "devices");
  if (!devices || !node.comfyClass?.startsWith("AsyncDiff")) return;
  machine ??= askMachine(api);
  const button = node.addWidget("button", "choose_devices", null, () => {
    machine.then((known) => openMenu(known, devices, update));
  });
  // It comes last and is not saved: saved values are told apart by their position.
  button.serialize = false;
  button.options.serialize = false;
  button.label = CHOOSE;

  function update() {
    machine.then((known) => {
      const label = warning(devices.value, known) ?? CHOOSE;
      if (button.label === label) return;
      button.label = label;
      node.setDirtyCanvas?.(true, true);
    });
  }
  // What is queued, not what is saved.
  for (const [name, instead] of Object.entries(ELSEWHERE)) {
    const widget = node.widgets.find((each) => each.name === name);
    if (!widget) continue;
    widget.serializeValue = async () =>
      warning(devices.value, await machine) ? instead : widget.value;
  }
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
}

/** What to say about `text`, or null if this machine has all devices that it names. */
export function warning(text, { devices }) {
  const names = new Set(devices.map((device) => device.name));
  const missing = listed(text).filter((name) => name !== "auto" && !names.has(name));
  return missing.length ? `⚠ no ${[...new Set(missing)].join(", ")} here: auto` : null;
}

/** The devices that a text names, as PyTorch calls them. */
function listed(text) {
  const names = String(text).split(",").map((name) => name.trim().toLowerCase());
  return names.map((name) => (/^[a-z]+$/.test(name) && name !== "cpu" && name !== "auto" ? `${name}:0` : name));
}

async function askMachine(api) {
  const answer = await api.fetchApi("/asyncdiff/devices");
  if (!answer.ok) throw new Error(`/asyncdiff/devices: ${answer.status}`);
  return answer.json();
}

function openMenu({ devices, auto }, widget, update) {
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
    const memory = device.memory_bytes ? `, ${bytes(device.memory_bytes)}` : "";
    const content = `${isList ? "Add" : "Twice"} ${device.name} (${device.title}${memory})`;
    entries.push({ content, callback: () => set(list) });
  }
  if (isList && now.length > 1) {
    const shorter = now.slice(0, -1).join(",");
    entries.push({ content: `Remove the last ${now.at(-1)}`, callback: () => set(shorter) });
  }
  new LiteGraph.ContextMenu(entries, { event: lastPointer, title: "Devices of this machine" });
}
