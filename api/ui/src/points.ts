/** Pictures that others are made of: drawn from seeds, or shown from styles that were put together in the page. */
import { fromRows } from "./arrays";
import { ask, client } from "./api/client";
import type { Drawn, Live, Wish } from "./api/live";
import { type Picture, pictures } from "./pictures";

export const PSI = 0.7;

export async function fromSeed(model: string, seed: number, psi = PSI, label: string | null = null): Promise<Picture> {
  const query = { seed, psi, ...(label ? { label } : {}) };
  const answer = await ask(() => client.POST("/{model_id}/generate", { params: { path: { model_id: model }, query } }));
  return pictures(answer, { psi, noise: "random", ...(label ? { label } : {}) })[0]!;
}

export function styleWish(seed: number, styles: string[]): Wish {
  return { seed, styles, label: null, psi: null, noise: null, directions: {} };
}

export function rowsWish(seed: number, rows: Float32Array[]): Wish {
  return styleWish(seed, [fromRows(rows)]);
}

/** What was drawn, as a picture that can be kept, dragged and edited. */
export function toPicture(model: string, { bitmap, seed }: Drawn, rows: Float32Array[]): Picture {
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d")!.drawImage(bitmap, 0, 0);
  const data = canvas.toDataURL("image/png").split(",")[1]!;
  const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
  const { width, height } = bitmap;
  return { id, model, width, height, mimeType: "image/png", data, seed, label: null, latent: null, styles: [fromRows(rows)], recipe: { latent: "mixed" } };
}

export async function fromStyles(live: Live, seed: number, styles: string[], rows: Float32Array[]): Promise<Picture | null> {
  const drawn = await live.draw(styleWish(seed, styles));
  return drawn && toPicture(live.model, drawn, rows);
}
