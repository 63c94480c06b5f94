/** What the page asks for, and the pictures as they come. */
import { computed, reactive, ref, shallowRef } from "vue";
import type { LocationQuery } from "vue-router";
import { ask, client } from "../../api/client";
import { isAbort } from "../../api/trouble";
import { type Picture, pictures } from "../../pictures";
import { drawSeed, seedAt } from "../../seeds";
import { complain } from "../../state/toasts";

export interface Settings {
  model: string;
  psi: number;
  /** The picture around which the others are drawn, and how far from it. */
  centre: Picture | null;
  sd: number;
  noise: string;
  /** "" for any. */
  label: string;
  count: number;
  seed: number;
  locked: boolean;
}

export const DEFAULTS: Omit<Settings, "model" | "seed" | "locked"> = { psi: 0.7, centre: null, sd: 0.3, noise: "random", label: "", count: 12 };

/** The settings that a link names; a link with a seed keeps it. Absent values mean what they mean for the server: psi 1. */
export function readQuery(query: LocationQuery): Partial<Settings> {
  const found: Partial<Settings> = {};
  const number = (name: string) => (typeof query[name] === "string" && query[name] !== "" ? Number(query[name]) : NaN);
  const inside = (value: number, low: number, high: number) => value >= low && value <= high;
  if (Number.isInteger(number("seed")) && inside(number("seed"), 0, 2 ** 32 - 1)) {
    Object.assign(found, { seed: number("seed"), locked: true, psi: 1 });
  }
  if (inside(number("psi"), 0.01, 2)) found.psi = number("psi");
  if (Number.isInteger(number("count")) && inside(number("count"), 1, 16)) found.count = number("count");
  if (typeof query.label === "string") found.label = query.label;
  if (typeof query.noise === "string") found.noise = query.noise;
  return found;
}

/** The other way: what a link to these settings says. */
export function writeQuery({ seed, psi, noise, label, count }: Settings): Record<string, string> {
  const query: Record<string, string> = { seed: String(seed), psi: String(psi), count: String(count) };
  if (noise !== "random") query.noise = noise;
  if (label) query.label = label;
  return query;
}

const AT_ONCE = 4; // pictures of one request: few enough that the first ones are soon there
const REQUESTS = 2;

/** Parts of a request for `count` pictures: the first seed and how many. */
export function parts(seed: number, count: number): { seed: number; count: number }[] {
  const starts = Array.from({ length: Math.ceil(count / AT_ONCE) }, (_, part) => part * AT_ONCE);
  return starts.map((start) => ({ seed: seedAt(seed, start), count: Math.min(AT_ONCE, count - start) }));
}

export function useGenerating() {
  const settings = reactive<Settings>({ model: "", ...DEFAULTS, seed: drawSeed(), locked: false });
  const made = shallowRef<(Picture | null)[]>([]);
  const running = ref<AbortController | null>(null);
  const busy = computed(() => running.value !== null);

  async function generate(): Promise<void> {
    running.value?.abort();
    const control = (running.value = new AbortController());
    if (!settings.locked && made.value.length) settings.seed = drawSeed();
    const { model, psi, noise, label, seed, count } = settings;
    const latent = settings.centre?.latent ?? null;
    const around = latent ? { sd: settings.sd } : {}; // without a centre, networks that normalise latents would not feel it
    const recipe = { psi, noise, ...around, ...(label ? { label } : {}), ...(latent ? { latent: true } : {}) };
    const grid: (Picture | null)[] = Array(count).fill(null);
    made.value = grid;
    const queue = parts(seed, count).map((part, place) => ({ ...part, place: place * AT_ONCE }));
    const work = async () => {
      for (let part = queue.shift(); part; part = queue.shift()) {
        const query = { seed: part.seed, count: part.count, psi, noise: noise as "random", ...around, ...(label ? { label } : {}) };
        const { signal } = control;
        const send = () => client.POST("/{model_id}/generate", { params: { path: { model_id: model }, query }, body: latent ? { latent } : undefined, signal });
        const answer = await ask(send, { signal });
        grid.splice(part.place, part.count, ...pictures(answer, recipe));
        if (made.value === grid || running.value === control) made.value = [...grid];
      }
    };
    try {
      await Promise.all(Array.from({ length: REQUESTS }, work));
    } catch (error) {
      control.abort();
      if (!isAbort(error)) complain(error);
    } finally {
      if (running.value === control) {
        running.value = null;
        made.value = made.value.filter((picture) => picture !== null);
      }
    }
  }

  const cancel = () => running.value?.abort();
  return { settings, made, busy, generate, cancel };
}
