// @ts-check
/** AsyncDiff in the browser: the panel in the sidebar, and the choice of devices on the nodes. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDeviceChoice, forgetMachine, replaceForeignDevices } from "./devices.js";
import { Panel } from "./panel/panel.js";
import { makeAllLocal, makeAllParallel, parallelEntries } from "./parallel.js";
import { StatusClient } from "./status.js";

const TAB = "asyncdiff";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./panel/panel.css", import.meta.url).href;
document.head.append(style);

const client = new StatusClient(api);
/** @type {Panel | null} */
let panel = null;

/**
 * @param {string} detail
 * @param {string} severity
 */
function tell(detail, severity) {
  app.extensionManager.toast.add({ severity, summary: "AsyncDiff", detail, life: 8000 });
}

/** @param {string} detail */
const warn = (detail) => tell(detail, "warn");

/** @type {Set<string>} */
const told = new Set();

/**
 * What the server tells of a node's run: why it could gain nothing. Once, whatever the figures.
 * @param {CustomEvent} event
 */
function tellOnce({ detail }) {
  const key = `${detail.node_id} ${detail.text.replace(/[\d.]+/g, "")}`;
  if (!told.has(key)) tell(detail.text, "info");
  told.add(key);
}

function allParallel() {
  const number = makeAllParallel(app.graph);
  if (number) tell(`${number} ${number === 1 ? "node samples" : "nodes sample"} in parallel now.`, "success");
  else tell("There is nothing that samples, or all of it is parallel.", "info");
}

function allLocal() {
  const number = makeAllLocal(app.graph);
  // Others of this pack have no stock twin: the timeline, the motion module.
  if (number) tell(`${number} ${number === 1 ? "node" : "nodes"} of AsyncDiff taken out.`, "success");
  else tell("There is no node of AsyncDiff to take out.", "info");
}

async function releaseAll() {
  try {
    const { busy } = await client.release();
    if (busy.length) warn("Workers that are sampling were left alone.");
  } catch (error) {
    warn(`The workers were not released: ${error.message}`);
  }
}

app.registerExtension({
  name: "AsyncDiff",

  commands: [
    {
      id: "AsyncDiff.Release",
      label: "AsyncDiff: release all workers",
      icon: "pi pi-eject",
      function: releaseAll,
    },
    {
      id: "AsyncDiff.Parallel",
      label: "AsyncDiff: make the whole workflow parallel",
      icon: "pi pi-server",
      function: allParallel,
    },
    {
      id: "AsyncDiff.Local",
      label: "AsyncDiff: back to stock nodes",
      icon: "pi pi-undo",
      function: allLocal,
    },
  ],

  setup() {
    api.addEventListener("reconnected", forgetMachine);
    api.addEventListener("asyncdiff", tellOnce);
    replaceForeignDevices(api, warn);
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-server",
      title: "AsyncDiff",
      tooltip: "AsyncDiff: workers and timeline",
      type: "custom",
      render: (element) => {
        panel?.close();
        panel = new Panel(
          element,
          client,
          (path) => window.open(api.apiURL(path), "_blank"),
          allParallel,
        );
      },
      destroy: () => {
        panel?.close();
        panel = null;
      },
    });
  },

  getNodeMenuItems: parallelEntries,

  getCanvasMenuItems: () => [
    null,
    { content: "Make the whole workflow parallel (AsyncDiff)", callback: allParallel },
    { content: "Back to stock nodes (AsyncDiff)", callback: allLocal },
  ],

  nodeCreated(node) {
    addDeviceChoice(node, api);
  },
});
