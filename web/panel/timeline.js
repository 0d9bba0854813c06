// @ts-check
/**
 * The timeline of a run: a row per worker, a bar per evaluation, seconds to the right.
 *
 * The wheel zooms at the pointer, dragging moves, a double click shows all; so do the keys +, -, the
 * arrows and Home. Bars that are too narrow to be told apart are drawn as one, so that what is drawn
 * does not grow with the run.
 */

import { h, s } from "./dom.js";
import { errorWords, seconds } from "./words.js";

/** @import { Report, Span } from "../types/server.js" */

/**
 * @typedef {{label: string, spans: Span[]}} Row what one worker did
 * @typedef {Span & {end: number, last: number}} Joined a bar, of the evaluations from `index` to `last`;
 *   its `error` is the largest of theirs
 */

const LABEL = 62;
const ROW = 24;
const BAR = 16;
const AXIS = 18;
const MIN_SECONDS = 0.005; // what can be zoomed to
const NARROW = 2; // pixels below which a bar is joined with its neighbours

export class Timeline {
  /** @type {Row[]} */
  #rows = [];
  #length = 1;
  #from = 0;
  #to = 1;
  /** @type {{x: number, from: number} | null} */
  #drag = null;
  /** @type {number | null} */
  #frame = null;
  #svg = s("svg.ad-timeline", {
    tabindex: "0",
    role: "img",
    "aria-label": "Timeline of the run",
    "aria-keyshortcuts": "+ - ArrowLeft ArrowRight Home",
  });
  #observer = new ResizeObserver(() => this.#draw());

  constructor() {
    this.element = h("div.ad-timeline-box", {}, this.#svg);
    this.#svg.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    this.#svg.addEventListener("keydown", (event) => this.#key(event));
    this.#svg.addEventListener("pointerdown", (event) => {
      this.#drag = { x: event.clientX, from: this.#from };
      this.#svg.setPointerCapture(event.pointerId);
    });
    this.#svg.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      this.#svg.addEventListener(end, () => (this.#drag = null));
    }
    this.#svg.addEventListener("dblclick", () => this.showAll());
    this.#observer.observe(this.element);
  }

  /**
   * @param {Row[]} rows
   * @param {number} length in seconds
   */
  show(rows, length) {
    if (rows === this.#rows) return;
    const showedAll = this.#from === 0 && this.#to === this.#length;
    this.#rows = rows;
    this.#length = Math.max(length, 1e-3);
    if (showedAll || this.#to > this.#length) [this.#from, this.#to] = [0, this.#length];
    this.#drawSoon();
  }

  showAll() {
    this.#place(0, this.#length);
  }

  close() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#observer.disconnect();
  }

  get #width() {
    return Math.max(160, this.element.clientWidth);
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    event.preventDefault();
    const x = event.clientX - this.#svg.getBoundingClientRect().left;
    const share = (x - LABEL) / (this.#width - LABEL);
    this.#zoom(Math.exp(event.deltaY * 0.0015), Math.min(1, Math.max(0, share)));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const step = 0.2 * (this.#to - this.#from);
    /** @type {Record<string, () => void>} */
    const actions = {
      "+": () => this.#zoom(1 / 1.5, 0.5),
      "-": () => this.#zoom(1.5, 0.5),
      ArrowLeft: () => this.#place(this.#from - step, 5 * step),
      ArrowRight: () => this.#place(this.#from + step, 5 * step),
      Home: () => this.showAll(),
    };
    const action = actions[event.key === "=" ? "+" : event.key];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas has keys of its own
    action();
  }

  /**
   * Show `factor` times as many seconds; what is at `share` of the width stays there.
   * @param {number} factor
   * @param {number} share
   */
  #zoom(factor, share) {
    const span = this.#to - this.#from;
    const wanted = Math.min(this.#length, Math.max(Math.min(MIN_SECONDS, this.#length), span * factor));
    this.#place(this.#from + share * (span - wanted), wanted);
  }

  /** @param {PointerEvent} event */
  #move(event) {
    if (!this.#drag) return;
    const span = this.#to - this.#from;
    const moved = ((event.clientX - this.#drag.x) / (this.#width - LABEL)) * span;
    this.#place(this.#drag.from - moved, span);
  }

  /** @param {number} from @param {number} span */
  #place(from, span) {
    this.#from = Math.min(Math.max(0, from), this.#length - span);
    this.#to = span === this.#length ? span : this.#from + span;
    this.#drawSoon();
  }

  /** However many events there are, the screen shows one picture at a time. */
  #drawSoon() {
    this.#frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    const width = this.#width;
    const bottom = ROW * this.#rows.length;
    const scale = (width - LABEL) / (this.#to - this.#from);
    /** @param {number} time */
    const place = (time) => LABEL + (time - this.#from) * scale;
    this.#svg.setAttribute("height", String(bottom + AXIS));
    this.#svg.setAttribute("width", String(width));
    const bars = s("svg", { x: LABEL, y: 0, width: width - LABEL, height: bottom });
    const content = [...this.#axis(place, bottom, width), bars];
    this.#rows.forEach((row, number) => {
      const y = number * ROW + (ROW - BAR) / 2;
      content.push(s("text", { x: 0, y: y + BAR - 4 }, row.label));
      for (const span of joined(row.spans, this.#from, this.#to, NARROW / scale)) {
        bars.append(...bar(span, (time) => place(time) - LABEL, y));
      }
    });
    this.#svg.replaceChildren(...content);
  }

  /** @param {(time: number) => number} place @param {number} bottom @param {number} width */
  *#axis(place, bottom, width) {
    const interval = tickInterval(this.#to - this.#from, (width - LABEL) / 56);
    const first = Math.ceil(this.#from / interval - 1e-9);
    for (let tick = first; tick * interval <= this.#to * (1 + 1e-9); tick += 1) {
      const x = place(tick * interval);
      yield s("path.ad-tick", { d: `M${x} 0V${bottom + 3}` });
      const anchor = x > width - 16 ? "end" : "middle";
      const words = `${Number((tick * interval).toPrecision(6))} s`;
      yield s("text.ad-faint", { x, y: bottom + 14, "text-anchor": anchor }, words);
    }
  }
}

/**
 * What `Timeline.show` takes, of a report of `GET /asyncdiff/report`. It begins with the first
 * evaluation; `preparation` is the seconds before it, in which workers start and load.
 * @param {Report} report
 */
export function ofReport(report) {
  const spans = report.workers.flatMap((worker) => worker.spans);
  const preparation = Math.min(...spans.map((span) => span.start), report.seconds);
  const end = Math.max(...spans.map((span) => span.end), report.seconds);
  const errors = new Map(report.evaluations.map((one) => [`${one.lane} ${one.index}`, one.error]));
  /** @param {Span} span */
  const errorOf = (span) => (span.mode === "async" ? (errors.get(`${span.lane} ${span.index}`) ?? null) : null);
  const rows = report.workers.map((worker) => ({
    label: worker.device,
    spans: worker.spans.map((span) => ({ ...span, start: span.start - preparation, error: errorOf(span) })),
  }));
  return { rows, length: end - preparation, preparation };
}

/**
 * The smallest of .., 0.1, 0.2, 0.5, 1, 2, .. that divides `length` into at most `most` parts.
 * @param {number} length
 * @param {number} most
 */
export function tickInterval(length, most) {
  for (let power = 1e-6; ; power *= 10) {
    for (const step of [1, 2, 5]) if (length / (step * power) <= Math.max(1, most)) return step * power;
  }
}

/**
 * The spans that `from` to `to` shows, with their `end`; `spans` are in the order of their start.
 * Neighbours of one mode that take less than `narrow` seconds together become one, of which `last` is
 * the index of the last evaluation.
 * @param {Span[]} spans
 * @param {number} from
 * @param {number} to
 * @param {number} narrow
 */
export function* joined(spans, from, to, narrow) {
  /** @type {Joined | null} */
  let group = null;
  for (const span of spans) {
    const end = span.start + span.wait + span.compute;
    if (span.start > to) break;
    if (end < from) continue;
    if (group && group.mode === span.mode && end - group.start < narrow) {
      const { wait, compute } = group;
      const error = span.error == null ? group.error : Math.max(span.error, group.error ?? 0);
      Object.assign(group, { end, last: span.index, wait: wait + span.wait, compute: compute + span.compute, error });
    } else {
      if (group) yield group;
      group = { ...span, end, last: span.index };
    }
  }
  if (group) yield group;
}

/** @param {Joined} span @param {(time: number) => number} place @param {number} y */
function bar(span, place, y) {
  const [begin, ready] = [place(span.start), place(span.start + span.wait)];
  const end = place(span.end);
  const elements = [];
  if (ready - begin >= 1) {
    elements.push(s("rect.ad-wait", { x: begin, y, width: ready - begin, height: BAR }));
  }
  const mode = span.mode === "async" ? "asynchronous" : "synchronous";
  const which =
    span.last > span.index ? `evaluations ${span.index + 1} to ${span.last + 1}` : `evaluation ${span.index + 1}`;
  const error = span.error == null ? "" : `, ${errorWords(span.error)}`;
  const words = `${which}, ${mode}: computed ${seconds(span.compute)}, waited ${seconds(span.wait)}${error}`;
  // A pixel stays free, so that bars without a pause between them can be told apart.
  const width = Math.max(0.5, end - ready - (span.last > span.index ? 0 : 1));
  elements.push(
    s(`rect.ad-bar.ad-${span.mode}`, { x: ready, y, width, height: BAR, rx: 1.5 }, s("title", {}, words)),
  );
  const number = String(span.index + 1);
  if (width > 6 + 6 * number.length) {
    const x = ready + width / 2;
    elements.push(s("text.ad-number", { x, y: y + BAR - 4.5, "text-anchor": "middle" }, number));
  }
  return elements;
}
