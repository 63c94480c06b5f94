/** The history: the pictures that the server has kept. */
import { type Schemas, ask, client, openUrl } from "../api/client";
import { type Picture, pictures } from "../pictures";

export type Kept = Schemas["KeptImage"];
export type Details = Schemas["ImageDetails"];

export const fileOf = (image: Kept): string => openUrl(image.file);
export const thumbnailOf = (image: Kept): string => openUrl(image.thumbnail);

export function details(id: string): Promise<Details> {
  return ask(() => client.GET("/images/{image_id}", { params: { path: { image_id: id } } }));
}

/** As the other pages hold pictures; its styles are told by those who know them. */
export function asPicture(image: Kept, styles: string[] = []): Picture {
  const { id, model, width, height, mime_type, seed, label, prompt } = image;
  return { id, model, width, height, mimeType: mime_type, data: "", url: fileOf(image), seed: seed ?? 0, label: label ?? prompt, latent: null, styles, recipe: {} };
}

/** What made it: numbers and texts as they are, vectors as base64 of `.npy`. */
export function parameters(image: Details): Record<string, unknown> {
  const told = (image.job?.parameters ?? {}) as Record<string, unknown>;
  return Object.fromEntries(Object.entries(told).map(([name, value]) => [name, (value as { npy?: string } | null)?.npy ?? value]));
}

/** Whether it has styles that can be found again. */
export function hasStyles(image: Details): boolean {
  const { kind } = image.job ?? {};
  return kind === "Generate" || kind === "Edit" || kind === "Synthesize" || (kind === "Project" && image.task_id !== null);
}

/** Of what was not drawn from a seed alone. */
export async function stylesOf(image: Details): Promise<string[]> {
  const { model } = image;
  const { seed, label, psi, sd, noise, latent, styles } = parameters(image) as Record<string, never>;
  if (styles) return [styles];
  if (image.job?.kind === "Project") {
    const event = await ask(() => client.GET("/task/{task_id}", { params: { path: { task_id: image.task_id! } } }));
    const { style } = (event.image ?? {}) as { style?: string | null };
    return style ? [style] : [];
  }
  const query = { seed, psi, sd, noise, ...(label ? { label } : {}) };
  const body = latent ? { latent } : {};
  const made = await ask(() => client.POST("/{model_id}/generate", { params: { path: { model_id: model }, query }, body }));
  return pictures(made, {})[0]!.styles;
}
