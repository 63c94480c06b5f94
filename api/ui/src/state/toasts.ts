/** Short notes at the screen's edge. */
import { reactive } from "vue";

export interface Toast {
  id: number;
  text: string;
  tone: "calm" | "bad";
  action?: { name: string; run: () => void };
}

export const toasts = reactive<Toast[]>([]);
let last = 0;

export function toast(text: string, options: Partial<Omit<Toast, "id" | "text">> & { seconds?: number } = {}): void {
  const { seconds = options.action ? 8 : 4, ...rest } = options;
  const note: Toast = { id: ++last, text, tone: "calm", ...rest };
  toasts.push(note);
  if (toasts.length > 3) toasts.shift();
  setTimeout(() => dismiss(note.id), seconds * 1000);
}

export function dismiss(id: number): void {
  const place = toasts.findIndex((note) => note.id === id);
  if (place >= 0) toasts.splice(place, 1);
}

export function complain(error: unknown): void {
  toast(error instanceof Error ? error.message : String(error), { tone: "bad", seconds: 8 });
}
