/** The browser behind the interfaces of the core. */

import type { Clock, Dial } from '../core/connection';
import type { Store } from '../core/outbox';

export const clock: Clock = {
  now: () => Date.now(),
  after: (ms, run) => window.setTimeout(run, ms),
  cancel: (timer) => {
    if (typeof timer === 'number') window.clearTimeout(timer);
  },
};

export const dial: Dial = (url, protocols, handlers) => {
  const ws = new WebSocket(url, [...protocols]);
  ws.onopen = () => handlers.open();
  ws.onmessage = (e: MessageEvent<unknown>) => handlers.message(e.data);
  ws.onclose = (e) => handlers.close(e.code);
  return {
    send: (data) => ws.send(data),
    close: (code, reason) => ws.close(code, reason),
  };
};

/** sessionStorage, or null where even asking for it throws (a cross-site frame with storage blocked). */
export function sessionStore(): Store | null {
  try {
    return window.sessionStorage;
  } catch {
    return null;
  }
}

/** A random UUID. `crypto.randomUUID` exists in secure contexts only, `getRandomValues` everywhere. */
export function uuid(): string {
  const b = crypto.getRandomValues(new Uint8Array(16));
  b[6] = ((b[6] ?? 0) & 0x0f) | 0x40;
  b[8] = ((b[8] ?? 0) & 0x3f) | 0x80;
  const hex = [...b].map((x) => x.toString(16).padStart(2, '0')).join('');
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');
}
