import { describe, expect, it } from "vitest";
import { begin, empty, isPainted, redo, undo } from "../src/pages/prompt/mask";
import { crop, fit, sizes } from "../src/pages/prompt/sizes";
import { type Event, type Job, progress, tell } from "../src/state/jobs";

const BOUNDS = { min_size: 256, max_size: 1024, size_unit: 64 };
const OWN = { width: 512, height: 512 };

describe("sizes", () => {
  it("are the model's own first, then what it can make, none twice", () => {
    const all = sizes(OWN, BOUNDS);
    expect(all[0]).toEqual(OWN);
    expect(all).toContainEqual({ width: 1024, height: 1024 });
    for (const { width, height } of all) for (const side of [width, height]) expect([side % 64, side >= 256, side <= 1024]).toEqual([0, true, true]);
    expect(new Set(all.map(({ width, height }) => `${width}x${height}`)).size).toBe(all.length);
  });
  it("of a picture to start from keep its shape and the model's area", () => {
    expect(fit({ width: 4000, height: 3000 }, OWN, BOUNDS)).toEqual({ width: 576, height: 448 });
    expect(fit({ width: 20, height: 20 }, OWN, BOUNDS)).toEqual(OWN);
    expect(fit({ width: 9000, height: 500 }, OWN, BOUNDS)).toEqual({ width: 1024, height: 256 });
    expect(fit({ width: 900, height: 600 }, { width: 64, height: 64 }, { min_size: 64, max_size: 128, size_unit: 16 })).toEqual({ width: 96, height: 64 });
  });
  it("that are of another shape take the middle of a picture", () => {
    expect(crop({ width: 900, height: 600 }, { width: 96, height: 64 })).toEqual({ left: 0, top: 0, width: 900, height: 600 });
    expect(crop({ width: 9000, height: 500 }, { width: 1024, height: 256 })).toEqual({ left: 3500, top: 0, width: 2000, height: 500 });
  });
});

describe("a mask", () => {
  const stroke = { size: 5, erase: false, points: [[1, 1]] as [number, number][] };
  it("takes strokes back and again, until something new is painted", () => {
    const two = begin(begin(empty(), stroke), { ...stroke, size: 9 });
    expect(undo(two).strokes).toEqual([stroke]);
    expect(redo(undo(two))).toEqual(two);
    expect(redo(begin(undo(two), stroke)).strokes).toHaveLength(2);
    expect(undo(empty())).toEqual(empty());
  });
  it("that was only erased is none", () => {
    expect(isPainted(begin(empty(), { ...stroke, erase: true }))).toBe(false);
    expect(isPainted(begin(empty(), stroke))).toBe(true);
  });
});

describe("a job", () => {
  const job = () => ({ state: "pending", step: 0, steps: 10, since: null, wait: null, position: null, width: 1, height: 1 }) as unknown as Job;
  const event = (fields: object) => fields as Event;
  it("tells its place, its steps and the time that is left", () => {
    const one = job();
    tell(one, event({ event_type: "pending", position: 3, wait: 12.2 }));
    expect(progress(one)).toBe("3 before it · about 12 s");
    tell(one, event({ event_type: "progress", step: 2, steps: 10 }), 1000);
    tell(one, event({ event_type: "progress", step: 4, steps: 10 }), 2000);
    expect(progress(one)).toBe("Step 4 of 10 · about 3 s");
    tell(one, event({ event_type: "finished", image: { blob_id: "x", parameters_used: { width: 64, height: 32 } } }));
    expect([one.blob, one.width, one.height]).toEqual(["x", 64, 32]);
  });
  it("that is over stays so, whatever comes late", () => {
    const one = job();
    tell(one, event({ event_type: "cancelled" }));
    tell(one, event({ event_type: "progress", step: 9, steps: 10 }));
    expect(one.state).toBe("cancelled");
  });
  it("whose worker died begins again", () => {
    const one = job();
    tell(one, event({ event_type: "progress", step: 9, steps: 10 }));
    tell(one, event({ event_type: "pending", reason: "the worker was lost" }));
    expect([one.step, one.since]).toEqual([0, null]);
  });
});
