/** What is painted over a picture: strokes, so that any of them can be taken back. */

export interface Stroke {
  /** Diameter in the picture's pixels. */
  size: number;
  erase: boolean;
  points: [number, number][];
}

export interface Mask {
  strokes: Stroke[];
  undone: Stroke[];
}

export const empty = (): Mask => ({ strokes: [], undone: [] });

export function begin(mask: Mask, stroke: Stroke): Mask {
  return { strokes: [...mask.strokes, stroke], undone: [] };
}

export function undo({ strokes, undone }: Mask): Mask {
  return strokes.length ? { strokes: strokes.slice(0, -1), undone: [...undone, strokes.at(-1)!] } : { strokes, undone };
}

export function redo({ strokes, undone }: Mask): Mask {
  return undone.length ? { strokes: [...strokes, undone.at(-1)!], undone: undone.slice(0, -1) } : { strokes, undone };
}

/** Whether anything may be left of it. */
export function isPainted(mask: Mask): boolean {
  return mask.strokes.some((stroke) => !stroke.erase);
}

export function paint(context: CanvasRenderingContext2D, { strokes }: Mask, color: string): void {
  context.globalCompositeOperation = "source-over";
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = context.fillStyle = color;
  for (const { size, erase, points } of strokes) {
    context.globalCompositeOperation = erase ? "destination-out" : "source-over";
    context.lineWidth = size;
    context.beginPath();
    const [first, ...rest] = points;
    if (!first) continue;
    context.moveTo(...first);
    for (const point of rest.length ? rest : [first]) context.lineTo(...point);
    context.stroke();
  }
}

/** As the server wants it: white is repainted, black stays. */
export function render(mask: Mask, width: number, height: number): HTMLCanvasElement {
  const [strokes, whole] = [canvas(width, height), canvas(width, height)];
  paint(strokes.getContext("2d")!, mask, "#fff");
  const context = whole.getContext("2d")!;
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.drawImage(strokes, 0, 0);
  return whole;
}

function canvas(width: number, height: number): HTMLCanvasElement {
  return Object.assign(document.createElement("canvas"), { width, height });
}
