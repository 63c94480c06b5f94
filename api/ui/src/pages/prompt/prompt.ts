/** The form of the page, which is kept as it is typed, and how it becomes tasks. */
import { computed, reactive, watch } from "vue";
import type { Model } from "../../api/client";
import { decode, toPng, upload } from "../../blobs";
import { drawSeed, seedAt } from "../../seeds";
import { recall, remember } from "../../storage";
import { type Prompted, submit } from "../../state/jobs";
import { diffusionModels } from "../../state/server";
import { type Mask, empty, isPainted, render } from "./mask";
import { type Bounds, type Size, crop, fit } from "./sizes";

export interface Initial extends Size {
  blob: string;
}

export interface Form {
  model: string;
  prompt: string;
  negative: string;
  count: number;
  seed: number;
  locked: boolean;
  size: Size | null;
  steps: number | null;
  guidance: number | null;
  scheduler: string;
  strength: number;
  initial: Initial | null;
  mask: Mask;
}

export interface Can extends Bounds {
  modes: string[];
  schedulers: string[];
  scheduler: string;
  steps: number;
  guidance_scale: number;
  max_steps: number;
  max_pictures: number;
  negative_prompt?: boolean;
  example?: string;
}

const BLANK: Form = {
  ...{ model: "", prompt: "", negative: "", count: 1, seed: drawSeed(), locked: false, size: null, steps: null, guidance: null },
  ...{ scheduler: "", strength: 0.7, initial: null, mask: empty() },
};

export const form = reactive<Form>({ ...BLANK, ...recall<Partial<Form>>("prompt", {}) });
watch(form, () => remember("prompt", form), { deep: true });

export const model = computed<Model | undefined>(() => diffusionModels.value.find((one) => one.id === form.model) ?? diffusionModels.value[0]);
export const can = computed(() => model.value?.extra as unknown as Can | undefined);

/** One task a picture. `mask` is the blob of what was painted. */
export function tasks(asked: Form, own: { id: string }, mask: string | null): Prompted[] {
  const { prompt, negative, steps, guidance, scheduler, strength, initial } = asked;
  const size = initial ?? asked.size;
  const shared = {
    ...{ model: own.id, prompt, previews: 4, safe: false },
    ...(negative ? { negative_prompt: negative } : {}),
    ...(steps === null ? {} : { steps }),
    ...(guidance === null ? {} : { cfg_scale: guidance }),
    ...(scheduler ? { scheduler } : {}),
    ...(size ? { width: size.width, height: size.height } : {}),
  };
  return Array.from({ length: asked.count }, (_, place) => {
    const one = { ...shared, seed: seedAt(asked.seed, place) };
    if (!initial) return { ...one, params_type: "txt2img" };
    const from = { ...one, strength, initial_image: initial.blob };
    return mask ? { ...from, params_type: "inpaint", mask } : { ...from, params_type: "img2img" };
  });
}

export async function send(signal: AbortSignal): Promise<void> {
  const asked = JSON.parse(JSON.stringify(form)) as Form;
  const own = model.value!;
  const { initial } = asked;
  const painted = initial && isPainted(asked.mask) ? await upload(await toPng(render(asked.mask, initial.width, initial.height)), signal) : null;
  const size = initial ?? asked.size ?? own;
  const about = { batch: `${Date.now()}-${drawSeed()}`, title: asked.prompt, width: size.width, height: size.height };
  await submit(about, tasks(asked, own, painted), signal);
  if (!form.locked) form.seed = drawSeed();
}

/** Takes a picture to start from, brought to a size that the model makes, so that a mask on it is as large as what is made. */
export async function start(file: Blob): Promise<void> {
  const picture = await decode(file);
  const size = fit(picture, model.value!, can.value!);
  const { left, top, width, height } = crop(picture, size);
  const canvas = Object.assign(document.createElement("canvas"), size);
  const context = canvas.getContext("2d")!;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, left, top, width, height, 0, 0, size.width, size.height);
  const blob = await upload(await toPng(canvas));
  Object.assign(form, { initial: { ...size, blob }, mask: empty() });
}

/** Makes the form what a job was. */
export function repeat(params: Prompted): void {
  Object.assign(form, {
    ...{ model: params.model ?? "", prompt: params.prompt, negative: params.negative_prompt ?? "", seed: params.seed ?? drawSeed(), locked: true },
    ...{ steps: params.steps ?? null, guidance: params.cfg_scale ?? null, scheduler: params.scheduler ?? "" },
    ...{ size: sizeOf(params), initial: "initial_image" in params ? initialOf(params) : null, mask: empty() },
  });
  if ("strength" in params && params.strength) form.strength = params.strength;
}

function sizeOf({ width, height }: Prompted): Size | null {
  return width && height ? { width, height } : null;
}

function initialOf(params: Prompted & { initial_image: string }): Initial | null {
  const size = sizeOf(params);
  return size && { ...size, blob: params.initial_image };
}
