/** The sidebar tab: problems, the groups with their workers, and the timeline of the last run. */

import { StatusClient } from "../status.js";
import { workerCard } from "./cards.js";
import { button, h, icon, update } from "./dom.js";
import { LiveTimeline } from "./live.js";
import { planPicture } from "./picture.js";
import { Timeline, ofReport } from "./timeline.js";
import { phaseWords, plainError, planWords, seconds } from "./words.js";

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
  #note = null;
  #settled = 0; // the time of the last error that was dismissed
  #last = null; // the report that was shown last, as the timeline takes it

  /** @param {(path: string) => void} openPath shows what the server has under a path */
  constructor(element, client, openPath) {
    this.#client = client;
    this.#openPath = openPath;
    this.#run.append(
      h("header", {}, this.#runTitle, button("Show all", "arrows-h", () => this.#timeline.showAll())),
      this.#runWords,
      legend(),
      this.#timeline.element,
      h("p.ad-faint.ad-hint", {}, "Wheel, or + and −: zoom. Drag, or arrows: move. Double click: show all."),
    );
    const title = h("header.ad-title", {}, h("h2", {}, "AsyncDiff"));
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
    const running = groups.find((group) => group.run && group.run.evaluations);
    if (running) this.#showLive(running);
    else if (report) this.#showReport(report);
    this.#run.hidden = !running && !report;
  }

  #group(group, report) {
    const isLast = report && report.workers.some((one) => group.workers.some((w) => w.pid === one.pid));
    const lastRun = (worker) => (isLast ? report.workers.find((one) => one.pid === worker.pid) : undefined);
    const length = this.#last?.length ?? 0;
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
        `${group.model} · ${planWords(group.plan)} · ${STATE_WORDS[group.state] ?? group.state}`,
      ),
      group.workers.length ? planPicture(group) : null,
      group.run ? progress(group.run) : null,
      h("div.ad-cards", {}, ...group.workers.map((w) => workerCard(w, lastRun(w), length, openLog(w)))),
    );
  }

  *#problemBoxes(status, problem) {
    if (problem) yield problemBox(problem);
    if (this.#note) yield problemBox(this.#note, () => this.#say(null));
    const error = status?.last_errors.at(-1);
    // A run that ended well after an error leaves nothing to worry about.
    if (!error || error.time <= Math.max(this.#settled, status.last_run?.ended ?? 0)) return;
    const dismiss = () => {
      this.#settled = error.time;
      this.#show();
    };
    yield problemBox(plainError(error.text), dismiss, this.#logOf(error, status.groups), error.time);
  }

  /** A button for the log of the worker that an error names, while its group is known. */
  #logOf(error, groups) {
    const group = groups.find((one) => one.last_error === error.text);
    const rank = /\bworker (\d+)\b/.exec(error.text)?.[1];
    if (!group || rank === undefined) return null;
    const path = StatusClient.logPath(group.id, rank);
    return button("Open log", "file", () => this.#openPath(path), { "data-key": path });
  }

  async #release(group) {
    try {
      const { busy } = await this.#client.release(group.id);
      this.#say(busy.length ? "These workers are sampling. Cancel the run first." : null);
    } catch (error) {
      this.#say(`The workers were not released: ${error.message}`);
    }
  }

  #say(note) {
    this.#note = note;
    this.#show();
  }

  #showLive(group) {
    const { rows, length } = this.#live.add(group, performance.now() / 1000);
    this.#runTitle.textContent = "This run";
    this.#runWords.textContent = phaseWords(group.run);
    this.#timeline.show(rows, length);
  }

  #showReport(report) {
    this.#runTitle.textContent = "Last run";
    const { rows, length, preparation } = this.#last;
    const parts = [`${seconds(length)} for ${report.evaluations.length} evaluations`];
    if (preparation > 0.5) parts.push(`${seconds(preparation)} before`);
    parts.push(report.model, planWords(report.plan), `warm-up ${report.schedule.warm_up}`);
    this.#runWords.textContent = parts.join(" · ");
    this.#timeline.show(rows, length);
  }
}

/** One bar for the run: its warm-up in one colour, the rest in the other. */
function progress(run) {
  const all = Math.max(run.steps ?? run.evaluations, run.evaluations, 1);
  const warm = Math.min(run.evaluations, run.warm_up);
  const part = (kind, number) => h(`span.ad-${kind}`, { style: `width: ${(100 * number) / all}%` });
  return h(
    "div.ad-progress",
    {},
    h("span.ad-track", {}, part("sync", warm), part("async", run.evaluations - warm)),
    h("span.ad-phase", {}, phaseWords(run)),
  );
}

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
  const item = (kind, words) => h("span", {}, h(`i.ad-swatch.ad-${kind}`), words);
  return h("p.ad-legend", {}, item("sync", "synchronous"), item("async", "asynchronous"), item("wait", "waiting"));
}
