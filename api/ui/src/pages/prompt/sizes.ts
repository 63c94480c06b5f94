/** Sizes that a diffusion model makes. */

export interface Bounds {
  min_size: number;
  max_size: number;
  size_unit: number;
}
export interface Size {
  width: number;
  height: number;
}

const SHAPES: [number, number][] = [[1, 1], [4, 3], [3, 4], [3, 2], [2, 3], [16, 9], [9, 16]];

/** A side as the model can make it. */
export function round(side: number, { min_size, max_size, size_unit }: Bounds): number {
  const low = Math.ceil(min_size / size_unit) * size_unit;
  const high = Math.floor(max_size / size_unit) * size_unit;
  return Math.min(Math.max(Math.round(side / size_unit) * size_unit, low), high);
}

/** The model's own size, then common shapes of about the same area, then twice as large where that is possible. */
export function sizes(own: Size, bounds: Bounds): Size[] {
  const area = own.width * own.height;
  const shape = ([width, height]: [number, number], times: number): Size => {
    const unit = Math.sqrt((area * times * times) / (width * height));
    return { width: round(width * unit, bounds), height: round(height * unit, bounds) };
  };
  const all = [own, ...SHAPES.map((one) => shape(one, 1)), ...SHAPES.slice(0, 3).map((one) => shape(one, 2))];
  return all.filter((size, place) => all.findIndex((other) => other.width === size.width && other.height === size.height) === place);
}

/** The size that a picture is brought to, to start from: of its shape, as far as the bounds allow, and about the model's own area. */
export function fit(picture: Size, own: Size, bounds: Bounds): Size {
  const { width, height } = picture;
  const wanted = Math.max(Math.sqrt((own.width * own.height) / (width * height)), bounds.min_size / Math.min(width, height));
  const times = Math.min(wanted, bounds.max_size / Math.max(width, height));
  return { width: round(width * times, bounds), height: round(height * times, bounds) };
}

/** The middle part of a picture that has the shape of `size`. */
export function crop(picture: Size, size: Size): Size & { left: number; top: number } {
  const times = Math.min(picture.width / size.width, picture.height / size.height);
  const [width, height] = [size.width * times, size.height * times];
  return { left: (picture.width - width) / 2, top: (picture.height - height) / 2, width, height };
}
