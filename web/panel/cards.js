// @ts-check
/** A card per worker: where it is, what it holds, what it does. */

import { button, h } from "./dom.js";
import { bytes, percent, unitWords } from "./words.js";

/** @import { Worker, WorkerReport } from "../types/server.js" */
/** @import { Child } from "./dom.js" */

/**
 * @param {Worker} worker one of the status
 * @param {WorkerReport | undefined} run what this worker did in the last run; undefined if it took no part
 * @param {number} runSeconds how long that run was
 * @param {() => void} openLog called when its log is wanted
 */
export function workerCard(worker, run, runSeconds, openLog) {
  const stage =
    `stage ${worker.stage + 1}` +
    (worker.lead ? `, copy ${worker.lead}` : "") +
    (worker.replica ? `, replica ${worker.replica + 1}` : "");
  const inHost = worker.streamed_bytes || worker.waiting_bytes;
  const elsewhere = inHost ? `${bytes(inHost)} in the host's memory` : "";
  return h(
    "section.ad-card",
    { "data-key": worker.pid, "data-rank": worker.rank, "data-state": worker.state },
    h(
      "header",
      {},
      h(`span.ad-dot.ad-is-${worker.state}`),
      h("strong", {}, worker.device),
      h("span.ad-faint.ad-name", { title: worker.device_name }, worker.device_name ?? ""),
      h("span.ad-state", {}, worker.state),
    ),
    h(
      "div.ad-foot",
      {},
      h(
        "dl",
        {},
        ...entry("Part", stage, unitWords(worker)),
        ...entry("Weights", worker.weight_bytes ? bytes(worker.weight_bytes) : "none", elsewhere),
        ...entry("Activations", worker.activation_bytes ? bytes(worker.activation_bytes) : "–"),
        ...entry("Device", worker.free_bytes === null ? "–" : `${bytes(worker.free_bytes)} free`),
        ...entry("Process", worker.resident_bytes ? bytes(worker.resident_bytes) : "–", `pid ${worker.pid}`),
        ...entry("Last run", run ? busyBar(busyShare(run, runSeconds)) : "–"),
      ),
      button("Open log", "file", openLog, { title: worker.log_file }),
    ),
  );
}

/**
 * Which share of the run this worker computed.
 * @param {WorkerReport} worker
 * @param {number} runSeconds
 */
export function busyShare(worker, runSeconds) {
  const computed = worker.spans.reduce((sum, span) => sum + span.compute, 0);
  return runSeconds ? Math.min(1, computed / runSeconds) : 0;
}

/** @param {number} share */
function busyBar(share) {
  return h(
    "span.ad-busy",
    { title: "share of the run in which this worker computed" },
    h("span.ad-meter", {}, h("span", { style: `width: ${100 * share}%` })),
    `${percent(share)} busy`,
  );
}

/** @param {string} name @param {Child} value @param {string} [more] */
function entry(name, value, more) {
  return [
    h("dt", {}, name),
    h("dd", {}, value, more ? h("span.ad-faint", {}, more) : null),
  ];
}
