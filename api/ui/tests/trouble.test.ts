import { describe, expect, it } from "vitest";
import { describe as words, readRetryAfter, readTrouble } from "../src/api/trouble";

describe("what the server says is wrong", () => {
  it("is told in words, whatever its form", () => {
    expect(words("hit the rate limit")).toBe("Your share of this server is used up for now.");
    expect(words("no such thing")).toBe("No such thing.");
    expect(words({ type: "label", name: "愛", msg: "no such label" })).toBe("No such label: 愛.");
    expect(words([{ loc: ["body", "prompt"], msg: "too long" }])).toBe("prompt: too long");
    expect(words(undefined)).toBe("The server could not do this.");
  });
  it("tells when to come again", () => {
    const answer = (status: number, after?: string) => new Response("", { status, headers: after ? { "Retry-After": after } : {} });
    expect(readTrouble(answer(503, "7"), {})).toMatchObject({ kind: "busy", retryAfter: 7 });
    expect(readTrouble(answer(429, "60"), { detail: "hit the rate limit" })).toMatchObject({ kind: "quota", retryAfter: 60 });
    expect(readTrouble(answer(502), undefined)).toMatchObject({ kind: "busy", retryAfter: 3 });
    expect(readTrouble(answer(422), { detail: "no" })).toMatchObject({ kind: "input", retryAfter: null });
  });
  it("may name a date", () => {
    expect(readRetryAfter("Thu, 01 Jan 1970 00:00:09 GMT", 4000)).toBe(5);
    expect(readRetryAfter("soon")).toBeNull();
  });
});
