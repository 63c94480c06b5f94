/** What is edited, how far along what, and the pictures of it as they come. */
import { computed, ref, shallowReactive, shallowRef } from "vue";
import { type Schemas, ask, client } from "../../api/client";
import { type Drawn, Live, type Wish } from "../../api/live";
import { isAbort } from "../../api/trouble";
import { type Picture, pictures } from "../../pictures";
import { drawSeed } from "../../seeds";
import { complain } from "../../state/toasts";
import { useUndo } from "../../undo";

export type Direction = Schemas["Direction"];

/** Where an edit begins: a seed's picture, or one that was made before. */
export interface Source {
  seed: number;
  psi: number;
  /** "" for any. */
  label: string;
  noise: string | null;
  /** A picture's styles; psi and label belong to seeds alone. */
  styles: string[] | null;
  picture: Picture | null;
}

/** One step of what can be undone. Nothing in it is ever changed. */
export interface State {
  source: Source;
  amounts: Record<string, number>;
}

export const PSI = 0.7;

export function fromSeed(seed = drawSeed(), psi = PSI, label = ""): Source {
  return { seed, psi, label, noise: null, styles: null, picture: null };
}

export function fromPicture(picture: Picture): Source {
  return { ...fromSeed(picture.seed, 1), noise: picture.recipe.noise ?? null, styles: picture.styles, picture };
}

export function toWish({ source, amounts }: State): Wish {
  const { seed, psi, label, noise, styles } = source;
  const moved = Object.fromEntries(Object.entries(amounts).filter(([, amount]) => amount !== 0));
  return { seed, styles, label: styles ? null : label || null, psi: styles ? null : psi, noise, directions: moved };
}

/** "sefa-3" is a name for machines. */
export function title({ name }: Direction): string {
  const number = /^sefa-(\d+)$/.exec(name)?.[1];
  return number ? `Direction ${number}` : name.charAt(0).toUpperCase() + name.slice(1).replaceAll("_", " ");
}

const first: State = { source: fromSeed(), amounts: {} };
const history = useUndo(first);
export const { canUndo, canRedo, current: noted } = history;
export const editing = shallowReactive({ model: "", directions: null as Direction[] | null, state: first });
export const after = shallowRef<ImageBitmap | null>(null);
export const before = shallowRef<ImageBitmap | null>(null);
export const comparing = ref(false);
export const shown = computed(() => (comparing.value ? before.value : after.value));
export const moved = computed(() => Object.values(editing.state.amounts).some((amount) => amount !== 0));

let live: Live | null = null;
let control = new AbortController();
let base: Source | null = null; // whose picture `before` is

export async function choose(model: string): Promise<void> {
  if (model === editing.model) return;
  live?.close();
  live = new Live(model);
  Object.assign(editing, { model, directions: null });
  const found = await ask(() => client.GET("/{model_id}/directions", { params: { path: { model_id: model } } }));
  if (editing.model === model) editing.directions = found;
}

/** Shows a state; with `what`, it is a step that can be undone. */
export function show(state: State, what: string | null = null): void {
  editing.state = state;
  if (what !== null) history.note(state, what);
  void draw().catch((error) => isAbort(error) || complain(error));
}
/** Of another model: what was is not to be had again. */
export function begin(state: State): void {
  history.clear(state);
  show(state);
}
export const settle = (what: string): void => history.note(editing.state, what);
export const undo = (): void => show(history.undo());
export const redo = (): void => show(history.redo());
export const reset = (): void => show({ ...editing.state, amounts: {} }, "reset");
export const start = (state: State): void => show(state, "source");

export function move(name: string, amount: number): void {
  show({ ...editing.state, amounts: { ...editing.state.amounts, [name]: amount } });
}

async function draw(): Promise<void> {
  if (!live) return;
  const { source } = editing.state;
  if (source !== base) {
    control.abort();
    control = new AbortController();
    base = source;
    after.value = before.value = null;
    const drawn = await live.draw(toWish({ source, amounts: {} }), control.signal);
    if (source !== base || !drawn) return;
    before.value = after.value = drawn.bitmap;
    if (!moved.value) return;
  }
  if (before.value) take(await live.draw(toWish(editing.state), control.signal), source);
}

function take(drawn: Drawn | null, source: Source): void {
  if (drawn && source === base) after.value = drawn.bitmap;
}

/** The picture as the server makes it for keeps, with its styles. */
export async function make(): Promise<Picture> {
  const { model, state } = editing;
  const { directions, styles, noise, ...rest } = toWish(state);
  const wish = { ...rest, directions, layers: {}, rotate: 0, translate: [0, 0], noise: (noise ?? "random") as "random", ...(styles ? { styles } : {}) };
  const answer = await ask(() => client.POST("/{model_id}/edit", { params: { path: { model_id: model } }, body: wish }));
  const facts = Object.fromEntries(Object.entries(directions).map(([name, amount]) => [title({ name } as Direction), amount]));
  return pictures(answer, { noise: noise ?? "random", latent: "edited", facts })[0]!;
}
