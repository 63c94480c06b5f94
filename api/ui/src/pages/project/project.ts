/** Finding the styles of a picture: what is asked for, and how it becomes a task. */
import { computed, reactive, watch } from "vue";
import { decode, toPng, upload } from "../../blobs";
import { type Picture, bytes, toBase64 } from "../../pictures";
import { openUrl } from "../../api/client";
import { drawSeed } from "../../seeds";
import { projected, submit } from "../../state/jobs";
import { able, findModel } from "../../state/server";
import { recall, remember } from "../../storage";

export interface Form {
  model: string;
  /** The picture's blob. */
  blob: string | null;
  steps: number;
  space: "w" | "w+";
  /** "" for any. */
  label: string;
}

export const form = reactive<Form>({ model: "", blob: null, steps: 150, space: "w+", label: "", ...recall<Partial<Form>>("project", {}) });
watch(form, () => remember("project", form), { deep: true });

export const models = computed(() => able("Project"));
/** The one that was used last, on this page or another, or the one that draws the most. */
export const model = computed(
  () => models.value.find((one) => one.id === (form.model || recall("gan", ""))) ?? [...models.value].sort((one, other) => other.width - one.width)[0],
);
export type Projection = (typeof projected.value)[number];

const LARGEST = 1024;

/** The middle square, which is what counts, no larger than it need be. */
export function middle({ width, height }: { width: number; height: number }): { left: number; top: number; side: number; size: number } {
  const side = Math.min(width, height);
  return { left: (width - side) / 2, top: (height - side) / 2, side, size: Math.min(side, LARGEST) };
}

export async function take(file: Blob): Promise<void> {
  const picture = await decode(file);
  const { left, top, side, size } = middle(picture);
  const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, side, side, 0, 0, size, size);
  form.blob = await upload(await toPng(canvas));
}

export async function find(signal: AbortSignal): Promise<void> {
  const { id, width, height } = model.value!;
  const { blob, steps, space, label } = form;
  const about = { batch: `${Date.now()}-${drawSeed()}`, title: "A picture that is sought", width, height };
  const search = { params_type: "project" as const, model: id, initial_image: blob!, steps, space, seed: drawSeed(), previews: 8 };
  const rest = { regularisation: 0.001, fit_noise: false, ...(label ? { label } : {}) };
  await submit(about, [{ ...search, ...rest }], signal);
}

/** What was found, as a picture to keep and to edit. */
export async function result(job: Projection): Promise<Picture> {
  const { id, params, blob, style, width, height } = job;
  const facts = { Steps: params.steps, Closeness: job.psnr === null ? null : `${job.psnr} dB` };
  const shown = { id, model: params.model!, width, height, mimeType: "image/png", data: "", url: openUrl(`blob/${blob}`) };
  const { url: _, ...kept } = shown;
  const made = { seed: params.seed!, label: null, latent: null, styles: [style!], recipe: { noise: findModel(params.model!)?.noises.includes("const") ? "const" : "none", facts } };
  return { ...kept, ...made, data: await toBase64(await bytes({ ...shown, ...made })) };
}
