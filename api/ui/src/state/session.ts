/** Who is signed in, where the server asks. */
import { reactive } from "vue";
import { recall, remember } from "../storage";

interface Kept {
  token: string;
  name: string | null;
  expires: number;
}

export const session = reactive({ token: "", name: null as string | null, expires: 0 });
export const gate = reactive({ open: false, reason: "" });
const waiting = new Set<() => void>();

export function restore(now = Date.now()): void {
  const kept = recall<Kept | null>("session", null);
  if (kept && kept.expires > now) Object.assign(session, kept);
}

export function signIn(token: string, name: string | null, seconds: number): void {
  const kept: Kept = { token, name, expires: Date.now() + seconds * 1000 };
  Object.assign(session, kept);
  remember("session", kept);
  gate.open = false;
  for (const resume of [...waiting]) resume();
}

export function signOut(): void {
  Object.assign(session, { token: "", name: null, expires: 0 });
  remember("session", null);
}

/** Opens the dialog; resolves when somebody has signed in, rejects when `signal` is aborted. */
export function askToSignIn(reason: string, signal?: AbortSignal): Promise<void> {
  Object.assign(gate, { open: true, reason });
  return new Promise((resolve, reject) => {
    const resume = () => end(resolve);
    const abort = () => end(() => reject(signal?.reason));
    const end = (settle: () => void) => {
      waiting.delete(resume);
      signal?.removeEventListener("abort", abort);
      settle();
    };
    waiting.add(resume);
    signal?.addEventListener("abort", abort);
  });
}
