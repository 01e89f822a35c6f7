import { useEffect, useState } from 'preact/hooks';

/** Below this, in milliseconds, every second is told. */
const CLOSE = 2 * 60_000;

/** Whole seconds until a point in time, milliseconds since 1970; 0 when it has come. Long waits are told roughly. */
export function useRemaining(until: number): number {
  const [, turn] = useState(0);
  const rest = Math.max(0, until - Date.now());

  useEffect(() => {
    if (rest === 0) return;
    const timer = setTimeout(() => turn((n) => n + 1), rest > CLOSE ? Math.min(rest - CLOSE, 60_000) : Math.min(rest, 1_000));
    return () => clearTimeout(timer);
  });

  return Math.ceil(rest / 1_000);
}
