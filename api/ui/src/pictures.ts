/** Pictures as the pages hold them, with what makes them again. */
import { type Schemas, base } from "./api/client";

export interface Recipe {
  psi?: number;
  sd?: number;
  noise?: string;
  [name: string]: unknown;
}

export interface Picture {
  /** Unique in this page's life and among the kept. */
  id: string;
  model: string;
  width: number;
  height: number;
  mimeType: string;
  /** Base64; empty where `url` tells where the picture is. */
  data: string;
  url?: string;
  seed: number;
  label: string | null;
  latent: string | null;
  /** One for each level, or one for all. */
  styles: string[];
  recipe: Recipe;
}

type Made = Schemas["SimplePureImage"] | Schemas["CompoundImage"] | Schemas["SimpleImage"] | Schemas["EditedImage"];

/** The pictures of an answer, which is JSON: by their types these routes could also answer a bare picture. */
export function pictures(answer: Made | string, recipe: Recipe): Picture[] {
  const { more, ...first } = answer as Made;
  return [first, ...((more ?? []) as Made[])].map((made) => picture(made, recipe));
}

function picture(made: Omit<Made, "more">, recipe: Recipe): Picture {
  const all = made as Partial<Schemas["SimplePureImage"] & Schemas["EditedImage"]> & Schemas["SimpleImage"];
  return {
    id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`,
    model: all.model,
    width: all.width,
    height: all.height,
    mimeType: all.mimeType,
    data: all.data,
    seed: all.seed,
    label: all.label ?? null,
    latent: all.latent ?? null,
    styles: all.styles ?? [all.style],
    recipe,
  };
}

export function dataUrl(shown: { mimeType: string; data: string }): string {
  return `data:${shown.mimeType};base64,${shown.data}`;
}

/** What an `<img>` shows. */
export function source(picture: Picture): string {
  return picture.url ?? dataUrl(picture);
}

/** The picture's file. */
export async function bytes(picture: Picture): Promise<Blob> {
  if (picture.url) return (await fetch(picture.url)).blob();
  return new Blob([Uint8Array.from(atob(picture.data), (letter) => letter.charCodeAt(0))], { type: picture.mimeType });
}

const ENDINGS: Record<string, string> = { "image/jpeg": "jpg", "image/svg+xml": "svg", "image/apng": "png" };

export function fileName(shown: { model: string; seed: number; mimeType: string }): string {
  return `${shown.model}-${shown.seed}.${ENDINGS[shown.mimeType] ?? shown.mimeType.split("/")[1]}`;
}

export async function toBase64(file: Blob): Promise<string> {
  const whole = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let at = 0; at < whole.length; at += 0x8000) text += String.fromCharCode(...whole.subarray(at, at + 0x8000));
  return btoa(text);
}

export async function downloadPicture(picture: Picture): Promise<void> {
  download(await bytes(picture), fileName(picture));
}

export function download(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The query that makes a generated picture again. */
export function imageQuery(made: Picture): URLSearchParams {
  const { psi, sd, noise } = made.recipe;
  const query = new URLSearchParams({ seed: String(made.seed) });
  if (made.recipe.label) query.set("label", String(made.recipe.label));
  if (psi !== undefined && psi !== 1) query.set("psi", String(psi));
  if (sd !== undefined && sd !== 1) query.set("sd", String(sd));
  if (noise !== undefined && noise !== "random") query.set("noise", noise);
  return query;
}

/** Whether its recipe is enough to make it again. */
export function isRepeatable(made: Picture): boolean {
  return made.recipe.psi !== undefined && !made.recipe.latent;
}

/** A link to the page that makes the same picture. */
export function link(made: Picture): string {
  const query = imageQuery(made);
  query.set("count", "1");
  return `${new URL("ui/", base).href}#/generate/${encodeURIComponent(made.model)}?${query}`;
}

/** A shell command that makes the same picture; `auth` where the server wants a token. */
export function curl(made: Picture, auth: boolean): string {
  const url = new URL(`${encodeURIComponent(made.model)}/image?${imageQuery(made)}`, base);
  const header = auth ? ` -H "Authorization: Bearer $TOKEN"` : "";
  return `curl -o ${quote(fileName(made))}${header} ${quote(url.href)}`;
}

/** For a POSIX shell. */
export function quote(text: string): string {
  return /^[\w./:@=-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

export async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // pages without TLS have no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
