// @ts-check
/** The plan in one picture: a row per replica, a box per stage, as wide as its share of blocks. */

import { h, s } from "./dom.js";
import { numUnits } from "./words.js";

/** @import { Group, Worker } from "../types/server.js" */

const WIDTH = 320;
const ROW = 46;
const COPY = 26; // the extra copies of the last stage, below it
const GAP = 18;
const BOX = 38;
const NARROW = 50; // boxes below this have room for a number, and their title says the rest

/**
 * An SVG of the workers of a group; boxes have the states of their workers as classes.
 * @param {Group} group
 */
export function planPicture(group) {
  const { stages, replicas, stride } = group.plan;
  const rowHeight = ROW + (stride - 1) * COPY;
  const height = replicas * rowHeight;
  const svg = s("svg.ad-plan", {
    viewBox: `0 0 ${WIDTH} ${height}`,
    role: "img",
    "aria-label": `${stages} stages in ${replicas} replicas`,
  });
  for (let replica = 0; replica < replicas; replica += 1) {
    const members = group.workers.filter((worker) => worker.replica === replica);
    const widths = stageWidths(members, stages);
    let x = 0;
    for (let stage = 0; stage < stages; stage += 1) {
      const holders = members.filter((worker) => worker.stage === stage);
      holders.sort((a, b) => (a.lead ?? 0) - (b.lead ?? 0));
      holders.forEach((worker, copy) => {
        const top = replica * rowHeight + 4 + (copy ? BOX + 4 + (copy - 1) * COPY : 0);
        svg.append(box(worker, x, top, widths[stage], copy ? COPY - 4 : BOX));
      });
      x += widths[stage];
      if (stage < stages - 1) svg.append(arrow(x, replica * rowHeight + 4 + BOX / 2));
      x += GAP;
    }
  }
  return h("div.ad-picture", {}, svg);
}

/**
 * Stages as wide as their blocks, but wide enough to be read.
 * @param {Worker[]} workers
 * @param {number} stages
 */
function stageWidths(workers, stages) {
  const room = WIDTH - GAP * (stages - 1);
  const least = Math.min(56, room / stages);
  const units = Array.from({ length: stages }, (_, stage) => {
    const worker = workers.find((one) => one.stage === stage);
    return worker ? numUnits(worker) : 0;
  });
  const all = units.reduce((sum, one) => sum + one, 0);
  return units.map((one) =>
    all ? least + ((room - least * stages) * one) / all : room / stages,
  );
}

/**
 * @param {Worker} worker
 * @param {number} x
 * @param {number} y
 * @param {number} width
 * @param {number} height
 */
function box(worker, x, y, width, height) {
  const isCopy = height < BOX;
  const isNarrow = width < NARROW;
  const name = isCopy ? `copy ${worker.lead}` : `stage ${worker.stage + 1}`;
  const group = s(
    `g.ad-box.ad-is-${worker.state}`,
    {},
    s("title", {}, `${name}: worker ${worker.rank} on ${worker.device}, ${worker.state}`),
    s("rect", { x: x + 0.5, y: y + 0.5, width: width - 1, height: height - 1, rx: 6 }),
  );
  const middle = [x + width / 2, y + height / 2];
  if (isNarrow) {
    group.append(text(middle[0], middle[1] + 4, isCopy ? `+${worker.lead}` : String(worker.stage + 1)));
  } else if (isCopy) {
    group.append(text(middle[0], middle[1] + 4, width < 90 ? name : `${name} · ${worker.device}`));
  } else {
    group.append(text(middle[0], middle[1] - 2, name));
    group.append(text(middle[0], middle[1] + 12, worker.device, "ad-faint"));
  }
  return group;
}

/** @param {number} x @param {number} y @param {string} words @param {string} kind */
const text = (x, y, words, kind = "") =>
  s(kind ? `text.${kind}` : "text", { x, y, "text-anchor": "middle" }, words);

/** @param {number} x @param {number} y */
function arrow(x, y) {
  const [from, to] = [x + 3, x + GAP - 4];
  return s("path.ad-arrow", { d: `M${from} ${y}H${to}m-4 -4l4 4l-4 4` });
}
