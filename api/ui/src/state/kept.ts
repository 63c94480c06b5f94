/** Pictures that somebody wants to go on with. They stay in this browser. */
import { reactive } from "vue";
import type { Picture } from "../pictures";

export const kept = reactive({ pictures: [] as Picture[], loaded: false });

/** The picture that is being dragged, for whoever it is dropped upon. */
export const dragging = reactive({ picture: null as Picture | null });

function open(): Promise<IDBDatabase> {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("studio", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("kept", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function change(act: (store: IDBObjectStore) => IDBRequest): Promise<unknown> {
  return open().then(
    (database) =>
      new Promise((resolve, reject) => {
        const request = act(database.transaction("kept", "readwrite").objectStore("kept"));
        request.transaction!.oncomplete = () => (database.close(), resolve(request.result));
        request.transaction!.onabort = () => (database.close(), reject(request.error));
      }),
  );
}

export async function loadKept(): Promise<void> {
  const found = (await change((store) => store.getAll()).catch(() => [])) as (Picture & { at: number })[];
  kept.pictures = found.sort((one, other) => one.at - other.at);
  kept.loaded = true;
}

export function isKept(picture: Picture): boolean {
  return kept.pictures.some((one) => one.id === picture.id);
}

export function keep(...pictures: Picture[]): void {
  for (const picture of pictures) {
    if (isKept(picture)) continue;
    kept.pictures.push(picture);
    const plain = JSON.parse(JSON.stringify(picture)) as Picture; // what is reactive cannot be stored
    void change((store) => store.put({ ...plain, at: Date.now() + kept.pictures.length / 1000 })).catch(() => undefined);
  }
}

/** Lets it go; the answer takes it back. */
export function letGo(picture: Picture): () => void {
  const place = kept.pictures.findIndex((one) => one.id === picture.id);
  if (place >= 0) kept.pictures.splice(place, 1);
  void change((store) => store.delete(picture.id)).catch(() => undefined);
  return () => keep(picture);
}
