/** Caps of the waits between attempts, in milliseconds; the last one repeats. */
const caps = [1_000, 2_000, 4_000, 8_000, 16_000, 30_000] as const;

/** How long a connection must live before its predecessors' failures are forgotten, in milliseconds. */
export const STABLE_MS = 60_000;

/**
 * How long to wait before attempt number `attempt` (0 is the first), in milliseconds: half of the step's cap
 * for certain, the other half by chance, so that the clients of a dead server do not come back as one.
 * `random` returns [0, 1).
 */
export function backoff(attempt: number, random: () => number): number {
  const step = Math.min(Math.max(0, Math.floor(attempt)), caps.length - 1);
  const cap = caps[step] ?? 30_000;
  return cap / 2 + Math.floor(random() * (cap / 2));
}
