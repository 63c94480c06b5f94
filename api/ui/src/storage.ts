/** What this browser remembers. A browser that may not, or remembers nonsense, forgets. */

export function recall<T>(name: string, otherwise: T): T {
  try {
    return (JSON.parse(localStorage.getItem(`studio.${name}`) ?? "null") as T | null) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function remember(name: string, value: unknown): void {
  try {
    if (value === null) localStorage.removeItem(`studio.${name}`);
    else localStorage.setItem(`studio.${name}`, JSON.stringify(value));
  } catch {
    // Full, or forbidden: it lasts as long as the page.
  }
}
