/** Vectors as the API sends them: base64 of `.npy` files of version 1, float32 in C order. */
export interface Floats {
  shape: number[];
  values: Float32Array;
}

const MAGIC = atob("k05VTVBZAQA="); // "\x93NUMPY", and version 1.0
const HEADER = 128; // bytes before the values, a multiple of 64, as NumPy writes
const LENGTH = atob("dgA="); // of what follows it there: 118, in two bytes

/** Throws an `Error` for what is no such file. */
export function decode(text: string): Floats {
  const raw = atob(text);
  const start = 10 + raw.charCodeAt(8) + 256 * raw.charCodeAt(9);
  const header = raw.slice(10, start);
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)?.[1];
  if (!raw.startsWith(MAGIC) || !header.includes("'<f4'") || header.includes("True") || shape === undefined) throw new Error("This is no array of ours.");
  const bytes = Uint8Array.from(raw.slice(start), (letter) => letter.charCodeAt(0));
  const found = { shape: shape.split(",").filter((part) => part.trim()).map(Number), values: new Float32Array(bytes.buffer) };
  if (found.shape.reduce((product, side) => product * side, 1) !== found.values.length) throw new Error("This array is not whole.");
  return found;
}

export function encode({ shape, values }: Floats): string {
  const told = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape.join(", ")}${shape.length === 1 ? "," : ""}), }`;
  const header = `${told.padEnd(HEADER - 11)}\n`;
  let raw = `${MAGIC}${LENGTH}${header}`;
  for (const byte of new Uint8Array(values.buffer, values.byteOffset, values.byteLength)) raw += String.fromCharCode(byte);
  return btoa(raw);
}

/** A picture's styles as one row for each level, whether they are one w, one w+ or a w for each level. */
export function toRows(styles: string[], levels: number): Float32Array[] {
  const arrays = styles.map(decode);
  const first = arrays[0];
  if (!first) throw new Error("This picture has no styles.");
  if (arrays.length > 1) return checked(arrays.map((array) => array.values), levels);
  if (first.shape.length === 1) return Array<Float32Array>(levels).fill(first.values);
  const width = first.shape[1]!;
  return checked(Array.from({ length: first.shape[0]! }, (_, level) => first.values.subarray(level * width, (level + 1) * width)), levels);
}

function checked(rows: Float32Array[], levels: number): Float32Array[] {
  if (rows.length !== levels) throw new Error(`These styles have ${rows.length} levels; the model has ${levels}.`);
  return rows;
}

/** One w+, (levels, width). */
export function fromRows(rows: Float32Array[]): string {
  const width = rows[0]!.length;
  const values = new Float32Array(rows.length * width);
  rows.forEach((row, level) => values.set(row, level * width));
  return encode({ shape: [rows.length, width], values });
}

/** Σ weight · rows: what `weights` with a sum of 1 make of several pictures' rows. */
export function combine(pictures: Float32Array[][], weights: number[]): Float32Array[] {
  return pictures[0]!.map((first, level) => {
    const sum = new Float64Array(first.length);
    pictures.forEach((rows, place) => rows[level]!.forEach((value, column) => (sum[column]! += weights[place]! * value)));
    return Float32Array.from(sum);
  });
}

/** Of each point's weight at frame `frame` of `frames`: straight from point to point, or by Catmull and Rom's cubic through a closed loop. */
export function walkWeights(points: number, frame: number, frames: number, loop: boolean): number[] {
  const weights = Array<number>(points).fill(0);
  const where = loop ? (frame * points) / frames : (frame * (points - 1)) / Math.max(1, frames - 1);
  const start = loop ? Math.floor(where) : Math.min(Math.floor(where), points - 2);
  const t = where - start;
  const add = (place: number, weight: number) => (weights[(place + points) % points]! += weight);
  if (loop) {
    add(start - 1, (-t + 2 * t ** 2 - t ** 3) / 2);
    add(start, (2 - 5 * t ** 2 + 3 * t ** 3) / 2);
    add(start + 1, (t + 4 * t ** 2 - 3 * t ** 3) / 2);
    add(start + 2, (-(t ** 2) + t ** 3) / 2);
  } else {
    add(start, 1 - t);
    add(start + 1, t);
  }
  return weights;
}
