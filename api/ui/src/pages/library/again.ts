/** Where a picture's settings are set again. */
import type { RouteLocationRaw } from "vue-router";
import { ask, client } from "../../api/client";
import { type Details, parameters } from "../../state/images";
import { repeat } from "../prompt/prompt";

type Told = Record<string, string | number | null | undefined>;

export function toEdit(image: Details): RouteLocationRaw {
  return { name: "edit", params: { model: image.model }, query: { image: image.id } };
}

/** Null where its recipe does not tell all that it was made from. */
export function toAgain(image: Details): { to: RouteLocationRaw; before?: () => void } | "here" | null {
  const told = parameters(image) as Told;
  switch (image.job?.kind) {
    case "Generate":
      return { to: told.latent ? toEdit(image) : { name: "generate", params: { model: image.model }, query: generated(image, told) } };
    case "Edit":
    case "Synthesize":
      return { to: toEdit(image) };
    case "Interpolate":
      return { to: { name: "walk", params: { model: image.model }, query: { image: image.id } } };
    case "Diffuse":
      return image.inputs.mask ? "here" : { to: { name: "prompt" }, before: () => repeat(prompted(image, told)) };
    default:
      return null;
  }
}

/** Makes it again from what the server kept, masks included; it says no where that would be another picture. */
export async function remake(image: Details): Promise<void> {
  await ask(() => client.POST("/images/{image_id}/regenerate", { params: { path: { image_id: image.id } }, parseAs: "blob" }));
}

function generated(image: Details, told: Told): Record<string, string> {
  const query: Record<string, string> = { seed: String(image.seed), count: "1", psi: String(told.psi ?? 1) };
  for (const name of ["sd", "noise", "label"]) if (told[name] !== undefined && told[name] !== null) query[name] = String(told[name]);
  return query;
}

function prompted({ width, height, model, prompt, seed, inputs }: Details, told: Told): Parameters<typeof repeat>[0] {
  const { negative_prompt, steps, guidance_scale, scheduler } = told;
  const all = { model, prompt, seed, width, height, negative_prompt, steps, cfg_scale: guidance_scale, scheduler };
  const from = inputs.image ? { params_type: "img2img", initial_image: inputs.image, strength: told.strength } : { params_type: "txt2img" };
  return { ...all, ...from } as unknown as Parameters<typeof repeat>[0];
}
