/** Tasks of this browser: what was asked for, and what becomes of it. They outlive a reload, and any loss of the connection. */
import { computed, reactive, watch } from "vue";
import { type Schemas, ask, client, socketUrl } from "../api/client";
import { Trouble } from "../api/trouble";
import { recall, remember } from "../storage";
import { session } from "./session";

export type Event = Schemas["Event"];
export type State = Event["event_type"];
export type Prompted = Schemas["Text2ImgTask"] | Schemas["Img2ImgTask"] | Schemas["InpaintTask"];
export type Film = Schemas["InterpolateTask"];
export type Params = Prompted | Schemas["ProjectTask"] | Film;

export interface Job<P extends Params = Params> {
  id: string;
  /** Whose it is, "" where nobody is asked. */
  owner: string;
  /** Jobs that were asked for together. */
  batch: string;
  /** What people know it by. */
  title: string;
  params: P;
  state: State;
  /** Where the picture is kept, once it is made. */
  blob: string | null;
  /** The styles that were found, and how close their picture comes, in decibels. */
  style: string | null;
  psnr: number | null;
  width: number;
  height: number;
  position: number | null;
  /** Seconds until it is done, as far as can be told. */
  wait: number | null;
  step: number;
  steps: number;
  preview: string | null;
  reason: string | null;
  /** When the first step was told, in milliseconds, and which it was. */
  since: { at: number; step: number } | null;
}

const MOST = 120;
const jobs = reactive<Job[]>(recall<Job[]>("jobs", []));
watch(jobs, () => remember("jobs", jobs.map((job) => ({ ...job, preview: null }))), { deep: true });

/** Those of whoever is signed in, the newest first. */
export const mine = computed(() => jobs.filter((job) => job.owner === owner()));
const OTHERS: Params["params_type"][] = ["project", "interpolate"];
export const prompted = computed(() => mine.value.filter((job) => !OTHERS.includes(job.params.params_type)) as Job<Prompted>[]);
export const films = computed(() => mine.value.filter((job) => job.params.params_type === "interpolate") as Job<Film>[]);
export const projected = computed(() => mine.value.filter((job) => job.params.params_type === "project") as Job<Schemas["ProjectTask"]>[]);
const owner = () => session.name ?? "";

export function isOver(job: Job): boolean {
  return job.state === "finished" || job.state === "cancelled" || job.state === "failed";
}

/** Takes one event into a job. */
export function tell(job: Job, event: Event, now = Date.now()): void {
  if (isOver(job)) return;
  job.state = event.event_type;
  job.position = event.position ?? null;
  job.wait = event.wait ?? null;
  job.reason = event.reason ?? null;
  if (event.event_type === "progress") {
    job.step = event.step ?? job.step;
    job.steps = event.steps ?? job.steps;
    job.preview = event.preview ?? job.preview;
    job.since ??= { at: now, step: job.step };
    const done = job.step - job.since.step;
    job.wait = done > 0 ? ((now - job.since.at) / done / 1000) * (job.steps - job.step) : null;
  }
  if (event.event_type === "pending") Object.assign(job, { step: 0, since: null }); // its worker died: it begins again
  if (event.image) {
    job.blob = event.image.blob_id;
    const { width, height, psnr } = event.image.parameters_used as { width?: number; height?: number; psnr?: number };
    Object.assign(job, { width: width ?? job.width, height: height ?? job.height, preview: null });
    Object.assign(job, { style: event.image.style ?? null, psnr: psnr ?? null });
  }
}

/** Stores the tasks on the server, one for each picture; the first ones run while the last are sent. */
export async function submit(
  { batch, title, width, height }: Pick<Job, "batch" | "title" | "width" | "height">,
  all: Params[],
  signal?: AbortSignal,
): Promise<void> {
  listen();
  for (const [number, params] of all.entries()) {
    const header = { "idempotency-key": `${batch}-${number}` }; // sent twice, it is still one task
    signal?.throwIfAborted(); // between two requests, never within one: its task would run without being known here
    const id = (await ask(() => client.POST("/task", { params: { header }, body: params }), { signal })) as string;
    jobs.unshift({
      ...{ id, owner: owner(), batch, title, params, width, height, state: "pending", position: null, wait: null, step: 0, steps: ("frames" in params ? params.frames : params.steps) ?? 0 },
      ...{ blob: null, style: null, psnr: null, preview: null, reason: null, since: null },
    });
    void refresh(jobs[0]!);
  }
  jobs.splice(MOST);
}

export async function cancel(...some: Job[]): Promise<void> {
  for (const job of some.filter((one) => !isOver(one))) {
    await ask(() => client.DELETE("/task/{task_id}", { params: { path: { task_id: job.id } } }));
    await refresh(job);
  }
}

export function forget(batch: string): () => void {
  const gone = jobs.filter((job) => job.batch === batch);
  const place = jobs.findIndex((job) => job.batch === batch);
  jobs.splice(0, jobs.length, ...jobs.filter((job) => job.batch !== batch));
  return () => void jobs.splice(place, 0, ...gone);
}

/** What a task is now; also its place in the queue, which no event tells. */
export async function refresh(job: Job): Promise<void> {
  if (asking.has(job.id)) return;
  asking.add(job.id);
  try {
    const event = await ask(() => client.GET("/task/{task_id}", { params: { path: { task_id: job.id } } }));
    // Between two events this says nothing new, and takes nothing back.
    if (event.event_type !== "progress" || (event.step ?? 0) >= job.step) tell(job, event);
  } catch (error) {
    if (error instanceof Trouble && error.status === 404) tell(job, { event_type: "failed", reason: "The server does not know this task any more." } as Event);
  } finally {
    asking.delete(job.id);
  }
}

const asking = new Set<string>();
let socket: WebSocket | null = null;
let timer = 0;
const PACE = 3000;

/** One socket tells of all tasks, as browsers open few streams to one server. It comes back by itself while there is work. */
export function listen(): void {
  clearTimeout(timer);
  if (socket) return;
  socket = new WebSocket(socketUrl("events"));
  socket.onopen = () => active().forEach(refresh);
  socket.onmessage = (message) => {
    const event = JSON.parse(message.data as string) as Event;
    const job = jobs.find((one) => one.id === event.task_id);
    if (job) tell(job, event);
  };
  socket.onclose = () => (socket = null);
  follow();
}

function follow(): void {
  clearTimeout(timer);
  timer = window.setTimeout(() => {
    const left = active();
    for (const job of socket?.readyState === WebSocket.OPEN ? left.filter((one) => one.state === "pending").slice(-2) : left) void refresh(job);
    if (!left.length) return socket?.close();
    if (socket) follow();
    else listen();
  }, PACE);
}

export function active(): Job[] {
  return mine.value.filter((job) => !isOver(job));
}

/** After a reload. */
export function resume(): void {
  if (active().length) listen();
}

/** What a job is doing, in words. */
export function progress(job: Job): string {
  const rest = job.wait === null || job.wait > 86_400 ? "" : ` · about ${spell(job.wait)}`;
  switch (job.state) {
    case "pending":
      return (job.position ? `${job.position} before it` : job.position === 0 ? "Next" : "Waiting") + rest;
    case "started":
      return "Begun";
    case "progress":
      return `Step ${job.step} of ${job.steps}${rest}`;
    case "failed":
      return job.reason ?? "Failed";
    default:
      return job.state === "cancelled" ? "Cancelled" : "Done";
  }
}

function spell(seconds: number): string {
  return seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`;
}
