import { useEffect, useRef, useState } from 'preact/hooks';
import type { Page } from './page';
import { strip } from './strip';
import type { Strip } from './strip';
import { text } from './text';

const TICK_MS = 200;

/** Speaks of the connection when there is something to say; see strip.ts for when that is. */
export function ConnectionStrip({ page }: { page: Page }) {
  const [now, setNow] = useState(() => Date.now());
  const live = page.connected.value;
  const memory = useRef({ live: false, wasLive: false, since: now, shown: false, last: 'none' });
  const m = memory.current;
  if (m.live !== live) {
    m.shown = live && m.wasLive && m.last !== 'none';
    m.live = live;
    m.since = Date.now();
    m.wasLive ||= live;
  }
  const at = Math.max(now, m.since);
  const s = strip({ status: page.status.value, live, online: page.online.value, wasLive: m.wasLive, since: m.since, shown: m.shown, now: at });
  m.last = s.kind;

  const quiet = live && s.kind === 'none';
  useEffect(() => {
    if (quiet) return;
    const timer = setInterval(() => setNow(Date.now()), TICK_MS);
    return () => clearInterval(timer);
  }, [quiet]);

  return (
    <div class="strip-place" aria-live="polite">
      {show(s, page)}
    </div>
  );
}

function show(s: Strip, page: Page) {
  switch (s.kind) {
    case 'none':
      return null;
    case 'connecting':
      return <div class="strip-bar" role="progressbar" aria-label={text.connecting} />;
    case 'offline':
      return <p class="strip offline">{text.offline}</p>;
    case 'restored':
      return <p class="strip restored">{text.restored}</p>;
    case 'lost':
      return (
        <p class="strip lost">
          <span aria-hidden="true">{text.lost(s.seconds)}</span>
          <span class="hidden">{text.lost(0)}</span>
          <button class="link" type="button" onClick={page.reconnect}>
            {text.retryNow}
          </button>
        </p>
      );
  }
}
