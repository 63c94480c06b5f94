import { expect, it } from "vitest";
import { pick, ranges } from "../src/pages/mix/mix";

it("has ranges for any number of levels, which cover all of them", () => {
  expect(ranges(5)).toEqual({ coarse: [0, 1], middle: [2, 2], fine: [3, 4] });
  expect(ranges(18)).toEqual({ coarse: [0, 5], middle: [6, 11], fine: [12, 17] });
  for (let count = 3; count < 20; count++) {
    const { coarse, middle, fine } = ranges(count);
    expect([coarse[0], middle[0] - coarse[1], fine[0] - middle[1], fine[1]]).toEqual([0, 1, 1, count - 1]);
  }
});

it("takes the range's levels of the column", () => {
  expect(pick(1, 2, 5)).toEqual([0, 1, 1, 0, 0]);
});
