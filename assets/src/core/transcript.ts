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
