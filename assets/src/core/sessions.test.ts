import { parseFrame } from './protocol';
import { listed, withKnown } from './sessions';
import type { SessionEntry } from './sessions';
import { initial, reduce } from './state';
import type { State } from './state';
import { wire } from './testing';

const entry = (id: string, o: Partial<SessionEntry> = {}): SessionEntry => ({
  id, name: id, lastActivity: '2026-11-23T06:00:00.000Z', messageCount: 4, adminAssisted: false, active: false, ...o,
});

function run(frames: readonly object[], from: State = initial): State {
  return frames.reduce<State>((s, f) => {
    const frame = parseFrame(f);
    return frame ? reduce(s, { kind: 'frame', frame, at: 1 }) : s;
  }, from);
}

const empty = run([wire.connected(), wire.snapshot([], 1), wire.live()]);
const said = run([wire.event(2, 'user_message', 'q', { content: 'my question\nin two lines' })], empty);

test('the list is as the server gave it while the page has no session, and lacks a session without a message', () => {
  const items = [entry('a', { active: true })];
  expect(listed(items, initial)).toBe(items);
  expect(listed([], empty)).toEqual([]);
});

// Promise 50: entries carry name, last message time, message count.
test('the first message puts the current session on top, named by its first line', () => {
  expect(listed([entry('a')], said)).toEqual([
    entry('s1', { name: 'my question', lastActivity: '2026-11-23T07:00:00.000Z', messageCount: 1, active: true }),
    entry('a'),
  ]);
});

// Promise 48: one active session.
test('after a new chat the old one is no longer the current one', () => {
  expect(listed([entry('old', { active: true })], empty).map((e) => e.active)).toEqual([false]);
  expect(listed([entry('old', { active: true })], { ...empty, live: false }).map((e) => e.active)).toEqual([true]);
});

test('what the server knows better stays: its name, its count, help by a person', () => {
  const mine = entry('s1', { name: 'Named', messageCount: 90, adminAssisted: true, active: true });
  expect(listed([entry('a'), mine], said)[0]).toMatchObject({ name: 'Named', messageCount: 90, adminAssisted: true, active: true });
  expect(listed([mine], { ...empty, owner: 'human' })).toHaveLength(1);
});

test('a session that has ended keeps its place and is not the current one', () => {
  const ended = run([wire.event(3, 'session_ended', 'e')], said);
  expect(listed([entry('a'), entry('s1', { active: true })], ended).map((e) => [e.id, e.active])).toEqual([['a', false], ['s1', false]]);
});

test('a partial page keeps what was read before', () => {
  const before = [entry('old', { active: true }), entry('older')];
  expect(withKnown([entry('now', { active: true })], before).map((e) => [e.id, e.active])).toEqual([
    ['now', true], ['old', false], ['older', false],
  ]);
});
