// @ts-check
/** How figures and states are put into words. */

/** @import { Group, Plan, Run, Worker } from "../types/server.js" */

/**
 * Bytes as `1.5 GiB`.
 * @param {number} number
 */
export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (number >= 1024 && power < units.length - 1) {
    number /= 1024;
    power += 1;
  }
  return `${number >= 100 || power === 0 ? Math.round(number) : number.toFixed(1)} ${units[power]}`;
}

/**
 * Seconds as `0.21 s` or `75 s`.
 * @param {number} number
 */
export function seconds(number) {
  return `${number >= 100 ? Math.round(number) : number.toPrecision(number >= 1 ? 3 : 2)} s`;
}

/** @param {number} share */
export const percent = (share) => `${Math.round(100 * share)} %`;

/** @param {number} number @param {string} thing */
export const count = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

/**
 * A plan as `2 replicas x 3 stages, stride 2`; what is one is left out.
 * @param {Plan} plan
 */
export function planWords(plan) {
  const parts = [count(plan.stages, "stage")];
  if (plan.replicas > 1) parts.unshift(`${count(plan.replicas, "replica")} ×`);
  return parts.join(" ") + (plan.stride > 1 ? `, stride ${plan.stride}` : "");
}

/**
 * What connects the workers of a group; nothing for a single one, or as long as they are not connected.
 * @param {Group} group
 */
export function linkWords(group) {
  if (group.links === null || group.workers.length < 2) return "";
  return { ring: "shared memory", nccl: "NCCL", socket: "sockets" }[group.links];
}

/**
 * What a run is doing, as `warm-up 2/3` or `async 14/27`; `sync 29/30` where it is so behind the warm-up.
 * @param {Run} run
 */
export function phaseWords(run) {
  if (!run.evaluations) return "loading";
  // With several evaluations per step, how many there will be is not known.
  const steps = run.steps && run.evaluations <= run.steps ? run.steps : null;
  if (run.evaluations <= run.warm_up) {
    return `warm-up ${run.evaluations}/${Math.min(run.warm_up, steps ?? run.warm_up)}`;
  }
  if (run.mode === "sync") return `sync ${run.evaluations}${steps === null ? "" : `/${steps}`}`;
  const all = steps === null ? "" : `/${steps - run.warm_up}`;
  return `async ${run.evaluations - run.warm_up}${all}`;
}

/**
 * How far the latents that stages had worked on were from those of the evaluation.
 * @param {number} error relative
 */
export function errorWords(error) {
  return `error ${Number((100 * error).toPrecision(2))} %`;
}

/**
 * An error of a worker without the path of its log, for which there is a button.
 * @param {string} text
 */
export function plainError(text) {
  return text.split(" Its log is ")[0].split("\n")[0].trim();
}

/**
 * How many blocks a worker holds.
 * @param {Worker} worker
 */
export function numUnits(worker) {
  return worker.units.reduce((sum, [start, stop]) => sum + stop - start, 0);
}

/**
 * `units` [[0, 7]] of a worker as `blocks 1–7 of 15`; of a folded stage `1–4, 12–15`.
 * @param {Worker} worker
 */
export function unitWords(worker) {
  const ranges = worker.units.map(([start, stop]) =>
    stop - start > 1 ? `${start + 1}–${stop}` : `${stop}`,
  );
  return ranges.length ? `blocks ${ranges.join(", ")} of ${worker.num_units}` : "nothing loaded";
}
