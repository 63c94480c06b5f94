export const SEEDS = 2 ** 32;

/** Short enough to be read and told. */
export function drawSeed(): number {
  return crypto.getRandomValues(new Uint32Array(1))[0]! % 1_000_000;
}

/** What was typed as a seed, or null where it is none. */
export function readSeed(text: string): number | null {
  const seed = Number(text);
  return text.trim() && Number.isInteger(seed) && seed >= 0 && seed < SEEDS ? seed : null;
}

/** The seed of picture `index` of a request. */
export function seedAt(first: number, index: number): number {
  return (first + index) % SEEDS;
}
