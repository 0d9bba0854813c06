/** What the routes below `/asyncdiff/` answer, as far as the page reads it. */

export interface Plan {
  devices: string[];
  stages: number;
  replicas: number;
  stride: number;
  /** The worker of each place; empty: in turn. */
  order: number[];
}

/** A worker of a group. */
export interface Worker {
  rank: number;
  device: string;
  device_name: string | null;
  pid: number;
  replica: number;
  stage: number;
  lead: number;
  units: [number, number][];
  num_units: number;
  state: "starting" | "loading" | "idle" | "computing" | "waiting" | "stopped";
  weight_bytes: number;
  /** Of the weights, what is kept in the host's memory. */
  streamed_bytes: number;
  /** Weights that it gave back, and that wait in the host's memory. */
  waiting_bytes: number;
  activation_bytes: number;
  /** What is free on the device; null where nothing tells. */
  free_bytes: number | null;
  resident_bytes: number;
  log_file: string;
}

/** A run that goes on. */
export interface Run {
  prompt_id: string | null;
  node_id: string | null;
  warm_up: number;
  steps: number | null;
  evaluations: number;
  mode: Mode | null;
}

export type Mode = "sync" | "async";

export interface Group {
  id: string;
  model: string;
  files: string[];
  state: "starting" | "idle" | "loading" | "sampling" | "parked" | "broken";
  plan: Plan;
  /** What was passed over for this plan, and why. */
  notes: string[];
  run: Run | null;
  links: "ring" | "nccl" | "socket" | null;
  last_error: string | null;
  workers: Worker[];
}

export interface LastError {
  time: number;
  text: string;
}

/** `GET /asyncdiff/status`. */
export interface Status {
  groups: Group[];
  last_run: { ended: number } | null;
  last_errors: LastError[];
}

/** What a worker did in one evaluation. */
export interface Span {
  index: number;
  lane: number;
  /** Null where it is not known yet. */
  mode: Mode | null;
  start: number;
  wait: number;
  compute: number;
  /** Of the evaluation, see `Evaluation`. */
  error?: number | null;
}

/** An evaluation of a report; `error`: see docs/api.md. */
export interface Evaluation {
  index: number;
  lane: number;
  mode: Mode;
  error: number | null;
}

/** A worker in a report. */
export interface WorkerReport {
  device: string;
  pid: number;
  spans: (Span & { end: number })[];
}

/** A run of `GET /asyncdiff/report`. */
export interface Report {
  model: string;
  plan: Plan;
  schedule: { warm_up: number };
  seconds: number;
  /** What it has gained, in words. */
  gain: string;
  ended: number;
  evaluations: Evaluation[];
  workers: WorkerReport[];
}

/** `POST /asyncdiff/release`: ids of groups. */
export interface Released {
  released: string[];
  busy: string[];
}

/** `GET /asyncdiff/devices`. */
export interface Machine {
  devices: { name: string; title: string; memory_bytes: number; free_bytes: number | null }[];
  auto: string[];
}
