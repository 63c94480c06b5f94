/** Workspace files: JSON with `modelId` and `data.gen`, as the sample client of the original StyleGAN API writes them. */
import type { Picture } from "./pictures";

interface Entry {
  data: string;
  mimeType: string;
  width: number;
  height: number;
  model?: string;
  seed?: number;
  label?: string | null;
  latent?: string | null;
  style?: string;
  styles?: string[];
  recipe?: Record<string, unknown>;
}

export interface Workspace {
  modelId: string;
  data: { gen: Entry[] };
}

export function write(pictures: Picture[], modelId: string): Workspace {
  const gen = pictures.map(({ id: _, styles, ...rest }) => ({ ...rest, style: styles[0]!, styles }));
  return { modelId, data: { gen } };
}

/** Throws an `Error` in words for what is no workspace. */
export function read(text: string): { modelId: string; pictures: Picture[] } {
  let found: Partial<Workspace>;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
  if (typeof found?.modelId !== "string" || !Array.isArray(found.data?.gen)) throw new Error("This file is no workspace.");
  return { modelId: found.modelId, pictures: found.data.gen.filter(isEntry).map((entry) => toPicture(entry, found.modelId!)) };
}

function isEntry(entry: unknown): entry is Entry {
  const { data, mimeType } = (entry ?? {}) as Partial<Entry>;
  return typeof data === "string" && /^[\w+/=]+$/.test(data) && typeof mimeType === "string" && mimeType.startsWith("image/");
}

function toPicture(entry: Entry, modelId: string): Picture {
  return {
    id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`,
    model: entry.model ?? modelId,
    width: entry.width,
    height: entry.height,
    mimeType: entry.mimeType,
    data: entry.data,
    seed: entry.seed ?? 0,
    label: entry.label ?? null,
    latent: entry.latent ?? null,
    styles: entry.styles ?? (entry.style ? [entry.style] : []),
    recipe: entry.recipe ?? {},
  };
}
