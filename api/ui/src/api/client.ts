/** The server, by the types of its own OpenAPI document. */
import createClient from "openapi-fetch";
import { session } from "../state/session";
import { askToSignIn, signOut } from "../state/session";
import type { components, paths } from "./schema";
import { Trouble, isAbort, readTrouble } from "./trouble";
import { waitFor } from "./waiting";

export type Schemas = components["schemas"];
export type Model = Schemas["Model"];

/** Where the routes are: the folder above `/ui/`. */
export const base = new URL("../", document.baseURI);
export const client = createClient<paths>({ baseUrl: base.href.replace(/\/$/, "") });

client.use({
  onRequest({ request }) {
    if (session.token) request.headers.set("Authorization", `Bearer ${session.token}`);
    return request;
  },
});

interface Answer<T> {
  data?: T;
  error?: unknown;
  response: Response;
}

export interface Asking {
  signal?: AbortSignal;
  /** Give up at once instead of waiting for a server that is busy or away. */
  impatient?: boolean;
}

/**
 * Sends until it is answered: waits where the server is busy or away, has the person sign in where that is asked for.
 * Throws `Trouble` for everything that trying again does not help, and an AbortError once `signal` says so.
 */
export async function ask<T>(send: () => Promise<Answer<T>>, { signal, impatient = false }: Asking = {}): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await once(send);
    } catch (error) {
      signal?.throwIfAborted();
      if (!(error instanceof Trouble) || impatient) throw error;
      if (error.kind === "signin") {
        signOut();
        await askToSignIn(error.message, signal);
      } else if (error.retryAfter !== null) {
        await waitFor(error, Math.max(error.retryAfter, error.kind === "offline" ? Math.min(2 ** tries, 15) : 0), signal);
      } else throw error;
    }
  }
}

async function once<T>(send: () => Promise<Answer<T>>): Promise<T> {
  let answer: Answer<T>;
  try {
    answer = await send();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new Trouble("offline", "The server cannot be reached.", 1);
  }
  if (!answer.response.ok) throw readTrouble(answer.response, answer.error);
  return answer.data as T;
}

/** A URL that a picture, a stream or a socket can be opened by: these cannot send headers. */
export function openUrl(path: string, query: Record<string, string | number> = {}): string {
  const url = new URL(path.replace(/^\//, ""), base);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, String(value));
  if (session.token) url.searchParams.set("token", session.token);
  return url.href;
}

/** The same for a WebSocket. */
export function socketUrl(path: string): string {
  return openUrl(path).replace(/^http/, "ws");
}
