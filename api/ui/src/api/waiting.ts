/** Requests that wait until the server has time again. The banner shows them; nothing typed is lost meanwhile. */
import { shallowReactive } from "vue";
import type { Trouble } from "./trouble";

export interface Wait {
  trouble: Trouble;
  /** Milliseconds since the epoch. */
  until: number;
  now(): void;
  stop(): void;
}

export const waits = shallowReactive(new Set<Wait>());

/** Resolves when it is time to try again; rejects with the trouble when the person stops it, or when `signal` does. */
export function waitFor(trouble: Trouble, seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const end = (settle: () => void) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      waits.delete(wait);
      settle();
    };
    const abort = () => end(() => reject(signal?.reason));
    const wait: Wait = {
      trouble,
      until: Date.now() + seconds * 1000,
      now: () => end(resolve),
      stop: () => end(() => reject(trouble)),
    };
    const timer = setTimeout(wait.now, seconds * 1000);
    waits.add(wait);
    if (signal?.aborted) abort();
    else signal?.addEventListener("abort", abort);
  });
}
