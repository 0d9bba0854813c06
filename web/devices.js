/**
 * The choice of devices on a node: a button that offers what this machine has.
 *
 * The widget `devices` stays free text. Where it names a device that this machine does not have, as
 * in a workflow from another one, the button says so; the server then takes `auto`.
 */

import { bytes } from "./panel/words.js";

const CHOOSE = "Choose devices";

let machine = null; // what the server has, asked once

/** Add the button to a node that has a widget `devices` of this pack. */
export function addDeviceChoice(node, api) {
  const devices = node.widgets?.find((widget) => widget.name === "devices");
  if (!devices || !node.comfyClass?.startsWith("AsyncDiff")) return;
  machine ??= askMachine(api);
  const button = node.addWidget("button", "choose_devices", null, (...args) => {
    const event = args.find((argument) => argument instanceof Event);
    machine.then((known) => openMenu(known, devices, event, update));
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
  const wanted = String(text).split(",").map((name) => name.trim().toLowerCase());
  if (wanted.length === 1 && wanted[0] === "auto") return null;
  const missing = wanted.filter((name) => !names.has(name.includes(":") || name === "cpu" ? name : `${name}:0`));
  return missing.length ? `⚠ no ${[...new Set(missing)].join(", ")} here: auto` : null;
}

async function askMachine(api) {
  const answer = await api.fetchApi("/asyncdiff/devices");
  if (!answer.ok) throw new Error(`/asyncdiff/devices: ${answer.status}`);
  return answer.json();
}

function openMenu({ devices, auto }, widget, event, update) {
  const set = (value) => {
    widget.value = value;
    widget.callback?.(value);
    update();
  };
  const listed = String(widget.value).split(",").map((name) => name.trim()).filter(Boolean);
  const isList = listed.length > 0 && listed[0] !== "auto";
  const gpus = devices.filter((device) => device.name !== "cpu").map((device) => device.name);
  const entries = [{ content: `auto: ${auto.join(", ")}`, callback: () => set("auto") }];
  for (let number = 2; number <= gpus.length; number += 1) {
    const list = gpus.slice(0, number).join(",");
    entries.push({ content: list, callback: () => set(list) });
  }
  for (const device of devices) {
    const more = isList ? [...listed, device.name] : [device.name, device.name];
    const verb = isList ? "Add" : "Only";
    const memory = device.memory_bytes ? `, ${bytes(device.memory_bytes)}` : "";
    const content = `${verb} ${device.name} (${device.title}${memory})`;
    entries.push({ content, callback: () => set(more.join(",")) });
  }
  if (isList && listed.length > 1) {
    const shorter = listed.slice(0, -1).join(",");
    entries.push({ content: `Remove ${listed.at(-1)}`, callback: () => set(shorter) });
  }
  new LiteGraph.ContextMenu(entries, { event, title: "Devices of this machine" });
}
