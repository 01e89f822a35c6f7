import { againOf, answersOf, idOf } from './answers';
import type { Again, Said } from './answers';
import type { Entry } from './outbox';
import type { DurableFrame } from './protocol';
import type { Answer, State } from './state';

/** One line of the transcript. The key of a message is the same before and after it has a seq. */
export type Row =
  | { readonly kind: 'event'; readonly key: string; readonly event: DurableFrame }
  /** What the assistant has said in one place. `again`: another answer for that place is on its way. */
  | { readonly kind: 'said'; readonly key: string; readonly said: Said; readonly again: Again | null }
  | { readonly kind: 'own'; readonly key: string; readonly entry: Entry }
  /** An answer that begins, in a place of its own. */
  | { readonly kind: 'answer'; readonly key: string; readonly answer: Answer };

const hidden: ReadonlySet<string> = new Set(['session_started', 'regenerate', 'continue', 'retry', 'transcript']);

/** Rows of stored events, in order. Events that say nothing to a reader are left out, answers stand where the first of them stood. */
export function eventRows(items: readonly DurableFrame[]): Row[] {
  return rowsOf(items, answersOf(items), null);
}

function rowsOf(items: readonly DurableFrame[], answers: ReadonlyMap<string, Said>, again: ReturnType<typeof againOf>): Row[] {
  return items.flatMap((event): Row[] => {
    if (hidden.has(event.type)) return [];
    if (event.type !== 'ai_response') return [{ kind: 'event', key: keyOf(event), event }];
    const said = answers.get(idOf(event));
    if (said?.id !== idOf(event)) return []; // a part of an earlier one, or in its place
    return [{ kind: 'said', key: keyOf(event), said, again: again?.place === said.id ? again : null }];
  });
}

/**
 * What a page shows, in order: stored events, then what the user sent and the server has not confirmed, then the
 * running answer, which will be stored after them. One that takes the place of another runs there.
 */
export function transcript(s: State): Row[] {
  const stored = new Set<string>();
  for (const m of s.items) if (m.sender === 'user') stored.add(m.messageId);
  const own = s.outbox.filter((e) => e.type === 'user_message' && !stored.has(e.id) && awaited(e, s.sessionId));
  const answers = answersOf(s.items);
  const again = againOf(s, answers);
  const running = s.answers.filter((answer) => answer !== again?.answer);
  return [
    ...rowsOf(s.items, answers, again),
    ...own.map((entry): Row => ({ kind: 'own', key: `user:${entry.id}`, entry })),
    ...running.map((answer): Row => ({ kind: 'answer', key: `ai:${answer.id}`, answer })),
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
  if (row.kind !== 'event') return '';
  const { type, sender } = row.event;
  const said = type === 'user_message' || type === 'file_upload' || type === 'voice_message';
  return said && (sender === 'user' || sender === 'admin') ? sender : '';
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
