/** What was, and what can be had again. */
import { computed, shallowRef } from "vue";

const MOST = 200;
const TOGETHER = 700; // milliseconds within which changes of one thing count as one

export function useUndo<T>(first: T, now: () => number = Date.now) {
  const steps = shallowRef<{ all: T[]; place: number }>({ all: [first], place: 0 });
  let last = { what: "", at: -Infinity };
  const at = (place: number): T => {
    steps.value = { ...steps.value, place };
    last = { what: "", at: -Infinity };
    return steps.value.all[place]!;
  };
  return {
    current: computed(() => steps.value.all[steps.value.place]!),
    canUndo: computed(() => steps.value.place > 0),
    canRedo: computed(() => steps.value.place < steps.value.all.length - 1),

    /** Notes a state; quick changes of the same `what` become one step. */
    note(state: T, what = ""): void {
      const { all, place } = steps.value;
      const time = now();
      const joined = what !== "" && what === last.what && time - last.at < TOGETHER && place > 0;
      last = { what, at: time };
      const before = all.slice(0, joined ? place : place + 1).slice(-MOST);
      steps.value = { all: [...before, state], place: before.length };
    },
    clear(state: T): void {
      steps.value = { all: [state], place: 0 };
      last = { what: "", at: -Infinity };
    },
    undo: (): T => at(Math.max(0, steps.value.place - 1)),
    redo: (): T => at(Math.min(steps.value.all.length - 1, steps.value.place + 1)),
  };
}
