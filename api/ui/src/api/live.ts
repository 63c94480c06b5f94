/** Pictures at mouse speed: one socket a model, over which the latest wish wins. */
import { server } from "../state/server";
import { ask, client, socketUrl } from "./client";
import { type Kind, Trouble, describe } from "./trouble";
import { waitFor } from "./waiting";

/** A whole wish. What is null is left out. */
export interface Wish {
  seed: number;
  styles: string[] | null;
  latent?: string | null;
  label: string | null;
  psi: number | null;
  noise: string | null;
  directions: Record<string, number>;
}

interface Told {
  change: number;
  seed: number;
  label: string | null;
  mimeType: string;
  detail?: unknown;
  retry_after?: number | null;
}

export interface Drawn {
  bitmap: ImageBitmap;
  seed: number;
  label: string | null;
}

interface Waiting {
  resolve(drawn: Drawn | null): void;
  reject(error: unknown): void;
}

const MOST_TRIES = 6;

export class Live {
  private socket: Promise<WebSocket> | null = null;
  private known: Partial<Wish> = {};
  private sent = 0;
  private waiting = new Map<number, Waiting>();

  constructor(readonly model: string) {}

  /** The picture of the wish, or null where a later one has taken its place. Waits for a server that is away or busy. */
  async draw(wish: Wish, signal?: AbortSignal): Promise<Drawn | null> {
    for (let tries = 0; ; tries++) {
      try {
        const socket = await (this.socket ??= this.open());
        signal?.throwIfAborted();
        return await this.send(socket, wish);
      } catch (error) {
        if (!(error instanceof Trouble) || error.retryAfter === null || tries >= MOST_TRIES) throw error;
        if (error.kind === "offline") await this.probe(signal);
        if (error.kind !== "offline" || tries) await waitFor(error, Math.max(error.retryAfter, Math.min(2 ** tries, 15)), signal);
      }
    }
  }

  close(): void {
    void this.socket?.then((socket) => socket.close()).catch(() => undefined);
  }

  private open(): Promise<WebSocket> {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(socketUrl(`${encodeURIComponent(this.model)}/live`));
      socket.binaryType = "arraybuffer";
      let told: Told | null = null;
      Object.assign(this, { known: {}, sent: 0 });
      socket.onopen = () => resolve(socket);
      socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) => {
        if (typeof data === "string") {
          told = JSON.parse(data) as Told;
          if (told.detail !== undefined) this.refuse(told);
        } else if (told) void this.show(told, data);
      };
      socket.onclose = () => {
        const trouble = new Trouble("offline", "The connection was lost.", 1);
        this.socket = null;
        for (const one of this.waiting.values()) one.reject(trouble);
        this.waiting.clear();
        reject(trouble);
      };
    });
  }

  private send(socket: WebSocket, wish: Wish): Promise<Drawn | null> {
    const change: Partial<Record<keyof Wish, unknown>> = {};
    for (const name of Object.keys(wish) as (keyof Wish)[]) {
      if (JSON.stringify(wish[name]) !== JSON.stringify(this.known[name] ?? null)) change[name] = wish[name];
    }
    if ("seed" in change) Object.assign(change, { styles: wish.styles, latent: wish.latent ?? null }); // a new seed would drop these
    this.known = wish;
    socket.send(JSON.stringify(change));
    return new Promise((resolve, reject) => this.waiting.set(++this.sent, { resolve, reject }));
  }

  private async show(told: Told, data: ArrayBuffer): Promise<void> {
    const settle = this.take(told.change);
    try {
      settle?.resolve({ bitmap: await createImageBitmap(new Blob([data], { type: told.mimeType })), seed: told.seed, label: told.label });
    } catch (error) {
      settle?.reject(error);
    }
  }

  private refuse(told: Told): void {
    const busy = typeof told.retry_after === "number";
    const kind: Kind = busy ? "busy" : "input";
    this.known = {}; // the server keeps what it had
    this.take(told.change)?.reject(new Trouble(kind, describe(told.detail), busy ? told.retry_after! : null));
  }

  /** Those before it will not be answered any more. */
  private take(change: number): Waiting | undefined {
    const found = this.waiting.get(change);
    for (const [number, one] of this.waiting) {
      if (number > change) continue;
      this.waiting.delete(number);
      if (number < change) one.resolve(null);
    }
    return found;
  }

  /** A socket does not tell why it was not opened; these requests wait for the server, and have the person sign in. */
  private async probe(signal?: AbortSignal): Promise<void> {
    const { model } = this;
    await ask(() => client.GET("/{model_id}/directions", { params: { path: { model_id: model } }, signal }), { signal });
    if (!server.about?.auth) return;
    const none = () => client.GET("/task/{task_id}", { params: { path: { task_id: "none" } }, signal });
    await ask(none, { signal }).catch((error: unknown) => {
      if (!(error instanceof Trouble) || error.status !== 404) throw error;
    });
  }
}
