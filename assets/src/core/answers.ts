/**
 * What the answers of a conversation say now. One that was given anew stands in the place of the old one, one that
 * goes on is joined to what it goes on after; the server reads a conversation to a model by the same rules.
 */

import type { Entry, EntryType } from './outbox';
import type { DurableFrame } from './protocol';
import type { Answer, State } from './state';

/** Wishes for another answer: regenerate and continue are about an answer, retry is about a question. */
export type Wish = 'regenerate' | 'continue' | 'retry';

/** What stands in one place of the transcript. */
export interface Said {
  /** Of the first answer in this place; it stays the same whatever takes its place. */
  readonly id: string;
  /** The stored answers that make up the text, in order. Never empty. */
  readonly parts: readonly DurableFrame[];
  /** The newest answer for this place, which may be one that failed and replaced nothing. */
  readonly last: DurableFrame;
  readonly text: string;
  /** Texts that were replaced, oldest first. */
  readonly earlier: readonly string[];
}

/** Another answer that is on its way into the place of an old one. */
export interface Again {
  readonly how: Wish;
  /** The wish, while the server has not confirmed it. */
  readonly entry: Entry | null;
  /** What has been said so far. */
  readonly answer: Answer | null;
}

/** Targets of the wishes that make sense for an answer now; an empty one does not. */
export interface Offers {
  readonly regenerate: string;
  readonly goOn: string;
  readonly retry: string;
}

export function wishOf(type: EntryType | DurableFrame['type']): Wish | null {
  return type === 'regenerate' || type === 'continue' || type === 'retry' ? type : null;
}

/** By the id of every answer, those included that were replaced or became a part of another. */
export function answersOf(items: readonly DurableFrame[]): ReadonlyMap<string, Said> {
  const places = new Map<string, string>(); // answer to the first answer of its place
  const said = new Map<string, Said>(); // by the first answer
  for (const event of items) {
    if (event.type !== 'ai_response') continue;
    const { continues = '', replaces = '' } = event.metadata;
    const place = places.get(continues) ?? places.get(replaces) ?? idOf(event);
    places.set(idOf(event), place);
    const before = said.get(place);
    said.set(place, before ? join(before, event, places.has(continues)) : { id: place, parts: [event], last: event, text: event.content, earlier: [] });
  }
  const byAnswer = new Map<string, Said>();
  for (const [id, place] of places) {
    const s = said.get(place);
    if (s) byAnswer.set(id, s);
  }
  return byAnswer;
}

/** An answer without an id is a place of its own. */
export function idOf(answer: DurableFrame): string {
  return answer.messageId || `seq:${answer.seq}`;
}

function join(before: Said, event: DurableFrame, continues: boolean): Said {
  if (continues) {
    if (!event.content) return { ...before, last: event };
    return { ...before, parts: [...before.parts, event], last: event, text: before.text + event.content };
  }
  // What was there before is better than what has failed, or was stopped before its first word.
  if ((event.metadata['failed'] || silent(event)) && before.text) return { ...before, last: event };
  const earlier = before.text ? [...before.earlier, before.text] : before.earlier;
  return { ...before, parts: [event], last: event, text: event.content, earlier };
}

function silent(answer: DurableFrame): boolean {
  return !answer.content && !answer.metadata['file_ids'] && !answer.metadata['links'];
}

/** Where another answer is on its way to, and how far it is. At most one is: the server gives them one by one. */
export function againOf(s: State, answers: ReadonlyMap<string, Said>): (Again & { readonly place: string }) | null {
  const stored = owed(s);
  const how = stored && wishOf(stored.type);
  if (stored && how) {
    const said = targetOf(s.items, answers, how, stored.target);
    if (said) return { how, place: said.id, entry: null, answer: s.answers[s.answers.length - 1] ?? null };
  }
  for (const entry of s.outbox) {
    const wish = wishOf(entry.type);
    if (!wish || !pending(s, entry)) continue;
    const said = targetOf(s.items, answers, wish, entry.target);
    if (said) return { how: wish, place: said.id, entry, answer: null };
  }
  return null;
}

/** What may be asked for about an answer; null: nothing, because it is not the last word or something is on its way. */
export function offersOf(s: State, said: Said, answers: ReadonlyMap<string, Said>): Offers | null {
  if (s.ended || s.owner === 'human' || s.owner === 'ended') return null;
  if (s.answers.length > 0 || s.loading) return null;
  if (s.outbox.some((e) => e.type === 'user_message' && pending(s, e)) || againOf(s, answers)) return null;
  if (s.items.some((m) => m.seq > said.last.seq && (isQuestion(m) || m.type === 'ai_response' || m.sender === 'admin'))) return null;
  const failed = said.last.metadata['failed'] !== undefined;
  const part = [...said.parts].reverse().find((p) => p.content !== '');
  return {
    regenerate: failed ? '' : said.last.messageId,
    goOn: part && unfinished(part) ? part.messageId : '',
    retry: failed ? questionOf(s.items, said.last) : '',
  };
}

function unfinished(part: DurableFrame): boolean {
  const { stopped, interrupted, failed, length } = part.metadata;
  return Boolean(stopped || interrupted || failed || length);
}

/** The place that a wish is about, if it is in the part of the conversation that is loaded. */
function targetOf(items: readonly DurableFrame[], answers: ReadonlyMap<string, Said>, how: Wish, target: string): Said | null {
  if (how !== 'retry') return answers.get(target) ?? null;
  for (let i = items.length - 1; i >= 0; i--) {
    const m = items[i];
    if (m?.type === 'ai_response' && namesOf(m).includes(target)) return answers.get(idOf(m)) ?? null;
  }
  return null;
}

/** The question to ask again: the newest of those that the answer names, else the last one before it; empty: none. */
function questionOf(items: readonly DurableFrame[], answer: DurableFrame): string {
  const asked = items.filter((m) => isQuestion(m) && m.sender === 'user');
  const names = namesOf(answer);
  const named = asked.filter((m) => names.includes(m.messageId)).pop();
  if (named) return named.messageId;
  const wishes = items.filter((m) => wishOf(m.type)).map((m) => m.messageId);
  // One whose question is further back than what is loaded still knows its name.
  return names.filter((id) => !wishes.includes(id)).pop() ?? asked.filter((m) => m.seq < answer.seq).pop()?.messageId ?? '';
}

/**
 * The wish that the server grants next; null: none, or a question comes before it. Things are answered in the order in which they were
 * accepted, and what was said while a person had the conversation is not.
 */
function owed(s: State): DurableFrame | null {
  if (s.owner === 'human' || s.ended) return null;
  const answered = new Set(s.items.flatMap((m) => (m.type === 'ai_response' ? namesOf(m) : [])));
  let first: DurableFrame | null = null;
  for (const m of s.items) {
    const asks = m.sender === 'user' && (isQuestion(m) || wishOf(m.type) !== null);
    if (m.type === 'admin_join' || m.type === 'admin_leave' || (asks && answered.has(m.messageId))) first = null;
    else if (asks) first ??= m;
  }
  return first && wishOf(first.type) ? first : null;
}

/** Whether the outbox holds it and the transcript does not. */
function pending(s: State, e: Entry): boolean {
  return e.state !== 'acked' && (e.seq === 0 || e.sessionId === s.sessionId) && !s.items.some((m) => m.sender === 'user' && m.messageId === e.id);
}

function isQuestion(m: DurableFrame): boolean {
  return m.type === 'user_message' || m.type === 'file_upload' || m.type === 'voice_message';
}

function namesOf(answer: DurableFrame): readonly string[] {
  return (answer.metadata['answers'] ?? '').split(' ').filter(Boolean);
}
