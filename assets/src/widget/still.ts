import { useEffect, useRef, useState } from 'preact/hooks';
import { text } from './text';

/** How long an answer may stand still before a word is said about it, in milliseconds. */
const STILL_MS = 8_000;
/** The same after a reconnect, when whoever wrote the answer may be gone. */
const RESUMED_MS = 3_000;

/**
 * What to say about an answer that does not move; empty while it does, and while there is no connection, which is
 * spoken of elsewhere. `progress` changes whenever the answer grows.
 */
export function useStill(progress: string, live: boolean): string {
  const [word, say] = useState('');
  const m = useRef({ progress, live, resumed: false }).current;
  if (m.progress !== progress) m.resumed = false;
  if (live && !m.live) m.resumed = true;
  m.progress = progress;
  m.live = live;
  const { resumed } = m;

  useEffect(() => {
    say('');
    if (!live) return;
    const timer = setTimeout(() => say(resumed ? text.pickingUp : text.stillWorking), resumed ? RESUMED_MS : STILL_MS);
    return () => clearTimeout(timer);
  }, [progress, live, resumed]);

  return live ? word : '';
}
