// @ts-check
/** The sidebar tab: problems, the groups with their workers, and the timeline of the last run. */

import { StatusClient } from "../status.js";
import { workerCard } from "./cards.js";
import { button, h, icon, update } from "./dom.js";
import { LiveTimeline } from "./live.js";
import { planPicture } from "./picture.js";
import { Timeline, ofReport } from "./timeline.js";
import { errorWords, linkWords, phaseWords, plainError, planWords, seconds } from "./words.js";

/** @import { Group, LastError, Report, Run, Status, Worker } from "../types/server.js" */
/** @import { Child } from "./dom.js" */

/** @type {Record<Group["state"], string>} */
const STATE_WORDS = {
  starting: "workers are starting",
  idle: "ready",
  loading: "loading weights",
  sampling: "sampling",
  parked: "no weights loaded",
  broken: "its workers have ended; the next run starts new ones",
};

export class Panel {
  #client;
  #openPath;
  #problems = h("div.ad-problems", { role: "status" });
  #groups = h("div");
  #run = h("section.ad-run", { hidden: "" });
  #runTitle = h("h3");
  #runWords = h("p.ad-faint");
  #timeline = new Timeline();
  #live = new LiveTimeline();
  #stopListening;
  /** @type {string | null} */
  #note = null;
  #settled = 0; // the time of the last error that was dismissed
  /** @type {(ReturnType<typeof ofReport> & {report: Report}) | null} */
  #last = null; // the report that was shown last, as the timeline takes it

  /**
   * @param {HTMLElement} element where it is shown
   * @param {StatusClient} client
   * @param {(path: string) => void} openPath shows what the server has under a path
   * @param {() => void} makeParallel does so with the whole workflow
   */
  constructor(element, client, openPath, makeParallel) {
    this.#client = client;
    this.#openPath = openPath;
    this.#run.append(
      h("header", {}, this.#runTitle, button("Show all", "arrows-h", () => this.#timeline.showAll())),
      this.#runWords,
      legend(),
      this.#timeline.element,
      h("p.ad-faint.ad-hint", {}, "Wheel, or + and −: zoom. Drag, or arrows: move. Double click: show all."),
    );
    const parallel = button("Make parallel", "server", makeParallel, {
      title: "Have everything in this workflow that samples do so on all devices",
    });
    const title = h("header.ad-title", {}, h("h2", {}, "AsyncDiff"), parallel);
    element.replaceChildren(
      h("div.ad-panel", {}, title, this.#problems, this.#groups, this.#run),
    );
    this.#stopListening = client.listen(() => this.#show());
    this.#show();
  }

  close() {
    this.#stopListening();
    this.#timeline.close();
  }

  #show() {
    const { status, report, problem } = this.#client;
    if (report && this.#last?.report !== report) this.#last = { report, ...ofReport(report) };
    update(this.#problems, ...this.#problemBoxes(status, problem));
    this.#groups.classList.toggle("ad-stale", problem !== null);
    const groups = status?.groups ?? [];
    update(
      this.#groups,
      ...(groups.length ? groups.map((group) => this.#group(group, report)) : status ? [empty()] : []),
    );
    // Nothing new is known then, and the bars of a run must not grow.
    if (problem && !this.#run.hidden) return;
    const running = groups.find((group) => group.run?.evaluations);
    if (running?.run) this.#showLive(running, running.run);
    else if (report && this.#last) this.#showReport(this.#last);
    this.#run.hidden = !running && !report;
  }

  /** @param {Group} group @param {Report | null} report */
  #group(group, report) {
    /** @param {Worker} worker */
    const lastRun = (worker) => report?.workers.find((one) => one.pid === worker.pid);
    const length = this.#last?.length ?? 0;
    /** @param {Worker} worker */
    const openLog = (worker) => () => this.#openPath(StatusClient.logPath(group.id, worker.rank));
    return h(
      "article.ad-group",
      { "data-key": group.id, "data-group": group.id, "data-state": group.state },
      h(
        "header",
        {},
        h("h3", { title: group.files.join("\n") }, group.files[0] ?? group.model),
        button("Release", "eject", () => this.#release(group), {
          title: "End these workers and give their memory back",
          ...(group.state === "sampling" ? { disabled: "" } : {}),
        }),
      ),
      h(
        "p.ad-faint",
        {},
        [group.model, planWords(group.plan), STATE_WORDS[group.state] ?? group.state, linkWords(group)]
          .filter(Boolean)
          .join(" · "),
      ),
      group.workers.length ? planPicture(group) : null,
      ...group.notes.map((note) => h("div.ad-faint", {}, note)),
      group.run ? progress(group.run) : null,
      h("div.ad-cards", {}, ...group.workers.map((w) => workerCard(w, lastRun(w), length, openLog(w)))),
    );
  }

  /** @param {Status | null} status @param {string | null} problem */
  *#problemBoxes(status, problem) {
    if (problem) yield problemBox(problem);
    if (this.#note) yield problemBox(this.#note, () => this.#say(null));
    const error = status?.last_errors.at(-1);
    // A run that ended well after an error leaves nothing to worry about.
    if (!status || !error || error.time <= Math.max(this.#settled, status.last_run?.ended ?? 0)) return;
    const dismiss = () => {
      this.#settled = error.time;
      this.#show();
    };
    yield problemBox(plainError(error.text), dismiss, this.#logOf(error, status.groups), error.time);
  }

  /**
   * A button for the log of the worker that an error names, while its group is known.
   * @param {LastError} error
   * @param {Group[]} groups
   */
  #logOf(error, groups) {
    const group = groups.find((one) => one.last_error === error.text);
    const rank = /\bworker (\d+)\b/.exec(error.text)?.[1];
    if (!group || rank === undefined) return null;
    const path = StatusClient.logPath(group.id, rank);
    return button("Open log", "file", () => this.#openPath(path), { "data-key": path });
  }

  /** @param {Group} group */
  async #release(group) {
    try {
      const { busy } = await this.#client.release(group.id);
      this.#say(busy.length ? "These workers are sampling. Cancel the run first." : null);
    } catch (error) {
      this.#say(`The workers were not released: ${error.message}`);
    }
  }

  /** @param {string | null} note */
  #say(note) {
    this.#note = note;
    this.#show();
  }

  /** @param {Group} group @param {Run} run */
  #showLive(group, run) {
    const { rows, length } = this.#live.add(group, run, performance.now() / 1000);
    this.#runTitle.textContent = "This run";
    this.#runWords.textContent = phaseWords(run);
    this.#timeline.show(rows, length);
  }

  /** @param {ReturnType<typeof ofReport> & {report: Report}} last */
  #showReport({ report, rows, length, preparation }) {
    this.#runTitle.textContent = "Last run";
    const parts = [report.gain, `${seconds(length)} for ${report.evaluations.length} evaluations`];
    if (preparation > 0.5) parts.push(`${seconds(preparation)} before`);
    parts.push(report.model, planWords(report.plan), `warm-up ${report.schedule.warm_up}`);
    const errors = report.evaluations.flatMap((one) => (one.mode === "async" ? (one.error ?? []) : []));
    if (errors.length) parts.push(`at most ${errorWords(Math.max(...errors))}`);
    this.#runWords.textContent = parts.join(" · ");
    this.#timeline.show(rows, length);
  }
}

/**
 * One bar for the run: its warm-up in one colour, the rest in the other.
 * @param {Run} run
 */
function progress(run) {
  const all = Math.max(run.steps ?? run.evaluations, run.evaluations, 1);
  const warm = Math.min(run.evaluations, run.warm_up);
  /** @param {string} kind @param {number} number */
  const part = (kind, number) => h(`span.ad-${kind}`, { style: `width: ${(100 * number) / all}%` });
  return h(
    "div.ad-progress",
    {},
    h("span.ad-track", {}, part("sync", warm), part("async", run.evaluations - warm)),
    h("span.ad-phase", {}, phaseWords(run)),
  );
}

/**
 * @param {string} text
 * @param {() => void} [dismiss]
 * @param {Child} more
 * @param {string | number} key
 */
function problemBox(text, dismiss, more = null, key = text) {
  const attributes = { type: "button", title: "Dismiss", "aria-label": "Dismiss", onclick: dismiss };
  return h(
    "div.ad-problem",
    { "data-key": key },
    icon("exclamation-triangle"),
    h("div", {}, h("p", {}, text), more),
    dismiss ? h("button.ad-button", attributes, icon("times")) : null,
  );
}

function empty() {
  return h(
    "div.ad-empty",
    {},
    icon("server"),
    h("strong", {}, "No workers"),
    h("p.ad-faint", {}, "They start when a node of the category AsyncDiff runs, and stay for the next run."),
  );
}

function legend() {
  /** @param {string} kind @param {string} words */
  const item = (kind, words) => h("span", {}, h(`i.ad-swatch.ad-${kind}`), words);
  return h("p.ad-legend", {}, item("sync", "synchronous"), item("async", "asynchronous"), item("wait", "waiting"));
}
