import { describe, expect, it } from "vitest";
import { combine, decode, encode, fromRows, toRows, walkWeights } from "../src/arrays";

const row = (...values: number[]) => Float32Array.from(values);

describe("arrays", () => {
  it("come back as they were, by a header of NumPy's form", () => {
    const text = encode({ shape: [2, 3], values: row(1, -2.5, 3, 0.1, 5, 6) });
    expect(decode(text)).toEqual({ shape: [2, 3], values: row(1, -2.5, 3, 0.1, 5, 6) });
    expect(decode(encode({ shape: [2], values: row(7, 8) })).shape).toEqual([2]);
    const raw = atob(text);
    expect(raw.length).toBe(128 + 24);
    expect(raw.slice(10, 128)).toMatch(/^\{'descr': '<f4', 'fortran_order': False, 'shape': \(2, 3\), \} *\n$/);
    expect(raw.charCodeAt(8)).toBe(118);
  });

  it("that are none of ours are refused", () => {
    expect(() => decode(btoa("something else entirely"))).toThrow("no array");
    expect(() => decode(btoa(atob(encode({ shape: [4], values: row(1, 2, 3, 4) })).slice(0, -4)))).toThrow("not whole");
  });
});

describe("styles", () => {
  it("are one row a level, from w, from w+ and from a w for each level", () => {
    const one = encode({ shape: [2], values: row(1, 2) });
    expect(toRows([one], 3)).toEqual([row(1, 2), row(1, 2), row(1, 2)]);
    expect(toRows([fromRows([row(1, 2), row(3, 4)])], 2)).toEqual([row(1, 2), row(3, 4)]);
    expect(toRows([one, encode({ shape: [2], values: row(5, 6) })], 2)).toEqual([row(1, 2), row(5, 6)]);
    expect(() => toRows([fromRows([row(1, 2), row(3, 4)])], 5)).toThrow("2 levels; the model has 5");
  });

  it("are combined by weights", () => {
    expect(combine([[row(1, 2)], [row(3, 6)]], [0.25, 0.75])).toEqual([row(2.5, 5)]);
  });
});

describe("a walk", () => {
  it("goes straight from the first point to the last", () => {
    expect(walkWeights(3, 0, 5, false)).toEqual([1, 0, 0]);
    expect(walkWeights(3, 1, 5, false)).toEqual([0.5, 0.5, 0]);
    expect(walkWeights(3, 4, 5, false)).toEqual([0, 0, 1]);
  });

  it("passes through all points of a loop, by weights whose sum is 1", () => {
    for (const points of [2, 3, 5]) {
      for (let place = 0; place < points; place++) {
        const weights = walkWeights(points, place * 4, points * 4, true);
        weights.forEach((weight, other) => expect(weight).toBeCloseTo(other === place ? 1 : 0));
      }
      for (let frame = 0; frame < 17; frame++) expect(walkWeights(points, frame, 17, true).reduce((one, other) => one + other)).toBeCloseTo(1);
    }
    // Half-way between the second and the third of four points: (−1, 9, 9, −1) / 16.
    walkWeights(4, 3, 8, true).forEach((weight, place) => expect(weight).toBeCloseTo([-1, 9, 9, -1][place]! / 16));
  });
});
