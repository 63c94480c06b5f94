/** The key pictures of a walk, its frames as they are drawn, and its export. */
import { computed, reactive, ref, shallowReactive, watch } from "vue";
import { combine, fromRows, toRows, walkWeights } from "../../arrays";
import { type Schemas, openUrl } from "../../api/client";
import { Live } from "../../api/live";
import { isAbort } from "../../api/trouble";
import { type Picture, download } from "../../pictures";
import { type Film, type Job, films, isOver, submit } from "../../state/jobs";
import { fromSeed, fromStyles, rowsWish } from "../../points";
import { drawSeed } from "../../seeds";
import { details, parameters } from "../../state/images";
import { findModel } from "../../state/server";
import { complain } from "../../state/toasts";

export const MOST = 32;
const FIRST = 4;
export const FORMATS = [
  { value: "webp", name: "WebP" },
  { value: "gif", name: "GIF" },
  { value: "apng", name: "APNG" },
  { value: "mp4", name: "MP4" },
] as const;
export type Format = (typeof FORMATS)[number]["value"];
type Body = Schemas["InterpolateRequestBody"];

export const walk = shallowReactive({ model: "", points: [] as Picture[] });
export const settings = reactive({ loop: true, seconds: 4, fps: 20, format: "webp" as Format });
export const frames = shallowReactive<(ImageBitmap | null)[]>([]);
export const busy = ref(false);
export const levels = computed(() => findModel(walk.model)?.levels ?? 1);

/** As many as there may be of the model's size. */
export const count = computed(() => {
  const { width = 64, height = 64 } = findModel(walk.model) ?? {};
  return Math.max(2, Math.min(Math.round(settings.seconds * settings.fps), 300, Math.floor(2 ** 26 / (width * height))));
});

let live: Live | null = null;
let turn = 0;

export async function choose(model: string): Promise<void> {
  if (model === walk.model) return;
  turnTo(model);
  const seed = drawSeed();
  const made: Picture[] = [];
  for (let place = 0; place < FIRST; place++) {
    made.push(await fromSeed(model, seed + place));
    if (walk.model !== model) return;
  }
  walk.points = made;
}

function turnTo(model: string): void {
  live?.close();
  live = new Live(model);
  Object.assign(walk, { model, points: [] });
}

/** The walk that a kept animation is. */
export async function again(id: string): Promise<void> {
  const image = await details(id);
  const told = parameters(image) as unknown as Partial<Body>;
  turnTo(image.model);
  const { fps = 20, frames: all = 60, loop = false, format = "webp" } = told;
  Object.assign(settings, { fps, loop, seconds: all / fps, format: FORMATS.some((one) => one.value === format) ? format : "webp" });
  const seed = image.seed ?? 0;
  const points: Picture[] = [];
  for (const one of told.seeds ?? []) points.push(await fromSeed(image.model, one, told.psi ?? 1, told.label));
  for (const one of told.styles ?? []) {
    const styles = [one].flat();
    const made = await fromStyles(live!, seed, styles, toRows(styles, levels.value));
    if (made) points.push(made);
  }
  walk.points = points;
}

export function put(place: number, picture: Picture): void {
  const own = { ...picture, id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` }; // it may stand there more than once
  walk.points = Object.assign([...walk.points], { [place]: own });
}

export function takeAway(place: number): void {
  walk.points = walk.points.filter((_, other) => other !== place);
}

export function move(from: number, to: number): void {
  const points = [...walk.points];
  if (to < 0 || to >= points.length) return;
  points.splice(to, 0, ...points.splice(from, 1));
  walk.points = points;
}

/** Draws the frames anew, at first few of them and then those between. The old ones stay until the first new one is there. */
async function redraw(): Promise<void> {
  const mine = ++turn;
  const [own, { points }, all, { loop }] = [live, walk, count.value, settings];
  if (!own || points.length < 2) return;
  const rows = points.map((point) => toRows(point.styles, levels.value));
  busy.value = true;
  let begun = false;
  for (const place of order(all)) {
    const wish = rowsWish(points[0]!.seed, combine(rows, walkWeights(points.length, place, all, loop)));
    const drawn = await own.draw(wish);
    if (mine !== turn) return;
    if (!begun) frames.splice(0, frames.length, ...Array<null>(all).fill(null));
    begun = true;
    if (drawn) frames[place] = drawn.bitmap;
  }
  busy.value = false;
}
watch([() => walk.points, count, () => settings.loop], () => redraw().catch((error) => isAbort(error) || complain(error)));

/** Every eighth first, then every fourth, …: the whole walk is soon to be seen. */
export function order(all: number): number[] {
  const places = Array.from({ length: all }, (_, place) => place);
  const rank = (place: number) => [8, 4, 2].findIndex((step) => place % step === 0) + 1 || 4;
  return places.sort((one, other) => rank(one) - rank(other) || one - other);
}

/** The nearest frame that there is, at or before a place. */
export function frameAt(place: number): ImageBitmap | null {
  for (let at = place; at >= 0; at--) if (frames[at]) return frames[at]!;
  return frames.find((frame) => frame) ?? null;
}

/** A task, so that a reload loses nothing of it. The film comes by itself where its page is still open, and lies below it elsewhere. */
export async function save(): Promise<void> {
  const { loop, fps, format } = settings;
  const { model, points } = walk;
  const { width = 64, height = 64 } = findModel(model) ?? {};
  const styles = points.map((point) => fromRows(toRows(point.styles, levels.value)));
  const film = { params_type: "interpolate", model, styles, loop, fps, format, frames: count.value, seed: points[0]!.seed } as Film;
  const batch = `${Date.now()}-${drawSeed()}`;
  expected.add(batch);
  await submit({ batch, title: `A film of ${points.length} key pictures`, width, height }, [film]);
}

const expected = new Set<string>();
watch(films, (now) => {
  for (const job of now.filter((one) => isOver(one) && expected.delete(one.batch))) if (job.blob) fetchFilm(job).catch(complain);
}, { deep: true });

export async function fetchFilm({ blob, params }: Job<Film>): Promise<void> {
  const answer = await fetch(openUrl(`blob/${blob}`));
  if (!answer.ok) throw new Error("The film is not kept any more.");
  download(await answer.blob(), `${params.model}-walk.${params.format}`);
}
