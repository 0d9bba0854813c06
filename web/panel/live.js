// @ts-check
/** The timeline of a run that goes on, from what the workers were seen doing. */

/** @import { Group, Mode, Run, Span } from "../types/server.js" */

/** @typedef {Span & { open: boolean }} LiveSpan a bar; `open` if it still grows */

/** Samples of the status, joined to bars. Replaced by the exact report when the run ends. */
export class LiveTimeline {
  #key = "";
  #start = 0;
  /** @type {{label: string, spans: LiveSpan[], last: number}[]} by rank */
  #rows = [];

  /**
   * Take note of what `group` does at `now` (seconds) in its `run`. Gives what `Timeline.show` takes.
   * @param {Group} group
   * @param {Run} run
   * @param {number} now
   */
  add(group, run, now) {
    const key = `${group.id} ${run.prompt_id} ${run.node_id}`;
    if (key !== this.#key) {
      this.#key = key;
      this.#start = now;
      this.#rows = [];
    }
    const time = now - this.#start;
    const { evaluations, mode } = run;
    for (const worker of group.workers) {
      const row = (this.#rows[worker.rank] ??= { label: worker.device, spans: [], last: time });
      const span = row.spans.at(-1);
      if (worker.state === "computing") {
        if (span?.open && span.mode === mode && span.index === evaluations) span.compute = time - span.start;
        else row.spans.push(newSpan(evaluations, mode, row.last, time));
      } else if (span) {
        span.open = false;
      }
      row.last = time;
    }
    return { rows: this.#rows.filter(Boolean), length: Math.max(time, 1) };
  }
}

/**
 * @param {number} index
 * @param {Mode | null} mode
 * @param {number} start
 * @param {number} end
 * @returns {LiveSpan}
 */
function newSpan(index, mode, start, end) {
  return { index, lane: 0, mode, start, wait: 0, compute: end - start, open: true };
}
