import fc from 'fast-check';
import { answersOf, offersOf } from './answers';
import type { Offers, Said } from './answers';
import type { Entry } from './outbox';
import { parseDurable, parseFrame } from './protocol';
import type { DurableFrame } from './protocol';
import { initial, reduce } from './state';
import type { State } from './state';
import { eventRows, transcript } from './transcript';
import { wire } from './testing';

const event = (seq: number, type: string, id: string, o: object = {}): DurableFrame => {
  const f = parseDurable(wire.event(seq, type, id, o));
  if (!f) throw new Error('no event');
  return f;
};
const answer = (seq: number, id: string, content: string, metadata: object = {}): DurableFrame => event(seq, 'ai_response', id, { content, metadata });

const q = event(2, 'user_message', 'q', { content: 'why?' });
const a = answer(3, 'a', 'because', { answers: 'q' });
const cut = answer(3, 'a', 'bec', { answers: 'q', stopped: 'true' });
const failed = answer(3, 'a', '', { answers: 'q', failed: 'LLM_UNAVAILABLE' });

const live: State = [wire.connected(), wire.snapshot([], 1), wire.live()].reduce<State>((s, f) => {
  const frame = parseFrame(f);
  return frame ? reduce(s, { kind: 'frame', frame, at: 1 }) : s;
}, initial);
/** A page that has these events, and then heard these frames. */
const page = (items: readonly DurableFrame[], ...frames: object[]): State => {
  const s = { ...live, items, seq: items[items.length - 1]?.seq ?? 0 };
  return frames.reduce<State>((t, f) => {
    const frame = parseFrame(f);
    return frame ? reduce(t, { kind: 'frame', frame, at: 1 }) : t;
  }, s);
};
const entry = (type: Entry['type'], target: string, o: Partial<Entry> = {}): Entry => ({
  id: 'w', type, content: '', modelId: '', target, at: 5, state: 'queued', sessionId: '', tried: false, seq: 0, left: false, reason: '', until: 0, ...o,
});

const said = (s: State): Said => {
  const row = [...transcript(s)].reverse().find((r) => r.kind === 'said');
  if (row?.kind !== 'said') throw new Error('nothing was said');
  return row.said;
};
const offers = (s: State): Offers | null => offersOf(s, said(s), answersOf(s.items));
const again = (s: State): object | null => transcript(s).flatMap((r) => (r.kind === 'said' && r.again ? [r.again] : []))[0] ?? null;

describe('one place', () => {
  test('an answer that was given anew takes the place of the old one, which stays as an earlier one', () => {
    const rows = eventRows([q, a, event(4, 'regenerate', 'r', { target: 'a' }), answer(5, 'b', 'therefore', { answers: 'r q', replaces: 'a' })]);
    expect(rows.map((r) => r.key)).toEqual(['user:q', 'ai:a']);
    expect(rows[1]).toMatchObject({ kind: 'said', said: { id: 'a', text: 'therefore', earlier: ['because'] } });
  });

  test('it stands where the old one stood, also when something was said since', () => {
    const rows = eventRows([q, a, event(4, 'user_message', 'q2'), answer(5, 'b', 'so', { replaces: 'a' })]);
    expect(rows.map((r) => r.key)).toEqual(['user:q', 'ai:a', 'user:q2']);
  });

  test('one that goes on is joined, over and over, and to what took the place of another', () => {
    const items = [cut, answer(5, 'b', 'au', { continues: 'a', length: 'true' }), answer(7, 'c', 'se', { continues: 'b' })];
    expect(answersOf(items).get('c')).toMatchObject({ id: 'a', text: 'because', earlier: [] });
    const anew = [a, answer(5, 'b', 'so ', { replaces: 'a' }), answer(7, 'c', 'there', { continues: 'b' })];
    expect(answersOf(anew).get('a')).toMatchObject({ text: 'so there', earlier: ['because'] });
  });

  test('one that fails replaces nothing that was said, and a failure that said nothing leaves no trace', () => {
    const again = answer(5, 'b', 'so', { replaces: 'a', failed: 'LLM_UNAVAILABLE' });
    expect(answersOf([a, again]).get('b')).toMatchObject({ id: 'a', text: 'because', earlier: [], last: { messageId: 'b' } });
    expect(answersOf([failed, answer(5, 'b', 'so', { replaces: 'a' })]).get('a')).toMatchObject({ text: 'so', earlier: [] });
  });

  test('one that was stopped before its first word replaces nothing, one that is a file does', () => {
    const silent = answer(5, 'b', '', { replaces: 'a', stopped: 'true' });
    expect(answersOf([a, silent]).get('b')).toMatchObject({ id: 'a', text: 'because', earlier: [], last: { messageId: 'b' } });
    expect(answersOf([a, answer(5, 'b', '', { replaces: 'a', file_ids: 'f' })]).get('b')).toMatchObject({ text: '', earlier: ['because'] });
  });

  test('whose beginning is not loaded stands on its own', () => {
    expect(eventRows([answer(5, 'b', 'so', { continues: 'a' })]).map((r) => r.key)).toEqual(['ai:b']);
  });

  test('answers without an id, as an older service may have stored them, are not one', () => {
    expect(eventRows([answer(2, '', 'one'), answer(3, '', 'two')])).toHaveLength(2);
  });

  // Every answer is in one place, and every place is one row.
  test('however answers follow on one another, each is found, and no text is doubled', () => {
    const steps = fc.array(fc.record({ how: fc.constantFrom('continues', 'replaces', ''), target: fc.nat(20), failed: fc.boolean(), says: fc.boolean() }), { maxLength: 20 });
    fc.assert(
      fc.property(steps, (plan) => {
        const items = plan.map((p, i) =>
          answer(i + 1, `a${i}`, p.says ? `<${i}>` : '', { ...(p.how ? { [p.how]: `a${p.target % (i + 1)}` } : {}), ...(p.failed ? { failed: 'X' } : {}) }),
        );
        const rows = eventRows(items);
        const places = new Set([...answersOf(items).values()].map((s) => s.id));
        expect(answersOf(items).size).toBe(items.length);
        expect(rows).toHaveLength(places.size);
        const texts = rows.map((r) => (r.kind === 'said' ? r.said.text : '')).join('');
        for (const i of items.keys()) expect(texts.split(`<${i}>`).length).toBeLessThanOrEqual(2);
      }),
      { numRuns: 300 },
    );
  });
});

describe('what is offered', () => {
  test('a whole answer can be given anew, a broken one continued too, a failed one retried by its question', () => {
    expect(offers(page([q, a]))).toEqual({ regenerate: 'a', goOn: '', retry: '' });
    expect(offers(page([q, cut]))).toEqual({ regenerate: 'a', goOn: 'a', retry: '' });
    expect(offers(page([q, failed]))).toEqual({ regenerate: '', goOn: '', retry: 'q' });
    const partial = answer(3, 'a', 'bec', { answers: 'q', failed: 'LLM_UNAVAILABLE', interrupted: 'failed' });
    expect(offers(page([q, partial]))).toEqual({ regenerate: '', goOn: 'a', retry: 'q' });
  });

  test('the target of continue is the part that broke off, and a retry never names a wish', () => {
    const joined = [q, cut, event(4, 'continue', 'c', { target: 'a' }), answer(5, 'b', 'au', { answers: 'c q', continues: 'a', stopped: 'true' })];
    expect(offers(page(joined))).toMatchObject({ goOn: 'b' });
    const empty = [q, cut, event(4, 'continue', 'c', { target: 'a' }), answer(5, 'b', '', { answers: 'c q', continues: 'a', failed: 'X' })];
    expect(offers(page(empty))).toEqual({ regenerate: '', goOn: 'a', retry: 'q' });
    expect(offers(page([event(4, 'retry', 'r', { target: 'q' }), answer(5, 'b', '', { answers: 'r q', failed: 'X' })]))).toMatchObject({ retry: 'q' });
    expect(offers(page([q, answer(3, 'a', '', { failed: 'X' })]))).toMatchObject({ retry: 'q' });
  });

  test('nothing is, when something was said since, an answer runs, a person has the conversation or it has ended', () => {
    const join = wire.event(4, 'admin_join', 'j', { sender: 'admin', metadata: { name: 'Mei' } });
    for (const f of [
      wire.event(4, 'user_message', 'q2'),
      wire.delta('b', 1, 1, 'x'),
      { type: 'loading', session_id: 's1', message_id: 'b', active: true, try: 1 },
      wire.event(4, 'regenerate', 'r', { target: 'a' }),
      wire.event(4, 'session_ended', 'e', { sender: 'system' }),
      join,
    ]) expect(offers(page([q, a], f))).toBeNull();
    expect(offers(page([q, a], join, wire.event(5, 'admin_leave', 'l', { sender: 'admin' })))).toBeNull();
    expect(offers(page([q, a], wire.event(4, 'help_request', 'h')))).not.toBeNull();
  });

  test('nothing is, while a message or a wish waits to be sent', () => {
    for (const type of ['user_message', 'retry'] as const) expect(offers({ ...page([q, failed]), outbox: [entry(type, 'q')] })).toBeNull();
    expect(offers({ ...page([q, failed]), outbox: [entry('model_select', ''), entry('retry', 'elsewhere')] })).not.toBeNull();
  });
});

describe('another answer on its way', () => {
  test('shows in the place that it is for: waiting to be sent, accepted, spoken, there', () => {
    const waiting = { ...page([q, failed]), outbox: [entry('retry', 'q')] };
    expect(again(waiting)).toMatchObject({ how: 'retry', entry: { id: 'w' }, answer: null });
    const accepted = reduce(waiting, { kind: 'frame', frame: parseFrame(wire.ack('w', 4)) ?? { kind: 'resync' }, at: 1 });
    expect(again(accepted)).toMatchObject({ how: 'retry', entry: null, answer: null });
    const stored = page([q, failed, event(4, 'retry', 'w', { target: 'q' })], wire.delta('b', 1, 1, 'so'));
    expect(again(stored)).toMatchObject({ how: 'retry', answer: { text: 'so' } });
    expect(transcript(stored).filter((r) => r.kind === 'answer')).toEqual([]);
    const done = page([q, failed, event(4, 'retry', 'w', { target: 'q' })], wire.event(5, 'ai_response', 'b', { content: 'so', metadata: { answers: 'w q', replaces: 'a' } }));
    expect(again(done)).toBeNull();
    expect(said(done).text).toBe('so');
  });

  test('comes after the questions that were accepted before it', () => {
    const s = page([q, a, event(4, 'user_message', 'q2'), event(5, 'regenerate', 'r', { target: 'a' })], wire.delta('b', 1, 1, 'x'));
    expect(again(s)).toBeNull();
    expect(transcript(s).filter((r) => r.kind === 'answer')).toHaveLength(1);
  });

  test('is not expected of a question or wish that a person took over, nor after the end', () => {
    const wish = event(4, 'regenerate', 'r', { target: 'a' });
    const join = event(5, 'admin_join', 'j', { sender: 'admin' });
    expect(again(page([q, a, wish, join]))).toBeNull();
    expect(again({ ...page([q, a, wish]), ended: { reason: 'explicit', next: '' } })).toBeNull();
  });

  test('for something that is not there is shown in no other place', () => {
    const waiting = { ...page([q, failed]), outbox: [entry('retry', 'lost'), entry('model_select', '')] };
    expect(again(waiting)).toBeNull();
  });

  test('about something that is not loaded shows nowhere, and runs as an answer of its own', () => {
    const s = page([q, a, event(4, 'regenerate', 'r', { target: 'lost' })], wire.delta('b', 1, 1, 'x'));
    expect(again(s)).toBeNull();
    expect(transcript(s).filter((r) => r.kind === 'answer')).toHaveLength(1);
  });
});
