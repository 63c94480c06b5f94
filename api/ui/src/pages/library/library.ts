/** What is looked for in the history, what was found of it, and what is done with it. */
import { computed, reactive, ref, shallowRef } from "vue";
import { type Schemas, ask, client } from "../../api/client";
import { isAbort } from "../../api/trouble";
import { download } from "../../pictures";
import { type Details, type Kept, details } from "../../state/images";
import { complain, toast } from "../../state/toasts";

export const filters = reactive({ text: "", model: "", label: "", tag: "", collection: "", starred: false });
export const filtered = computed(() => Object.values(filters).some(Boolean));
export const images = shallowRef<Kept[]>([]);
export const loaded = ref(false);
export const chosen = reactive(new Set<string>());
export const collections = shallowRef<Schemas["Gathering"][]>([]);
export const tags = shallowRef<Schemas["CountedTag"][]>([]);

const PAGE = 200;
export const MOST_CHOSEN = 1000; // what one request takes
let next: string | null = null;
let control = new AbortController();
let busy = false;

function query() {
  const { text, model, label, tag, collection, starred } = filters;
  return {
    ...(text.trim() ? { text: text.trim() } : {}),
    ...(model ? { model } : {}),
    ...(label ? { label } : {}),
    ...(tag ? { tag: [tag] } : {}),
    ...(collection ? { collection } : {}),
    ...(starred ? { starred: true } : {}),
  };
}

/** Looks again from the newest on. What is shown stays until there is something else. */
export async function look(): Promise<void> {
  control.abort();
  control = new AbortController();
  await fetchPage(null);
}

/** Fetches what comes after the last one. */
export async function more(): Promise<void> {
  if (loaded.value && next !== null && !busy) await fetchPage(next);
}

async function fetchPage(cursor: string | null): Promise<void> {
  const { signal } = control;
  busy = true;
  try {
    const asked = { ...query(), limit: PAGE, ...(cursor ? { cursor } : {}) };
    const page = await ask(() => client.GET("/images", { params: { query: asked }, signal }), { signal });
    images.value = cursor ? [...images.value, ...page.images] : page.images;
    next = page.next;
    loaded.value = true;
    if (!cursor) chosen.clear();
  } catch (error) {
    if (!isAbort(error)) complain(error);
  } finally {
    if (!signal.aborted) busy = false;
  }
}

/** What pictures are gathered in. */
export async function gather(): Promise<void> {
  const [found, names] = await Promise.all([
    ask(() => client.GET("/collections", { params: { query: { limit: 200 } } })),
    ask(() => client.GET("/tags")),
  ]);
  collections.value = found.collections;
  tags.value = names;
}

export async function change(image: Kept, body: Partial<Schemas["ChangedImage"]>): Promise<Details> {
  const changed = await ask(() => client.PATCH("/images/{image_id}", { params: { path: { image_id: image.id } }, body: body as Schemas["ChangedImage"] }));
  images.value = images.value.map((one) => (one.id === changed.id ? changed : one));
  if (body.tags) void gather().catch(complain);
  return changed;
}

export async function star(some: Kept[], starred: boolean): Promise<void> {
  for (const image of some) await change(image, { starred });
}

/** Deletes pictures; for a while they can be had back. */
export async function remove(some: Kept[]): Promise<void> {
  const ids = new Set(some.map((image) => image.id));
  const before = images.value;
  images.value = before.filter((image) => !ids.has(image.id));
  for (const id of ids) chosen.delete(id);
  for (const id of ids) await ask(() => client.DELETE("/images/{image_id}", { params: { path: { image_id: id } } }));
  const undo = () => void restore(some, before).catch(complain);
  toast(ids.size === 1 ? "Picture deleted" : `${ids.size} pictures deleted`, { action: { name: "Undo", run: undo }, seconds: 10 });
}

async function restore(some: Kept[], before: Kept[]): Promise<void> {
  for (const { id } of some) await ask(() => client.POST("/images/{image_id}/restore", { params: { path: { image_id: id } } }));
  const old = new Set(before.map((image) => image.id));
  const there = new Set([...images.value, ...some].map((image) => image.id));
  images.value = [...images.value.filter((image) => !old.has(image.id)), ...before.filter((image) => there.has(image.id))];
}

export async function exportZip(ids: string[]): Promise<void> {
  toast(`Packing ${ids.length} ${ids.length === 1 ? "picture" : "pictures"}…`);
  const zip = await ask(() => client.POST("/images/export", { body: { ids }, parseAs: "blob" }));
  download(zip as unknown as Blob, "pictures.zip");
}

/** Takes a PNG of ours in, by the recipe that it carries. */
export async function recall(file: Blob): Promise<Details> {
  const send = () =>
    client.POST("/images/import", { body: file as never, bodySerializer: (body) => body as never, headers: { "Content-Type": "image/png" } });
  const { id } = await ask(send);
  const found = await details(id);
  images.value = [found, ...images.value.filter((image) => image.id !== id)];
  return found;
}

/** Puts pictures in a collection, which is made if there is none of that name. */
export async function collect(ids: string[], name: string): Promise<void> {
  const known = collections.value.find((one) => one.name.toLowerCase() === name.trim().toLowerCase());
  const { id } = known ?? (await ask(() => client.POST("/collections", { body: { name: name.trim() } })));
  await move(id, { add: ids, remove: [] });
}

export async function takeOut(ids: string[], collection: string): Promise<void> {
  await move(collection, { add: [], remove: ids });
  if (filters.collection === collection) await look();
}

async function move(collection: string, body: { add: string[]; remove: string[] }): Promise<void> {
  await ask(() => client.POST("/collections/{collection_id}/images", { params: { path: { collection_id: collection } }, body }));
  await gather();
}

export async function forget(collection: string): Promise<void> {
  await ask(() => client.DELETE("/collections/{collection_id}", { params: { path: { collection_id: collection } } }));
  filters.collection = "";
  await gather();
}

export async function tag(ids: string[], name: string): Promise<void> {
  tags.value = await ask(() => client.POST("/tags/{name}/images", { params: { path: { name } }, body: { add: ids, remove: [] } }));
  const plain = name.trim().replace(/\s+/g, " ").toLowerCase();
  images.value = images.value.map((image) => (ids.includes(image.id) && !image.tags.includes(plain) ? { ...image, tags: [...image.tags, plain] } : image));
}
