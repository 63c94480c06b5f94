import { describe, expect, it } from "vitest";
import { read, write } from "../src/workspace";

const ENTRY = { data: "aGk=", mimeType: "image/png", width: 64, height: 64 };

describe("a workspace", () => {
  it("of the sample client is read", () => {
    const { modelId, pictures } = read(JSON.stringify({ modelId: "faces", data: { gen: [ENTRY, { ...ENTRY, latent: "eg==", style: "dw==" }] } }));
    expect(modelId).toBe("faces");
    expect(pictures.map(({ model, styles, latent }) => ({ model, styles, latent }))).toEqual([
      { model: "faces", styles: [], latent: null },
      { model: "faces", styles: ["dw=="], latent: "eg==" },
    ]);
  });
  it("is the same when it is saved and opened again", () => {
    const [picture] = read(JSON.stringify({ modelId: "faces", data: { gen: [{ ...ENTRY, seed: 9, label: "A", style: "dw==", recipe: { psi: 0.5 } }] } })).pictures;
    const [again] = read(JSON.stringify(write([picture!], "faces"))).pictures;
    expect({ ...again, id: "" }).toEqual({ ...picture, id: "" });
  });
  it("that is none is refused in words, and what is no picture is left out", () => {
    expect(() => read("{")).toThrow("not JSON");
    expect(() => read("[]")).toThrow("no workspace");
    expect(read(JSON.stringify({ modelId: "x", data: { gen: [null, { data: "<svg>", mimeType: "text/html" }] } })).pictures).toEqual([]);
  });
});
