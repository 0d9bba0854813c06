// @ts-check
/**
 * What the workers are doing, as the server tells it.
 *
 * Asks only while somebody listens and the page is visible: often while something goes on, seldom
 * otherwise, and at once when ComfyUI says that a prompt has come further.
 */

/** @import { Released, Report, Status } from "./types/server.js" */

const BUSY_MILLISECONDS = 300;
const IDLE_MILLISECONDS = 3000;
const PATIENCE_MILLISECONDS = 10000; // for one answer
const BUSY_STATES = new Set(["starting", "loading", "sampling"]);
const PROMPT_EVENTS = [
  "execution_start",
  "executing",
  "execution_success",
  "execution_error",
  "execution_interrupted",
  "reconnected",
];

export class StatusClient {
  #api;
  /** @type {Set<() => void>} */
  #listeners = new Set();
  /** @type {number | undefined} */
  #timer;
  #asking = false;
  #askAgain = false;

  /**
   * The last answer of `GET /asyncdiff/status`; null before the first.
   * @type {Status | null}
   */
  status = null;
  /**
   * The report of the last run that has ended well; null if there is none.
   * @type {Report | null}
   */
  report = null;
  /**
   * What stands in the way of asking, in words; null if nothing.
   * @type {string | null}
   */
  problem = null;

  /** @param {ComfyApi} api */
  constructor(api) {
    this.#api = api;
    for (const event of PROMPT_EVENTS) api.addEventListener(event, () => this.refresh());
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  /**
   * Call `listener` after every answer until the function that this returns is called.
   * @param {() => void} listener
   */
  listen(listener) {
    this.#listeners.add(listener);
    this.refresh();
    return () => this.#listeners.delete(listener);
  }

  /** Ask now. While an answer is on its way, once more after it. */
  async refresh() {
    if (!this.#listeners.size || document.hidden) return;
    if (this.#asking) {
      this.#askAgain = true;
      return;
    }
    this.#asking = true;
    clearTimeout(this.#timer);
    try {
      /** @type {Status} */
      const status = await this.#get("/asyncdiff/status");
      this.status = status;
      await this.#updateReport(status);
      this.problem = null;
    } catch (error) {
      this.problem = complaint(error);
    }
    this.#asking = false;
    for (const listener of this.#listeners) listener();
    const busy = !this.problem && this.status?.groups.some((group) => BUSY_STATES.has(group.state));
    const pause = this.#askAgain ? 0 : busy ? BUSY_MILLISECONDS : IDLE_MILLISECONDS;
    this.#askAgain = false;
    if (this.#listeners.size) this.#timer = setTimeout(() => this.refresh(), pause);
  }

  /**
   * Have the workers of a group end, or of all groups.
   * @param {string} [group]
   * @returns {Promise<Released>}
   */
  async release(group) {
    const answer = await this.#api.fetchApi("/asyncdiff/release", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(group ? { group } : {}),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error(body.error ?? answer.statusText);
    this.refresh();
    return body;
  }

  /**
   * Where the server has the log of a worker.
   * @param {string} group
   * @param {number | string} rank
   */
  static logPath(group, rank) {
    return `/asyncdiff/log/${encodeURIComponent(group)}/${rank}`;
  }

  /** @param {Status} status */
  async #updateReport(status) {
    // It may be large, so it is asked for once.
    if (status.last_run?.ended === this.report?.ended) return;
    const { runs } = await this.#get("/asyncdiff/report?last=1");
    this.report = runs.at(-1) ?? null;
  }

  /** @param {string} path */
  async #get(path) {
    const answer = await this.#api.fetchApi(path, { signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) });
    if (!answer.ok) throw new Error(`it answers ${answer.status} ${answer.statusText}`);
    return answer.json();
  }
}

/**
 * In words, why there was no answer.
 * @param {Error} error
 */
function complaint(error) {
  // What `fetch` says where nobody listens differs between browsers, and helps nobody.
  const isUnreachable = error instanceof TypeError || error.name === "TimeoutError";
  const what = isUnreachable ? "ComfyUI does not answer." : `ComfyUI does not tell what the workers do: ${error.message}.`;
  return `${what} The panel goes on by itself when it does.`;
}
