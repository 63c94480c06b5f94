/** What went wrong, in words for the person who sits before the page. */
export type Kind = "offline" | "busy" | "quota" | "signin" | "input" | "fault";

export class Trouble extends Error {
  constructor(
    readonly kind: Kind,
    message: string,
    /** Seconds after which trying again makes sense. */
    readonly retryAfter: number | null = null,
    readonly status = 0,
  ) {
    super(message);
  }
}

interface Fault {
  loc?: (string | number)[];
  msg?: string;
}

/** What some of the server's terse words mean to somebody who looks at a page. */
const PLAIN: Record<string, string> = {
  "hit the rate limit": "Your share of this server is used up for now.",
  "too many requests simultaneously": "Another request of yours is still at work.",
  "the server is too busy and temporarily unavailable": "The server is busy.",
  "the model is loading": "The model is still being loaded.",
};

/** The `detail` of an answer: a text, an object with `msg` and `name`, or a list of faults. */
export function describe(detail: unknown): string {
  if (typeof detail === "string") return PLAIN[detail] ?? sentence(detail);
  if (Array.isArray(detail)) return detail.map((fault: Fault) => place(fault) + (fault.msg ?? "")).join("; ");
  if (detail && typeof detail === "object") {
    const { msg, name } = detail as { msg?: string; name?: string };
    if (msg) return sentence(name ? `${msg}: ${name}` : msg);
  }
  return "The server could not do this.";
}

function place(fault: Fault): string {
  const name = fault.loc?.filter((part) => part !== "body" && part !== "query").at(-1);
  return name === undefined ? "" : `${name}: `;
}

function sentence(text: string): string {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/** `Retry-After` is seconds or a date (RFC 9110, 10.2.3). */
export function readRetryAfter(header: string | null, now = Date.now()): number | null {
  if (!header) return null;
  if (/^\d+$/.test(header)) return Number(header);
  const date = Date.parse(header);
  return Number.isNaN(date) ? null : Math.max(0, Math.ceil((date - now) / 1000));
}

export function readTrouble(response: Response, body: unknown): Trouble {
  const detail = (body as { detail?: unknown } | undefined)?.detail;
  const after = readRetryAfter(response.headers.get("Retry-After"));
  const { status } = response;
  if (status === 401) return new Trouble("signin", describe(detail), null, status);
  if (status === 429) return new Trouble("quota", describe(detail ?? "too many requests"), after ?? 5, status);
  if (status === 502 || status === 503 || status === 504)
    return new Trouble("busy", describe(detail ?? "the server is not there"), after ?? 3, status);
  if (status >= 500) return new Trouble("fault", `${describe(detail)} (${status})`, null, status);
  return new Trouble("input", describe(detail), null, status);
}

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}
