/** Pictures on their way to the server. */
import { ask, client } from "./api/client";

export async function upload(picture: Blob, signal?: AbortSignal): Promise<string> {
  const send = () =>
    client.POST("/blob", { body: picture as never, bodySerializer: (body) => body as never, headers: { "Content-Type": picture.type }, signal });
  return (await ask(send, { signal })) as string;
}

/** Throws an `Error` in words for what is no picture. */
export function decode(file: Blob): Promise<ImageBitmap> {
  return createImageBitmap(file).catch(() => {
    throw new Error("This file is no picture that the browser can read.");
  });
}

export function toPng(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is too large."))), "image/png"));
}
