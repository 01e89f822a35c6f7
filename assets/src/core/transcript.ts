import type { Entry } from './outbox';
import type { DurableFrame } from './protocol';
import type { Answer, State } from './state';

/** One line of the transcript. The key of a message is the same before and after it has a seq. */
export type Row =
  | { readonly kind: 'event'; readonly key: string; readonly event: DurableFrame }
  | { readonly kind: 'own'; readonly key: string; readonly entry: Entry }
  | { readonly kind: 'answer'; readonly key: string; readonly answer: Answer };

const hidden: ReadonlySet<string> = new Set(['session_started', 'regenerate', 'continue', 'retry', 'transcript']);

/** Rows of stored events, in order. Events that say nothing to a reader are left out. */
export function eventRows(items: readonly DurableFrame[]): Row[] {
  return items
    .filter((event) => !hidden.has(event.type))
    .map((event) => ({ kind: 'event', key: keyOf(event), event }));
}

/**
 * What a page shows, in order: stored events, then what the user sent and the server has not confirmed, then the
 * running answer, which will be stored after them.
 */
export function transcript(s: State): Row[] {
  const stored = new Set<string>();
  for (const m of s.items) if (m.sender === 'user') stored.add(m.messageId);
  const own = s.outbox.filter((e) => e.type === 'user_message' && !stored.has(e.id) && awaited(e, s.sessionId));
  return [
    ...eventRows(s.items),
    ...own.map((entry): Row => ({ kind: 'own', key: `user:${entry.id}`, entry })),
    ...s.answers.map((answer): Row => ({ kind: 'answer', key: `ai:${answer.id}`, answer })),
  ];
}

/**
 * Whether a row stands close to the one before it, because the same side goes on speaking. Two answers never do: each
 * is a thing of its own.
 */
export function grouped(before: Row | undefined, row: Row): boolean {
  const s = side(row);
  return before !== undefined && s !== '' && s === side(before);
}

function side(row: Row): 'user' | 'admin' | '' {
  if (row.kind === 'own') return 'user';
  if (row.kind === 'answer') return '';
  const { type, sender } = row.event;
  const said = type === 'user_message' || type === 'file_upload' || type === 'voice_message';
  return said && (sender === 'user' || sender === 'admin') ? sender : '';
}

/**
 * What to ask again after an answer that failed: the questions that it names, else the last one before it. Empty when
 * there is none, or when something was said since and the failure is history.
 */
export function questionOf(items: readonly DurableFrame[], answer: DurableFrame): string {
  const asked = items.filter((m) => m.type === 'user_message' && m.sender === 'user');
  if (items.some((m) => m.seq > answer.seq && (m.type === 'user_message' || m.type === 'ai_response'))) return '';
  const ids = (answer.metadata['answers'] ?? '').split(' ');
  const named = asked.filter((m) => ids.includes(m.messageId));
  const last = asked.filter((m) => m.seq < answer.seq).slice(-1);
  return (named.length > 0 ? named : last).map((m) => m.content).join('\n\n');
}

/** The session's name; until the server has given one, the first line of what the user asked first, as it will be. */
export function nameOf(s: State): string {
  const first = s.items.find((m) => m.type === 'user_message' && m.sender === 'user')?.content ?? '';
  return s.name || (first.split('\n', 1)[0]?.slice(0, 80) ?? '');
}

/**
 * Whether an entry is still on its way into this session. One that was acknowledged is in the transcript, if only in
 * a part that is not loaded; one that was acknowledged in a session that was left was said there and not here.
 */
function awaited(e: Entry, sessionId: string): boolean {
  return e.state !== 'acked' && (e.seq === 0 || e.sessionId === sessionId);
}

function keyOf(f: DurableFrame): string {
  const message = f.type === 'user_message' || f.type === 'ai_response';
  return message && f.messageId ? `${f.sender}:${f.messageId}` : `seq:${f.seq}`;
}
