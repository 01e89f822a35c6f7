import type { Status } from '../core/connection';

/** The line under the header that speaks of the connection. */
export type Strip =
  | { readonly kind: 'none' }
  | { readonly kind: 'connecting' }
  | { readonly kind: 'lost'; readonly seconds: number }
  | { readonly kind: 'offline' }
  | { readonly kind: 'restored' };

/** Milliseconds. Short trouble is not worth a word. */
const SHOW_CONNECTING = 400;
const SHOW_LOST = 1_500;
const SHOW_RESTORED = 2_000;

export interface StripInput {
  readonly status: Status;
  /** Live on a socket that nobody doubts. */
  readonly live: boolean;
  readonly online: boolean;
  /** The page has been live before. */
  readonly wasLive: boolean;
  /** When the state last changed between live and not live, milliseconds since 1970. */
  readonly since: number;
  /** The trouble that ended at `since` had been shown. */
  readonly shown: boolean;
  readonly now: number;
}

export function strip(i: StripInput): Strip {
  const age = i.now - i.since;
  if (i.live) return i.shown && age < SHOW_RESTORED ? { kind: 'restored' } : { kind: 'none' };
  if (i.status.kind === 'stopped' || i.status.kind === 'idle') return { kind: 'none' };
  if (!i.online) return age < SHOW_CONNECTING ? { kind: 'none' } : { kind: 'offline' };
  if (!i.wasLive) return age < SHOW_CONNECTING ? { kind: 'none' } : { kind: 'connecting' };
  if (age < SHOW_LOST) return { kind: 'none' };
  const seconds = i.status.kind === 'waiting' ? Math.max(0, Math.ceil((i.status.until - i.now) / 1_000)) : 0;
  return { kind: 'lost', seconds };
}
