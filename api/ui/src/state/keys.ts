/** Keyboard shortcuts, which the help dialog lists. */
import { getCurrentInstance, onActivated, onDeactivated, onMounted, onUnmounted, shallowReactive } from "vue";

export interface Shortcut {
  /** Such as "mod+enter", "escape", "?". `mod` is Ctrl, or Cmd on a Mac. */
  keys: string;
  does: string;
  run(event: KeyboardEvent): void;
  /** Also while a text is typed. */
  typing?: boolean;
}

export const shortcuts = shallowReactive<Shortcut[]>([]);
export const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

/** While the component is seen: a page that was left stays mounted. */
export function useKeys(...added: Shortcut[]): void {
  const own = getCurrentInstance()!;
  const remove = () => {
    for (const one of added) if (shortcuts.includes(one)) shortcuts.splice(shortcuts.indexOf(one), 1);
  };
  const add = () => {
    remove(); // a page's first time, it is both mounted and activated
    if (own.proxy!.$el.isConnected) shortcuts.unshift(...added); // what is mounted late may belong to a page that was left
  };
  onMounted(add);
  onActivated(add);
  onDeactivated(remove);
  onUnmounted(remove);
}

export function spell(event: KeyboardEvent): string {
  const parts = [];
  if (event.ctrlKey || event.metaKey) parts.push("mod");
  if (event.altKey) parts.push("alt");
  if (event.shiftKey && event.key.length > 1) parts.push("shift");
  return [...parts, event.key.toLowerCase()].join("+");
}

const ANYWHERE = ["mod+enter", "escape"];
const TEXTS = "textarea, input:not([type=range], [type=checkbox], [type=radio])";
const PRESSED = "button, a, summary, input, select, textarea, [role=button]";

/** Whether what has the focus needs the keys for itself. */
function needs(target: HTMLElement, keys: string): boolean {
  if (keys === " ") return target.matches(PRESSED);
  return target.matches(keys.startsWith("mod+") ? TEXTS : `${TEXTS}, select`);
}

export function listen(event: KeyboardEvent): void {
  if (event.defaultPrevented || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return; // it has keys of its own
  const target = event.target as HTMLElement;
  const keys = spell(event);
  const found = shortcuts.find((one) => one.keys === keys && (one.typing || ANYWHERE.includes(keys) || !needs(target, keys)));
  if (found) {
    event.preventDefault();
    if (target.matches(TEXTS)) target.dispatchEvent(new Event("change")); // what was typed counts before the field is left
    found.run(event);
  }
}

const NAMES: Record<string, string> = { mod: isMac ? "⌘" : "Ctrl", enter: "↵", escape: "Esc", shift: "⇧", arrowleft: "←", arrowright: "→", " ": "Space" };

export function display(keys: string): string[] {
  return keys.split("+").map((part) => NAMES[part] ?? part.toUpperCase());
}
