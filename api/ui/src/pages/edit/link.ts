/** What the address of the page tells of an edit, so that a reload or a link finds it again. */
import type { LocationQuery } from "vue-router";
import { asPicture, details, parameters, stylesOf } from "../../state/images";
import { kept } from "../../state/kept";
import { type State, PSI, editing, fromPicture, fromSeed } from "./edit";

/** Null where the address names no edit, or the one that is shown. */
export async function readQuery(query: LocationQuery): Promise<State | null> {
  if (JSON.stringify(writeQuery(editing.state)) === JSON.stringify(query)) return null;
  const text = (name: string) => (typeof query[name] === "string" ? query[name] : "");
  const amounts = readAmounts(text("to"));
  const picture = kept.pictures.find((one) => one.id === text("kept"));
  if (picture?.styles.length) return { source: fromPicture(picture), amounts };
  if (text("image")) return fromImage(text("image"), text("to") ? amounts : null);
  const [seed, psi] = [Number(text("seed") || NaN), Number(text("psi") || PSI)];
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) return null;
  return { source: { ...fromSeed(seed, psi > 0 && psi <= 2 ? psi : PSI, text("label")), noise: text("noise") || null }, amounts };
}

/** A picture of the history: what a seed and directions make is edited as that, with its own amounts unless others are given. */
async function fromImage(id: string, amounts: Record<string, number> | null): Promise<State> {
  const image = await details(id);
  const told = parameters(image) as { psi?: number; sd?: number; label?: string; noise?: string; latent?: string; styles?: string };
  const plain = (image.job?.kind === "Generate" || image.job?.kind === "Edit") && !told.latent && !told.styles && (told.sd ?? 1) === 1;
  const moved = amounts ?? image.directions;
  if (plain) return { source: { ...fromSeed(image.seed ?? 0, told.psi ?? 1, told.label ?? ""), noise: told.noise ?? null }, amounts: moved };
  const picture = { ...asPicture(image, await stylesOf(image)), recipe: { noise: told.noise } };
  return { source: fromPicture(picture), amounts: moved };
}

export function writeQuery({ source, amounts }: State): Record<string, string> {
  const { picture, seed, psi, label, noise } = source;
  const query: Record<string, string> = picture ? { [picture.url ? "image" : "kept"]: picture.id } : { seed: String(seed) };
  if (!picture && psi !== PSI) query.psi = String(psi);
  if (!picture && label) query.label = label;
  if (!picture && noise && noise !== "random") query.noise = noise;
  const to = Object.entries(amounts).filter(([, amount]) => amount !== 0);
  if (to.length) query.to = to.map(([name, amount]) => `${name}:${amount}`).join(",");
  return query;
}

export function readAmounts(text: string): Record<string, number> {
  const pairs = text.split(",").map((part) => [part.slice(0, part.lastIndexOf(":")), Number(part.slice(part.lastIndexOf(":") + 1))] as const);
  return Object.fromEntries(pairs.filter(([name, amount]) => name && Number.isFinite(amount)));
}
