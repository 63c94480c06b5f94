/** Keyboard shortcuts, which the help dialog lists. */
import { onMounted, onUnmounted, reactive } from "vue";

export interface Shortcut {
  /** Such as "mod+enter", "escape", "?". `mod` is Ctrl, or Cmd on a Mac. */
  keys: string;
  does: string;
  run(event: KeyboardEvent): void;
  /** Also while a text is typed. */
  typing?: boolean;
}

export const shortcuts = reactive<Shortcut[]>([]);
export const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

export function useKeys(...added: Shortcut[]): void {
  onMounted(() => shortcuts.unshift(...added));
  onUnmounted(() => {
    for (const one of added) {
      const place = shortcuts.findIndex((known) => known.keys === one.keys && known.does === one.does);
      if (place >= 0) shortcuts.splice(place, 1);
    }
  });
}

export function spell(event: KeyboardEvent): string {
  const parts = [];
  if (event.ctrlKey || event.metaKey) parts.push("mod");
  if (event.altKey) parts.push("alt");
  if (event.shiftKey && event.key.length > 1) parts.push("shift");
  return [...parts, event.key.toLowerCase()].join("+");
}

export function listen(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing) return;
  const target = event.target as HTMLElement;
  const typing = target.matches("input:not([type=range]):not([type=checkbox]), textarea, select");
  if (document.querySelector("dialog[open]")) return; // it has keys of its own
  const keys = spell(event);
  const found = shortcuts.find((one) => one.keys === keys && (!typing || one.typing || keys.startsWith("mod") || keys === "escape"));
  if (found) {
    event.preventDefault();
    if (typing) target.dispatchEvent(new Event("change")); // what was typed counts before the field is left
    found.run(event);
  }
}

const NAMES: Record<string, string> = { mod: isMac ? "⌘" : "Ctrl", enter: "↵", escape: "Esc", shift: "⇧", arrowleft: "←", arrowright: "→", " ": "Space" };

export function display(keys: string): string[] {
  return keys.split("+").map((part) => NAMES[part] ?? part.toUpperCase());
}
