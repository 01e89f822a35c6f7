/**
 * What the page shows, as a value. `reduce` is pure: the same state and event give the same state, no clock, no
 * chance, no I/O. Events may arrive doubled, late, or from before a reconnect; the transcript that comes out is the
 * one the server stored. Durable events are ordered by seq alone; a running answer has none yet and stands last.
 */

import type { Entry } from './outbox';
import type {
  AckFrame,
  ConnectedFrame,
  DeltaFrame,
  DurableFrame,
  Limits,
  LoadingFrame,
  Model,
  Owner,
  ServerFrame,
  SnapshotFrame,
} from './protocol';

/** An answer that is being produced. */
export interface Answer {
  readonly id: string;
  readonly attempt: number;
  readonly chunk: number;
  readonly text: string;
  /** Chunks are missing: the text stays as it is until a reset or the final answer. */
  readonly gap: boolean;
  /** From before the last reconnect: gone unless the server mentions it again before it says `live`. */
  readonly stale: boolean;
}

export interface Loading {
  readonly id: string;
  /** Which attempt at the provider this is. */
  readonly attempt: number;
  readonly content: string;
}

export interface State {
  readonly sessionId: string;
  /** Identity of the numbering that `seq` belongs to; empty: nothing read yet. */
  readonly epoch: string;
  /** The cursor: everything up to here has been read. */
  readonly seq: number;
  /** Everything up to here is in the archive. */
  readonly durable: number;
  /** Caught up on a socket that, as far as is known, lives. */
  readonly live: boolean;
  /** What `connected` announced; taken over when the catch-up that it began is complete. */
  readonly offered: { readonly epoch: string; readonly seq: number };

  /** Stored events, ascending seq. */
  readonly items: readonly DurableFrame[];
  /** The archive has older ones than the first item. */
  readonly hasMore: boolean;
  readonly answers: readonly Answer[];
  readonly loading: Loading | null;
  /** Somebody else types; until when, milliseconds since 1970. */
  readonly typing: { readonly name: string; readonly until: number } | null;
  /** What the user sent and is not yet safe; see outbox.ts. */
  readonly outbox: readonly Entry[];

  readonly user: { readonly id: string; readonly name: string };
  /** Of the session; empty until the server has named it. */
  readonly name: string;
  readonly models: readonly Model[];
  readonly modelId: string;
  readonly owner: Owner;
  readonly assistedBy: string;
  readonly limits: Limits;
  readonly ended: { readonly reason: string; readonly next: string } | null;
}

export type Event =
  | { readonly kind: 'frame'; readonly frame: ServerFrame; readonly at: number }
  | { readonly kind: 'outbox'; readonly entries: readonly Entry[] }
  /** An older page of the transcript, read over HTTP. */
  | { readonly kind: 'history'; readonly sessionId: string; readonly items: readonly DurableFrame[]; readonly hasMore: boolean }
  | { readonly kind: 'disconnected' }
  /** The user begins a new conversation: nothing of the old one stays on the page. */
  | { readonly kind: 'left' }
  | { readonly kind: 'tick'; readonly at: number };

export const initial: State = {
  sessionId: '',
  epoch: '',
  seq: 0,
  durable: 0,
  live: false,
  offered: { epoch: '', seq: 0 },
  items: [],
  hasMore: false,
  answers: [],
  loading: null,
  typing: null,
  outbox: [],
  user: { id: '', name: '' },
  name: '',
  models: [],
  modelId: '',
  owner: 'ai',
  assistedBy: '',
  limits: { frameBytes: 0, help: false },
  ended: null,
};

/** How long a typing indicator holds without being renewed, in milliseconds. */
const TYPING_MS = 5_000;

export function reduce(s: State, e: Event): State {
  switch (e.kind) {
    case 'frame':
      return frame(s, e.frame, e.at);
    case 'outbox':
      return { ...s, outbox: e.entries };
    case 'history':
      return history(s, e.sessionId, e.items, e.hasMore);
    case 'disconnected':
      return { ...s, live: false, typing: null };
    case 'left':
      return fresh(s, '');
    case 'tick':
      return s.typing && s.typing.until <= e.at ? { ...s, typing: null } : s;
  }
}

function frame(s: State, f: ServerFrame, at: number): State {
  if ('sessionId' in f && f.kind !== 'connected' && f.sessionId !== '' && f.sessionId !== s.sessionId) return s;
  switch (f.kind) {
    case 'connected':
      return connected(s, f);
    case 'snapshot':
      return snapshot(s, f);
    case 'live':
      return live(s);
    case 'durable':
      return durable(s, f);
    case 'delta':
      return delta(s, f);
    case 'ack':
      return ack(s, f);
    case 'pong':
      return f.durable > s.durable ? { ...s, durable: f.durable } : s;
    case 'loading':
      return loading(s, f);
    case 'typing':
      if (f.sender !== 'admin') return s;
      return { ...s, typing: f.active ? { name: f.name || s.assistedBy, until: at + TYPING_MS } : null };
    default:
      return s; // errors, hints and the like are for the connection and the outbox
  }
}

/** The state of a page that has no session or enters another one. */
function fresh(s: State, sessionId: string): State {
  return { ...initial, sessionId, outbox: s.outbox, user: s.user, models: s.models, modelId: s.modelId, limits: s.limits };
}

function connected(s: State, f: ConnectedFrame): State {
  const base = f.sessionId === s.sessionId ? s : fresh(s, f.sessionId);
  return {
    ...base,
    live: false,
    // Taking a new epoch with an old seq would claim to have read what was not: it waits for the snapshot.
    epoch: f.recovered ? f.epoch : base.epoch,
    offered: { epoch: f.epoch, seq: f.seq },
    answers: base.answers.map((a) => ({ ...a, stale: true })),
    loading: null,
    typing: null,
    user: f.user,
    name: f.name,
    models: f.models,
    modelId: f.modelId,
    owner: f.owner,
    assistedBy: f.assistedBy,
    limits: f.limits,
    ended: null,
  };
}

function snapshot(s: State, f: SnapshotFrame): State {
  const messages = [...f.messages].sort((a, b) => a.seq - b.seq);
  const first = messages[0]?.seq ?? 0;
  // Pages read before stay only if the snapshot joins them without a hole in the same numbering.
  const joins = f.epoch === s.epoch && f.hasMore && first <= s.seq + 1;
  const older = joins ? s.items.filter((m) => m.seq < first) : [];
  const items = messages.reduce(insert, older);
  return {
    ...s,
    epoch: f.epoch,
    seq: f.seq,
    items,
    hasMore: older.length > 0 ? s.hasMore : f.hasMore,
    // In a new numbering an answer may have been begun anew, under its id: the running one follows, whole.
    answers: f.epoch === s.epoch ? s.answers.filter((a) => !hasFinal(items, a.id)) : [],
  };
}

function live(s: State): State {
  const answers = s.answers.some((a) => a.stale) ? s.answers.filter((a) => !a.stale) : s.answers;
  return { ...s, live: true, epoch: s.offered.epoch || s.epoch, answers };
}

function durable(s: State, f: DurableFrame): State {
  const known = f.seq <= s.seq;
  const next: State = { ...s, items: insert(s.items, f), seq: Math.max(s.seq, f.seq) };
  const answered = f.type === 'ai_response' ? withoutAnswer(next, f.messageId) : next;
  return known ? answered : effect(answered, f);
}

/** What an event changes besides being in the transcript. Only for events beyond the cursor. */
function effect(s: State, f: DurableFrame): State {
  switch (f.type) {
    case 'admin_join':
      return { ...s, owner: 'human', assistedBy: f.metadata['name'] ?? '', loading: null };
    case 'admin_leave':
      return { ...s, owner: 'ai', assistedBy: '', typing: null };
    case 'help_request':
      return s.owner === 'ai' ? { ...s, owner: 'waiting' } : s;
    case 'model_select':
      return { ...s, modelId: f.modelId || s.modelId };
    case 'session_ended': {
      const ended = { reason: f.metadata['reason'] ?? '', next: f.metadata['next'] ?? '' };
      return { ...s, owner: 'ended', ended, answers: [], loading: null, typing: null };
    }
    case 'user_message':
      return f.sender === 'admin' ? { ...s, typing: null } : s;
    default:
      return s;
  }
}

function withoutAnswer(s: State, id: string): State {
  return {
    ...s,
    answers: s.answers.filter((a) => a.id !== id),
    loading: s.loading?.id === id ? null : s.loading,
  };
}

function delta(s: State, f: DeltaFrame): State {
  if (hasFinal(s.items, f.messageId)) return s;
  const old = s.answers.find((a) => a.id === f.messageId);
  const next = grow(old, f);
  if (next === old) return s;
  const answers = old ? s.answers.map((a) => (a === old ? next : a)) : [...s.answers, next];
  return { ...s, answers, loading: s.loading?.id === f.messageId && next.text !== '' ? null : s.loading };
}

/** Adds one piece to an answer; returns `old` itself when the piece is of no use. */
function grow(old: Answer | undefined, f: DeltaFrame): Answer {
  const at = { id: f.messageId, attempt: f.attempt, chunk: f.chunk, gap: false, stale: false };
  if (!old) {
    const whole = f.reset || f.first === 1;
    return whole ? { ...at, text: f.delta } : { ...at, chunk: 0, text: '', gap: true };
  }
  // After a reconnect the server's account of the answer counts, even where it knows less: it may have lost its tail.
  if (f.reset && old.stale) return { ...at, text: f.delta };
  if (f.attempt < old.attempt) return old;
  if (f.reset) return f.attempt > old.attempt || f.chunk > old.chunk ? { ...at, text: f.delta } : old;
  if (f.attempt === old.attempt && f.chunk <= old.chunk) return old;
  if (!old.gap && f.first === old.chunk + 1) return { ...at, text: old.text + f.delta };
  return old.gap ? old : { ...old, gap: true };
}

/** The ack stands for the event, which the sender does not get. */
function ack(s: State, f: AckFrame): State {
  if (f.seq === 0) return s;
  const mine = s.outbox.find((e) => e.id === f.messageId);
  const moved = f.duplicate ? s : { ...s, seq: Math.max(s.seq, f.seq) };
  if (!mine) return moved;
  const event: DurableFrame = {
    kind: 'durable',
    type: mine.type,
    seq: f.seq,
    sessionId: s.sessionId,
    messageId: mine.id,
    sender: 'user',
    content: mine.content,
    timestamp: new Date(mine.at).toISOString(),
    target: mine.target,
    fileId: '',
    fileUrl: '',
    modelId: mine.modelId,
    metadata: {},
  };
  const shown = { ...moved, items: insert(moved.items, event) };
  return f.duplicate ? shown : effect(shown, event);
}

function loading(s: State, f: LoadingFrame): State {
  if (!f.active) return s.loading && s.loading.id === f.messageId ? { ...s, loading: null } : s;
  if (hasFinal(s.items, f.messageId)) return s;
  return { ...s, loading: { id: f.messageId, attempt: f.attemptAtProvider, content: f.content } };
}

function history(s: State, sessionId: string, items: readonly DurableFrame[], hasMore: boolean): State {
  if (sessionId !== s.sessionId) return s;
  return { ...s, items: items.reduce(insert, s.items), hasMore };
}

/** Puts an event in its place. The newest numbering of the same message wins; the same seq is the same event. */
function insert(items: readonly DurableFrame[], f: DurableFrame): readonly DurableFrame[] {
  const same = (m: DurableFrame): boolean =>
    m.seq === f.seq || (f.messageId !== '' && m.messageId === f.messageId && m.sender === f.sender && m.type === f.type);
  const old = items.find(same);
  if (old && (old.seq > f.seq || (old.seq === f.seq && old.messageId === f.messageId))) return items;
  const rest = old ? items.filter((m) => !same(m)) : items;
  let i = rest.length;
  while (i > 0 && (rest[i - 1]?.seq ?? 0) > f.seq) i--;
  return [...rest.slice(0, i), f, ...rest.slice(i)];
}

function hasFinal(items: readonly DurableFrame[], answerId: string): boolean {
  for (let i = items.length - 1; i >= 0; i--) {
    const m = items[i];
    if (m?.type === 'ai_response' && m.messageId === answerId) return true;
  }
  return false;
}
