/**
 * The timeline of a run: a row per worker, a bar per evaluation, seconds to the right.
 *
 * The wheel zooms at the pointer, dragging moves, a double click shows all.
 */

import { h, s } from "./dom.js";
import { seconds } from "./words.js";

const LABEL = 62;
const ROW = 24;
const BAR = 16;
const AXIS = 18;
const MAX_ZOOM = 200;

export class Timeline {
  #rows = [];
  #length = 1;
  #from = 0;
  #to = 1;
  #drag = null;
  #svg = s("svg.ad-timeline", { tabindex: "0", role: "img", "aria-label": "timeline" });
  #observer = new ResizeObserver(() => this.#draw());

  constructor() {
    this.element = h("div.ad-timeline-box", {}, this.#svg);
    this.#svg.addEventListener("wheel", (event) => this.#zoom(event), { passive: false });
    this.#svg.addEventListener("pointerdown", (event) => {
      this.#drag = { x: event.clientX, from: this.#from };
      this.#svg.setPointerCapture(event.pointerId);
    });
    this.#svg.addEventListener("pointermove", (event) => this.#move(event));
    this.#svg.addEventListener("pointerup", () => (this.#drag = null));
    this.#svg.addEventListener("dblclick", () => this.showAll());
    this.#observer.observe(this.element);
  }

  /**
   * @param {{label: string, spans: {index, lane, mode, start, wait, compute}[]}[]} rows
   * @param {number} length in seconds
   */
  show(rows, length) {
    const showedAll = this.#from === 0 && this.#to === this.#length;
    this.#rows = rows;
    this.#length = Math.max(length, 1e-3);
    if (showedAll || this.#to > this.#length) [this.#from, this.#to] = [0, this.#length];
    this.#draw();
  }

  showAll() {
    [this.#from, this.#to] = [0, this.#length];
    this.#draw();
  }

  close() {
    this.#observer.disconnect();
  }

  get #width() {
    return Math.max(160, this.element.clientWidth);
  }

  #zoom(event) {
    event.preventDefault();
    const share = (event.offsetX - LABEL) / (this.#width - LABEL);
    const at = this.#from + Math.min(1, Math.max(0, share)) * (this.#to - this.#from);
    const wanted = (this.#to - this.#from) * Math.exp(event.deltaY * 0.0015);
    const span = Math.min(this.#length, Math.max(this.#length / MAX_ZOOM, wanted));
    this.#place(at - share * span, span);
  }

  #move(event) {
    if (!this.#drag) return;
    const span = this.#to - this.#from;
    const moved = ((event.clientX - this.#drag.x) / (this.#width - LABEL)) * span;
    this.#place(this.#drag.from - moved, span);
  }

  #place(from, span) {
    this.#from = Math.min(Math.max(0, from), this.#length - span);
    this.#to = this.#from + span;
    this.#draw();
  }

  #draw() {
    const width = this.#width;
    const bottom = ROW * this.#rows.length;
    const scale = (width - LABEL) / (this.#to - this.#from);
    const place = (time) => LABEL + (time - this.#from) * scale;
    this.#svg.setAttribute("height", bottom + AXIS);
    this.#svg.setAttribute("width", width);
    const bars = s("svg", { x: LABEL, y: 0, width: width - LABEL, height: bottom });
    const content = [...this.#axis(place, bottom, width), bars];
    this.#rows.forEach((row, number) => {
      const y = number * ROW + (ROW - BAR) / 2;
      content.push(s("text", { x: 0, y: y + BAR - 4 }, row.label));
      for (const span of row.spans) {
        if (span.start > this.#to || span.start + span.wait + span.compute < this.#from) continue;
        bars.append(...bar(span, (time) => place(time) - LABEL, y));
      }
    });
    this.#svg.replaceChildren(...content);
  }

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
 */
export function ofReport(report) {
  const spans = report.workers.flatMap((worker) => worker.spans);
  const preparation = Math.min(...spans.map((span) => span.start), report.seconds);
  const end = Math.max(...spans.map((span) => span.end), report.seconds);
  const rows = report.workers.map((worker) => ({
    label: worker.device,
    spans: worker.spans.map((span) => ({ ...span, start: span.start - preparation })),
  }));
  return { rows, length: end - preparation, preparation };
}

/** The smallest of .., 0.1, 0.2, 0.5, 1, 2, .. that divides `length` into at most `most` parts. */
export function tickInterval(length, most) {
  for (let power = 1e-6; ; power *= 10) {
    for (const step of [1, 2, 5]) if (length / (step * power) <= Math.max(1, most)) return step * power;
  }
}

function bar(span, place, y) {
  const [begin, ready] = [place(span.start), place(span.start + span.wait)];
  const end = place(span.start + span.wait + span.compute);
  const elements = [];
  if (ready - begin >= 1) {
    elements.push(s("rect.ad-wait", { x: begin, y, width: ready - begin, height: BAR }));
  }
  const mode = span.mode === "async" ? "asynchronous" : "synchronous";
  const words = `evaluation ${span.index + 1}, ${mode}: computed ${seconds(span.compute)}, waited ${seconds(span.wait)}`;
  // A pixel stays free, so that bars without a pause between them can be told apart.
  const width = Math.max(0.5, end - ready - 1);
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
