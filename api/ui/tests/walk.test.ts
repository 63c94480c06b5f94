import { expect, it } from "vitest";
import { order } from "../src/pages/walk/walk";

it("draws few frames of all the walk at first, and each of them once", () => {
  expect(order(10)).toEqual([0, 8, 4, 2, 6, 1, 3, 5, 7, 9]);
  expect(order(300).sort((one, other) => one - other)).toEqual(Array.from({ length: 300 }, (_, place) => place));
});
