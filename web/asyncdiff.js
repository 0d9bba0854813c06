// @ts-check
/** AsyncDiff in the browser: the panel in the sidebar, and the choice of devices on the nodes. */

import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { addDeviceChoice, forgetMachine, replaceForeignDevices } from "./devices.js";
import { Panel } from "./panel/panel.js";
import { parallelEntries } from "./parallel.js";
import { StatusClient } from "./status.js";

const TAB = "asyncdiff";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./panel/panel.css", import.meta.url).href;
document.head.append(style);

const client = new StatusClient(api);
/** @type {Panel | null} */
let panel = null;

/** @param {string} detail */
function warn(detail) {
  app.extensionManager.toast.add({ severity: "warn", summary: "AsyncDiff", detail, life: 8000 });
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
  ],

  setup() {
    api.addEventListener("reconnected", forgetMachine);
    replaceForeignDevices(api, warn);
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-server",
      title: "AsyncDiff",
      tooltip: "AsyncDiff: workers and timeline",
      type: "custom",
      render: (element) => {
        panel?.close();
        panel = new Panel(element, client, (path) => window.open(api.apiURL(path), "_blank"));
      },
      destroy: () => {
        panel?.close();
        panel = null;
      },
    });
  },

  getNodeMenuItems: parallelEntries,

  nodeCreated(node) {
    addDeviceChoice(node, api);
  },
});
