/**
 * What the user has sent and the server has not yet made safe.
 *
 * Order: entries leave in the order in which they were added, one in flight until its ack. Loss: an entry is kept
 * until the server says that everything up to its seq is in the archive; until then a reconnect or a snapshot
 * without it sends it again. What was acknowledged in a session that then ended as it should belongs to that session
 * and never goes to the next one; what was not acknowledged does. Doubling: the id is the idempotency key, so sending again is always safe. A failed
 * entry stays until the user retries or discards it. Storage is a cache that may throw: then memory has to do.
 *
 * Nothing here has timers: `due` says when `take` should be called again.
 */

import { wishOf } from './answers';
import { backoff } from './backoff';
import type { AckFrame, ClientFrame, DurableFrame, ErrorFrame, SnapshotFrame } from './protocol';

/** Frames that make an event and therefore must arrive exactly once. */
export type EntryType = 'user_message' | 'model_select' | 'help_request' | 'regenerate' | 'continue' | 'retry';

export type EntryState = 'queued' | 'sent' | 'acked' | 'failed';

export interface Entry {
  readonly id: string;
  readonly type: EntryType;
  readonly content: string;
  readonly modelId: string;
  readonly target: string;
  /** When the user sent it, milliseconds since 1970. */
  readonly at: number;
  readonly state: EntryState;
  /** The session of the first try, or the one that acknowledged it; empty before. */
  readonly sessionId: string;
  /** The server may have it: the next try says so, and the server looks further than Redis. */
  readonly tried: boolean;
  /** 0 until acknowledged; of an entry that is sent again, what it once was. */
  readonly seq: number;
  /** Acknowledged in a session that has ended since: only a snapshot of that session can say that it is missing. */
  readonly left: boolean;
  /** Error code of a failed entry. */
  readonly reason: string;
  /** Of a failed entry: when sending it again may work, milliseconds since 1970; 0: not known. */
  readonly until: number;
}

export interface Draft {
  readonly type: EntryType;
  readonly content?: string;
  readonly modelId?: string;
  readonly target?: string;
}

/** The part of sessionStorage that is used. Every method may throw. */
export interface Store {
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface OutboxOptions {
  /** null: memory only. */
  readonly storage: Store | null;
  readonly now: () => number;
  readonly random: () => number;
  readonly uuid: () => string;
  /** Called after every change with the new list. */
  readonly onChange: (entries: readonly Entry[]) => void;
}

/** Most entries that wait at a time. */
export const MAX_ENTRIES = 50;
/** Oldest entry that is still sent by itself, in milliseconds; older ones fail and ask the user. */
export const MAX_AGE = 24 * 60 * 60 * 1_000;
/** How long to wait for an ack on a living socket before sending again, in milliseconds. */
export const ACK_TIMEOUT = 10_000;

/** Longest wait that the server may ask for before an entry is sent again by itself, in milliseconds; beyond it the user is asked. */
export const MAX_WAIT = 5 * 60 * 1_000;

/** Errors after which it is certain that nothing was stored, so that the next try is as good as the first. */
const refused: ReadonlySet<string> = new Set(['RATE_LIMITED', 'STORAGE_FULL', 'BUDGET_EXCEEDED']);

const key = (scope: string): string => `chatbox.outbox.1.${scope}`;

export class Outbox {
  private list: readonly Entry[] = [];
  private scope = '';
  /** The live session; empty while there is none, and then nothing is sent. */
  private session = '';
  private notBefore = 0;
  private sentAt = 0;
  private recoveries = 0;

  constructor(private readonly options: OutboxOptions) {}

  get entries(): readonly Entry[] {
    return this.list;
  }

  /**
   * Says whose messages these are. What that user left behind is loaded and goes out before what was added since;
   * entries of another user stay in that user's storage and leave this list.
   */
  adopt(scope: string): void {
    if (scope === '' || scope === this.scope) return;
    const added = this.scope === '' ? this.list : [];
    const stored = this.load(scope).filter((e) => !added.some((a) => a.id === e.id));
    this.scope = scope;
    this.set([...stored, ...added]);
  }

  /** Queues a frame. null when too many wait already. */
  add(draft: Draft): Entry | null {
    if (this.list.filter((e) => e.state !== 'acked').length >= MAX_ENTRIES) return null;
    const entry: Entry = {
      id: this.options.uuid(),
      type: draft.type,
      content: draft.content ?? '',
      modelId: draft.modelId ?? '',
      target: draft.target ?? '',
      at: this.options.now(),
      state: 'queued',
      sessionId: '',
      tried: false,
      seq: 0,
      left: false,
      reason: '',
      until: 0,
    };
    this.set([...this.list, entry]);
    return entry;
  }

  /** The session is live on a socket: sending may start. */
  live(sessionId: string): void {
    this.session = sessionId;
    this.notBefore = 0;
  }

  /**
   * A session has ended as it should, by whomever. What it acknowledged stays there; wishes about its answers can be
   * granted no more.
   */
  ended(sessionId: string): void {
    const idle = (e: Entry): boolean => wishOf(e.type) !== null && e.state !== 'acked' && (e.sessionId === '' || e.sessionId === sessionId);
    this.set(this.list.filter((e) => !idle(e)).map((e) => (e.state === 'acked' && e.sessionId === sessionId && !e.left ? { ...e, left: true } : e)));
  }

  /** The socket is gone. What was in flight may or may not have arrived. */
  lost(): void {
    this.session = '';
    this.set(this.list.map(requeue));
  }

  /** Marks the next entry as sent and returns its frame; null when there is nothing to send now. */
  take(): ClientFrame | null {
    if (!this.session) return null;
    const now = this.options.now();
    if (this.list.some((e) => e.state === 'sent') && now >= this.sentAt + ACK_TIMEOUT) {
      this.set(this.list.map(requeue));
    }
    if (now < this.notBefore || this.list.some((e) => e.state === 'sent')) return null;
    this.expire(now);
    const next = this.list.find((e) => e.state === 'queued');
    if (!next) return null;
    this.sentAt = now;
    const sent: Entry = { ...next, state: 'sent', sessionId: next.sessionId || this.session };
    this.replace(sent);
    return frameOf(sent);
  }

  /** When `take` should be called again, milliseconds since 1970; null when only an event can change anything. */
  due(): number | null {
    if (!this.session) return null;
    if (this.list.some((e) => e.state === 'sent')) return this.sentAt + ACK_TIMEOUT;
    return this.list.some((e) => e.state === 'queued') ? Math.max(this.notBefore, this.options.now()) : null;
  }

  acked(ack: AckFrame): void {
    const entry = this.find(ack.messageId);
    if (!entry) return;
    this.recoveries = 0;
    // In another session than the live one nothing tells when it is archived; that it is known there is enough.
    const elsewhere = ack.sessionId !== '' && this.session !== '' && ack.sessionId !== this.session;
    if (elsewhere || ack.seq === 0) this.remove(entry.id);
    else this.replace({ ...entry, state: 'acked', seq: ack.seq, sessionId: ack.sessionId || entry.sessionId, left: false, reason: '' });
  }

  /** An own message met as an event counts as its ack. */
  seen(event: DurableFrame): void {
    const entry = this.find(event.messageId);
    if (!entry || event.sender !== 'user' || (entry.state === 'acked' && entry.seq === event.seq)) return;
    this.replace({ ...entry, state: 'acked', seq: event.seq, sessionId: event.sessionId || entry.sessionId, left: false, reason: '' });
  }

  /** What a snapshot shows is acknowledged; what it should show and does not is queued again. */
  snapshot(snap: SnapshotFrame): void {
    const first = snap.messages[0]?.seq ?? 0;
    const shown = new Map<string, DurableFrame>();
    for (const m of snap.messages) if (m.sender === 'user' && m.messageId) shown.set(m.messageId, m);
    this.set(
      this.list.map((e): Entry => {
        const m = shown.get(e.id);
        if (m) return { ...e, state: 'acked', seq: m.seq, sessionId: snap.sessionId, left: false, reason: '' };
        if (e.state !== 'acked') return e;
        const home = e.sessionId === snap.sessionId;
        if ((e.left && !home) || (home && snap.hasMore && e.seq < first)) return e;
        return { ...e, state: 'queued', tried: true, left: false };
      }),
    );
  }

  /** Everything of the live session up to `seq` is in the archive. */
  durable(sessionId: string, seq: number): void {
    const kept = this.list.filter((e) => !(e.state === 'acked' && e.sessionId === sessionId && e.seq <= seq));
    if (kept.length !== this.list.length) this.set(kept);
  }

  /** An error about one of ours. Returns whether it was. */
  refused(error: ErrorFrame): boolean {
    const entry = this.find(error.messageId);
    if (!entry || entry.state === 'acked') return entry !== undefined;
    const tried = entry.tried || (error.recoverable && !refused.has(error.code));
    const kept = { ...entry, tried, sessionId: tried ? entry.sessionId : '' };
    if (!error.recoverable || error.code === 'BUDGET_EXCEEDED' || error.retryAfter > MAX_WAIT) {
      const until = error.retryAfter > 0 ? this.options.now() + error.retryAfter : 0;
      this.replace({ ...kept, state: 'failed', reason: error.code || 'INTERNAL', until });
      return true;
    }
    const wait = Math.max(error.retryAfter, backoff(this.recoveries, this.options.random));
    this.recoveries++;
    this.notBefore = this.options.now() + wait;
    this.replace({ ...kept, state: 'queued' });
    return true;
  }

  /** The user wants a failed entry sent after all; it goes to the end of the queue, its age starts anew. */
  retry(id: string): void {
    const entry = this.find(id);
    if (entry?.state !== 'failed') return;
    const again: Entry = { ...entry, state: 'queued', reason: '', until: 0, at: this.options.now() };
    this.set([...this.list.filter((e) => e.id !== id), again]);
  }

  /** The user gives up on an entry that is not on its way. */
  discard(id: string): void {
    const entry = this.find(id);
    if (entry?.state === 'failed' || (entry?.state === 'queued' && !entry.tried)) this.remove(id);
  }

  private expire(now: number): void {
    if (!this.list.some((e) => now - e.at > MAX_AGE)) return;
    this.set(
      this.list.filter((e) => !e.left || now - e.at <= MAX_AGE).map((e) =>
        e.state === 'queued' && now - e.at > MAX_AGE ? { ...e, state: 'failed' as const, reason: 'EXPIRED' } : e,
      ),
    );
  }

  private find(id: string): Entry | undefined {
    return id ? this.list.find((e) => e.id === id) : undefined;
  }

  private replace(entry: Entry): void {
    this.set(this.list.map((e) => (e.id === entry.id ? entry : e)));
  }

  private remove(id: string): void {
    this.set(this.list.filter((e) => e.id !== id));
  }

  private set(list: readonly Entry[]): void {
    if (list.length === this.list.length && list.every((e, i) => e === this.list[i])) return;
    this.list = list;
    this.save();
    this.options.onChange(list);
  }

  private save(): void {
    const { storage } = this.options;
    if (!storage || !this.scope) return;
    try {
      if (this.list.length === 0) storage.removeItem(key(this.scope));
      else storage.setItem(key(this.scope), JSON.stringify(this.list));
    } catch {
      // Blocked or full: the list in memory is the truth, a reload would forget it.
    }
  }

  private load(scope: string): readonly Entry[] {
    try {
      const text = this.options.storage?.getItem(key(scope));
      const list: unknown = text ? JSON.parse(text) : [];
      const fresh = (e: Entry): boolean => !e.left || this.options.now() - e.at <= MAX_AGE;
      return Array.isArray(list) ? list.flatMap(restore).filter(fresh).map(requeue).slice(-MAX_ENTRIES) : [];
    } catch {
      return [];
    }
  }
}

function requeue(e: Entry): Entry {
  return e.state === 'sent' ? { ...e, state: 'queued', tried: true } : e;
}

function frameOf(e: Entry): ClientFrame {
  switch (e.type) {
    case 'user_message': {
      const again = e.tried ? { session_id: e.sessionId, resent: true as const } : {};
      return { type: e.type, message_id: e.id, content: e.content, ...again };
    }
    case 'model_select':
      return { type: e.type, message_id: e.id, model_id: e.modelId };
    case 'help_request':
      return { type: e.type, message_id: e.id, ...(e.content ? { content: e.content } : {}) };
    default:
      return { type: e.type, message_id: e.id, target: e.target };
  }
}

const types: readonly EntryType[] = ['user_message', 'model_select', 'help_request', 'regenerate', 'continue', 'retry'];
const states: readonly EntryState[] = ['queued', 'sent', 'acked', 'failed'];

/** Reads back one stored entry; what is not one of ours is dropped. */
function restore(value: unknown): Entry[] {
  if (typeof value !== 'object' || value === null) return [];
  const o: Partial<Record<keyof Entry, unknown>> = value;
  const text = (v: unknown): string => (typeof v === 'string' ? v : '');
  const type = types.find((t) => t === o.type);
  const state = states.find((s) => s === o.state);
  const id = text(o.id);
  if (!type || !state || !id || typeof o.at !== 'number') return [];
  return [
    {
      id,
      type,
      state,
      at: o.at,
      content: text(o.content),
      modelId: text(o.modelId),
      target: text(o.target),
      sessionId: text(o.sessionId),
      tried: o.tried === true,
      seq: typeof o.seq === 'number' ? o.seq : 0,
      left: o.left === true,
      reason: text(o.reason),
      until: typeof o.until === 'number' ? o.until : 0,
    },
  ];
}
