import type { State } from './state';
import { nameOf } from './transcript';

/** One conversation as the list shows it. */
export interface SessionEntry {
  readonly id: string;
  readonly name: string;
  readonly lastActivity: string;
  readonly messageCount: number;
  readonly adminAssisted: boolean;
  readonly active: boolean;
}

const counted: ReadonlySet<string> = new Set(['user_message', 'ai_response', 'file_upload', 'voice_message']);

/**
 * The list as the server gave it, corrected by what the page knows better: which session is the current one, that one
 * had its first message, its name, and that one has ended. Pure; the list is read again later all the same.
 */
export function listed(items: readonly SessionEntry[], s: State): readonly SessionEntry[] {
  if (!s.sessionId) return items;
  const now = s.ended === null;
  const mine = items.find((e) => e.id === s.sessionId);
  const said = s.items.filter((m) => counted.has(m.type));
  const last = said[said.length - 1]?.timestamp ?? '';
  const local: SessionEntry | null =
    said.length === 0 && !mine
      ? null
      : {
          id: s.sessionId,
          name: mine?.name || nameOf(s),
          lastActivity: mine && mine.lastActivity > last ? mine.lastActivity : last,
          messageCount: Math.max(mine?.messageCount ?? 0, said.length),
          adminAssisted: (mine?.adminAssisted ?? false) || s.owner === 'human',
          active: now,
        };
  // A user has one active session: while this page is live on one, no other is.
  const others = items.filter((e) => e.id !== s.sessionId).map((e) => (e.active && s.live && now ? { ...e, active: false } : e));
  if (!local) return others;
  return now || !mine ? [local, ...others] : items.map((e) => (e.id === local.id ? local : e));
}

/** A first page that lacks what the archive has: what was read before stays behind it. */
export function withKnown(items: readonly SessionEntry[], before: readonly SessionEntry[]): readonly SessionEntry[] {
  return [...items, ...before.filter((e) => !items.some((i) => i.id === e.id)).map((e) => ({ ...e, active: false }))];
}
