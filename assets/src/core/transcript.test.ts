import { parseDurable } from './protocol';
import type { DurableFrame } from './protocol';
import { eventRows, grouped, nameOf } from './transcript';
import { initial } from './state';
import { wire } from './testing';

const event = (seq: number, type: string, id: string, o: object = {}): DurableFrame => {
  const f = parseDurable(wire.event(seq, type, id, o));
  if (!f) throw new Error('no event');
  return f;
};

test('messages of one side stand together, answers each on their own, and nothing joins a system line', () => {
  const rows = eventRows([
    event(1, 'user_message', 'a'),
    event(2, 'user_message', 'b'),
    event(3, 'ai_response', 'c'),
    event(4, 'ai_response', 'd'),
    event(5, 'model_select', 'e'),
    event(6, 'user_message', 'f'),
    event(7, 'user_message', 'g', { sender: 'admin' }),
    event(8, 'user_message', 'h', { sender: 'admin' }),
  ]);
  expect(rows.map((row, i) => grouped(rows[i - 1], row))).toEqual([false, true, false, false, false, false, false, true]);
});

test('a running answer stands apart from the one before it', () => {
  const answer = { id: 'x', attempt: 1, chunk: 1, text: 't', gap: false, stale: false };
  const [before] = eventRows([event(1, 'ai_response', 'c')]);
  expect(grouped(before, { kind: 'answer', key: 'ai:x', answer })).toBe(false);
});

test('a session is called by its name, else by the first line of its first message', () => {
  expect(nameOf({ ...initial, name: 'Named' })).toBe('Named');
  expect(nameOf({ ...initial, items: [event(1, 'user_message', 'a', { content: 'first\nsecond' })] })).toBe('first');
  expect(nameOf(initial)).toBe('');
});
