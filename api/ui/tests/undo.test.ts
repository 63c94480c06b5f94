import { expect, it } from "vitest";
import { useUndo } from "../src/undo";

it("takes back, takes forth, and forgets what was taken back once something else is done", () => {
  const steps = useUndo("a");
  expect(steps.canUndo.value).toBe(false);
  steps.note("b");
  steps.note("c");
  expect([steps.undo(), steps.undo(), steps.undo()]).toEqual(["b", "a", "a"]);
  expect(steps.redo()).toBe("b");
  steps.note("d");
  expect(steps.canRedo.value).toBe(false);
  expect([steps.redo(), steps.undo()]).toEqual(["d", "b"]);
});

it("takes quick changes of one thing as one", () => {
  let time = 0;
  const steps = useUndo(0, () => time);
  steps.note(1, "x");
  time += 100;
  steps.note(2, "x");
  time += 100;
  steps.note(3, "y");
  time += 5000;
  steps.note(4, "y");
  expect([steps.undo(), steps.undo(), steps.undo()]).toEqual([3, 2, 0]);
});

it("starts anew", () => {
  const steps = useUndo("a");
  steps.note("b");
  steps.clear("z");
  expect([steps.canUndo.value, steps.current.value]).toEqual([false, "z"]);
});
