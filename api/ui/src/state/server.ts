/** What the server is, and its models. */
import { computed, reactive } from "vue";
import { type Model, type Schemas, ask, client } from "../api/client";

export const server = reactive({
  about: null as Schemas["Studio"] | null,
  models: null as Model[] | null,
  /** Each model's "ready", "loading" or "failed: …". */
  states: {} as Record<string, string>,
});

export const ganModels = computed(() => able("Generate"));
export const diffusionModels = computed(() => able("Diffuse"));

export function able(kind: string): Model[] {
  return server.models?.filter((model) => model.kinds.includes(kind)) ?? [];
}

export function findModel(id: string): Model | undefined {
  return server.models?.find((model) => model.id === id);
}

let loading: Promise<void> | null = null;

/** Asks once for all pages; the models come as soon as they are loaded. */
export function load(): Promise<void> {
  return (loading ??= loadNow().catch((error) => {
    loading = null;
    throw error;
  }));
}

async function loadNow(): Promise<void> {
  const about = ask(() => client.GET("/ui/server")).then((found) => (server.about = found));
  void watchStates();
  server.models = await ask(() => client.GET("/models/"));
  await about;
}

export async function watchStates(): Promise<void> {
  const response = await fetch(new URL("../readyz", document.baseURI)).catch(() => null);
  const told = (await response?.json().catch(() => null)) as { models?: Record<string, string> } | null;
  server.states = told?.models ?? {};
  if (Object.values(server.states).includes("loading")) setTimeout(watchStates, 700);
}
