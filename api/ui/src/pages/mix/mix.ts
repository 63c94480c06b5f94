/** The board and the blend: what they are made of, and their pictures as they come. */
import { computed, reactive, shallowReactive } from "vue";
import { combine, fromRows, toRows } from "../../arrays";
import { ask, client } from "../../api/client";
import { type Drawn, Live } from "../../api/live";
import { isAbort } from "../../api/trouble";
import { type Picture, pictures } from "../../pictures";
import { fromSeed, rowsWish, toPicture } from "../../points";
import { drawSeed } from "../../seeds";
import { findModel } from "../../state/server";
import { complain } from "../../state/toasts";

export type Side = "rows" | "columns" | "parts";
export const MOST = { rows: 5, columns: 5, parts: 6 };
const FIRST = { rows: 3, columns: 3, parts: 3 };

export const board = shallowReactive({
  model: "",
  rows: [] as Picture[],
  columns: [] as Picture[],
  /** Levels that are taken of the columns, from 0, the last one included. */
  from: 0,
  to: 0,
  parts: [] as Picture[],
});
export const weights = reactive<number[]>([]);
export const drawn = shallowReactive(new Map<string, Drawn>());
export const levels = computed(() => findModel(board.model)?.levels ?? 1);

let live: Live | null = null;
let turn = 0; // of the pictures that are being drawn
let blending = 0;

/** Thirds of the levels, as the papers have them: [first, last]. */
export function ranges(count: number): Record<"coarse" | "middle" | "fine", [number, number]> {
  const [low, high] = [Math.max(1, Math.round(count / 3)), Math.max(2, Math.round((2 * count) / 3))];
  return { coarse: [0, low - 1], middle: [low, Math.max(low, high - 1)], fine: [Math.min(high, count - 1), count - 1] };
}

/** For each level 0, the row's, or 1, the column's. */
export function pick(from: number, to: number, count: number): number[] {
  return Array.from({ length: count }, (_, level) => (level >= from && level <= to ? 1 : 0));
}

export async function choose(model: string): Promise<void> {
  if (model === board.model) return;
  live?.close();
  live = new Live(model);
  const [from, to] = ranges(findModel(model)!.levels).coarse;
  Object.assign(board, { model, rows: [], columns: [], parts: [], from, to });
  drawn.clear();
  const seed = drawSeed();
  const all = FIRST.rows + FIRST.columns;
  const made: Picture[] = [];
  for (let place = 0; place < all; place++) {
    const picture = await fromSeed(model, seed + place);
    if (board.model !== model) return;
    made.push(picture);
    Object.assign(board, { rows: made.slice(0, FIRST.rows), columns: made.slice(FIRST.rows) });
  }
  board.parts = made.slice(0, FIRST.parts);
  weights.splice(0, weights.length, ...board.parts.map(() => 1));
  redraw();
}

export function put(side: Side, place: number, picture: Picture): void {
  if (side === "parts" && place >= board.parts.length) weights.push(1);
  const own = { ...picture, id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` }; // it may stand there more than once
  board[side] = Object.assign([...board[side]], { [place]: own });
  redraw();
}

export function takeAway(side: Side, place: number): void {
  if (side === "parts") weights.splice(place, 1);
  board[side] = board[side].filter((_, other) => other !== place);
  redraw();
}

export function take(from: number, to: number): void {
  Object.assign(board, { from, to });
  redraw();
}

export const cell = (row: Picture, column: Picture): string => `${row.id} ${column.id}`;
export const BLEND = "blend";

function cellRows(row: Picture, column: Picture): Float32Array[] {
  const both = [toRows(row.styles, levels.value), toRows(column.styles, levels.value)];
  return pick(board.from, board.to, levels.value).map((which, level) => both[which]![level]!);
}

/** Null where the weights cancel out. */
function blendRows(): Float32Array[] | null {
  const sum = weights.reduce((one, other) => one + other, 0);
  if (!board.parts.length || Math.abs(sum) < 0.01) return null;
  return combine(board.parts.map((part) => toRows(part.styles, levels.value)), weights.map((weight) => weight / sum));
}

/** Draws all cells anew, one after the other; the old pictures stay until then. */
export function redraw(): void {
  const mine = ++turn;
  const own = live;
  const run = async () => {
    await blend();
    for (const row of board.rows)
      for (const column of board.columns) {
        if (mine !== turn || !own) return;
        const made = await own.draw(rowsWish(row.seed, cellRows(row, column)));
        if (made && mine === turn) drawn.set(cell(row, column), made);
      }
  };
  run().catch((error) => isAbort(error) || complain(error));
}

export async function blend(): Promise<void> {
  const mine = ++blending;
  const rows = blendRows();
  if (!rows || !live) return;
  const made = await live.draw(rowsWish(board.parts[0]!.seed, rows));
  if (made && mine === blending) drawn.set(BLEND, made);
}
export function reblend(): void {
  if (turn) redraw();
}

/** A cell as it is shown, to be dragged elsewhere. */
export function cellPicture(row: Picture, column: Picture): Picture | null {
  const shown = drawn.get(cell(row, column));
  return shown ? toPicture(board.model, shown, cellRows(row, column)) : null;
}

const whole = (picture: Picture) => fromRows(toRows(picture.styles, levels.value));

/** The same as the server makes it for keeps. */
export async function makeCell(row: Picture, column: Picture): Promise<Picture> {
  const query = { seed: row.seed, levels: pick(board.from, board.to, levels.value) };
  const body = { styles: [whole(row), whole(column)] };
  const answer = await ask(() => client.POST("/{model_id}/mix", { params: { path: { model_id: board.model }, query }, body }));
  const facts = { Row: `seed ${row.seed}`, Column: `seed ${column.seed}`, "Column's levels": `${board.from + 1} to ${board.to + 1}` };
  return pictures(answer, { latent: "mixed", facts })[0]!;
}

export async function makeBlend(): Promise<Picture> {
  const query = { seed: board.parts[0]!.seed, weights: [...weights] };
  const body = { styles: board.parts.map(whole) };
  const answer = await ask(() => client.POST("/{model_id}/blend", { params: { path: { model_id: board.model }, query }, body }));
  return pictures(answer, { latent: "blended", facts: { Weights: weights.join(", ") } })[0]!;
}
