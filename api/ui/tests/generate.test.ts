import { describe, expect, it } from "vitest";
import { parts, readQuery, writeQuery } from "../src/pages/generate/generate";

describe("a link to settings", () => {
  it("says the same when it is read again", () => {
    const settings = { model: "faces", psi: 0.55, centre: null, sd: 0.3, noise: "none", label: "愛 & co", count: 4, seed: 7, locked: true };
    const { model: _, centre: __, sd: ___, ...rest } = settings;
    expect(readQuery(writeQuery(settings))).toEqual(rest);
  });
  it("means psi 1 where it names a seed alone, as the server does", () => {
    expect(readQuery({ seed: "7" })).toEqual({ seed: 7, locked: true, psi: 1 });
  });
  it("passes over what is out of bounds", () => {
    expect(readQuery({ seed: "-1", psi: "9", count: "99" })).toEqual({});
  });
});

describe("the parts of a request", () => {
  it("are all of it, in order", () => {
    expect(parts(7, 6)).toEqual([{ seed: 7, count: 4 }, { seed: 11, count: 2 }]);
    expect(parts(2 ** 32 - 2, 5).at(-1)).toEqual({ seed: 2, count: 1 });
  });
});
