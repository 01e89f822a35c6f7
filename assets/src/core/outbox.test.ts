import { MAX_AGE, MAX_ENTRIES, MAX_WAIT, ACK_TIMEOUT, Outbox } from './outbox';
import { parseFrame } from './protocol';
import type { AckFrame, DurableFrame, ErrorFrame, SnapshotFrame } from './protocol';
import { MemoryStore, wire } from './testing';

function setup(o: { storage?: MemoryStore | null; at?: number } = {}) {
  let now = o.at ?? 1_000_000;
  let n = 0;
  const box = new Outbox({
    storage: o.storage === undefined ? new MemoryStore() : o.storage,
    now: () => now,
    random: () => 0.5,
    uuid: () => `m${++n}`,
    onChange: () => undefined,
  });
  return {
    box,
    say: (content: string) => box.add({ type: 'user_message', content }),
    pass: (ms: number) => (now += ms),
    states: () => box.entries.map((e) => `${e.id}:${e.state}`),
  };
}

const ack = (id: string, seq: number, o: object = {}) => parseFrame(wire.ack(id, seq, o)) as AckFrame;
const error = (id: string, code: string, recoverable: boolean, after = 0) =>
  parseFrame(wire.error(id, code, recoverable, after)) as ErrorFrame;
const snapshot = (messages: object[], seq: number, o: object = {}) => parseFrame(wire.snapshot(messages, seq, o)) as SnapshotFrame;
const event = (seq: number, id: string) => parseFrame(wire.event(seq, 'user_message', id)) as DurableFrame;

test('nothing leaves before the session is live', () => {
  const { box, say } = setup();
  say('a');
  expect(box.take()).toBeNull();
  expect(box.due()).toBeNull();
  box.live('s1');
  expect(box.take()).toEqual({ type: 'user_message', message_id: 'm1', content: 'a' });
});

// Promise 12: order is preserved.
test('entries leave in order, one in flight until its ack', () => {
  const { box, say } = setup();
  box.live('s1');
  say('a');
  say('b');
  expect(box.take()).toMatchObject({ message_id: 'm1' });
  expect(box.take()).toBeNull();
  box.acked(ack('m1', 4));
  expect(box.take()).toMatchObject({ message_id: 'm2' });
});

// Beyond B7: acks may be dropped.
test('an ack that never comes makes it go out again under the same id, marked as sent before', () => {
  const { box, say, pass } = setup();
  box.live('s1');
  say('a');
  box.take();
  expect(box.due()).toBe(1_000_000 + ACK_TIMEOUT);
  pass(ACK_TIMEOUT);
  expect(box.take()).toEqual({ type: 'user_message', message_id: 'm1', content: 'a', session_id: 's1', resent: true });
});

test('what was in flight when the socket died is sent again with the session of its first try', () => {
  const { box, say } = setup();
  box.live('s1');
  say('a');
  say('b');
  box.take();
  box.lost();
  box.live('s2');
  expect(box.take()).toMatchObject({ message_id: 'm1', session_id: 's1', resent: true });
  box.acked(ack('m1', 9, { session_id: 's2' }));
  expect(box.take()).toEqual({ type: 'user_message', message_id: 'm2', content: 'b' });
});

test('an entry is kept until everything up to its seq is archived', () => {
  const { box, say } = setup();
  box.live('s1');
  say('a');
  box.take();
  box.acked(ack('m1', 7));
  box.durable('s1', 6);
  box.durable('s2', 9);
  expect(box.entries).toHaveLength(1);
  box.durable('s1', 7);
  expect(box.entries).toHaveLength(0);
});

// Beyond B2: no acknowledged message is lost while the client has it.
test('a snapshot without an acknowledged message that it should show makes it go out again', () => {
  const { box, say, states } = setup();
  box.live('s1');
  say('a');
  box.take();
  box.acked(ack('m1', 7));
  box.lost();
  box.snapshot(snapshot([wire.event(5, 'user_message', 'other')], 6, { has_more: true }));
  expect(states()).toEqual(['m1:queued']);
  box.live('s1');
  expect(box.take()).toMatchObject({ message_id: 'm1', resent: true, session_id: 's1' });
});

test('a message older than the first of a snapshot is not missing from it', () => {
  const { box, say, states } = setup();
  box.live('s1');
  say('a');
  box.take();
  box.acked(ack('m1', 7));
  box.snapshot(snapshot([wire.event(8, 'user_message', 'other')], 9, { has_more: true }));
  expect(states()).toEqual(['m1:acked']);
  box.snapshot(snapshot([wire.event(8, 'user_message', 'other')], 9, { has_more: false }));
  expect(states()).toEqual(['m1:queued']);
});

test('an own message in a snapshot or met as an event counts as its ack', () => {
  const { box, say, states } = setup();
  box.live('s1');
  say('a');
  say('b');
  box.take();
  box.lost();
  box.snapshot(snapshot([wire.event(3, 'user_message', 'm1')], 3));
  expect(states()).toEqual(['m1:acked', 'm2:queued']);
  box.seen(event(4, 'm2'));
  box.seen({ ...event(5, 'm2'), sender: 'admin' });
  expect(states()).toEqual(['m1:acked', 'm2:acked']);
});

test('a message found in a session that was left needs no more care', () => {
  const { box, say } = setup();
  box.live('s1');
  say('a');
  box.take();
  box.acked(ack('m1', 7));
  box.lost();
  box.snapshot(snapshot([], 1, { session_id: 's2' }));
  box.live('s2');
  expect(box.take()).toMatchObject({ message_id: 'm1', session_id: 's1', resent: true });
  box.acked(ack('m1', 7, { duplicate: true }));
  expect(box.entries).toHaveLength(0);
});

test('a recoverable error waits as long as the server says and keeps the order', () => {
  const { box, say, pass } = setup();
  box.live('s1');
  say('a');
  say('b');
  box.take();
  expect(box.refused(error('m1', 'STORE_UNAVAILABLE', true, 5_000))).toBe(true);
  expect(box.take()).toBeNull();
  pass(4_999);
  expect(box.take()).toBeNull();
  pass(1);
  expect(box.take()).toMatchObject({ message_id: 'm1', resent: true });
});

test('after a refusal that certainly stored nothing the next try is like the first', () => {
  const { box, say, pass } = setup();
  box.live('s1');
  say('a');
  box.take();
  box.refused(error('m1', 'RATE_LIMITED', true, 2_000));
  pass(2_000);
  expect(box.take()).toEqual({ type: 'user_message', message_id: 'm1', content: 'a' });
});

test('waits grow while a server keeps saying "later" without saying when', () => {
  const { box, say, pass } = setup();
  box.live('s1');
  say('a');
  const waits = [0, 1, 2].map(() => {
    box.take();
    box.refused(error('m1', 'INTERNAL', true));
    const wait = (box.due() ?? 0) - pass(0);
    pass(wait);
    return wait;
  });
  expect(waits).toEqual([750, 1_500, 3_000]);
});

test('a fatal error fails one entry with its reason and lets the next go', () => {
  const { box, say, states } = setup();
  box.live('s1');
  say('a');
  say('b');
  box.take();
  box.refused(error('m1', 'TOO_LARGE', false));
  expect(box.entries[0]).toMatchObject({ state: 'failed', reason: 'TOO_LARGE' });
  expect(box.take()).toMatchObject({ message_id: 'm2' });
  box.acked(ack('m2', 2));
  box.retry('m1');
  expect(box.take()).toMatchObject({ message_id: 'm1' });
  box.discard('m1');
  expect(states()).toEqual(['m2:acked', 'm1:sent']); // on its way: too late to discard
  box.refused(error('m1', 'TOO_LARGE', false));
  box.discard('m1');
  expect(states()).toEqual(['m2:acked']);
  expect(box.refused(error('unknown', 'X', false))).toBe(false);
});

describe('what is refused for hours', () => {
  const HOURS = 3 * 60 * 60 * 1_000;

  test('is not sent again by itself: the user is asked, and told when', () => {
    const { box, say, pass, states } = setup();
    box.live('s1');
    say('a');
    box.take();
    expect(box.refused(error('m1', 'BUDGET_EXCEEDED', true, HOURS))).toBe(true);
    expect(box.entries[0]).toMatchObject({ state: 'failed', reason: 'BUDGET_EXCEEDED', until: 1_000_000 + HOURS, tried: false, sessionId: '' });
    expect(box.due()).toBeNull();
    pass(HOURS);
    expect(box.take()).toBeNull();
    box.retry('m1');
    expect(box.take()).toEqual({ type: 'user_message', message_id: 'm1', content: 'a' });
    expect(states()).toEqual(['m1:sent']);
    expect(box.entries[0]).toMatchObject({ reason: '', until: 0 });
  });

  test('does not hold up what comes after it, and survives a reload', () => {
    const storage = new MemoryStore();
    const { box, say } = setup({ storage });
    box.adopt('u1');
    box.live('s1');
    say('a');
    say('b');
    box.take();
    box.refused(error('m1', 'BUDGET_EXCEEDED', true));
    expect(box.take()).toMatchObject({ message_id: 'm2' });
    const again = setup({ storage });
    again.box.adopt('u1');
    expect(again.box.entries[0]).toMatchObject({ id: 'm1', state: 'failed', until: 0 });
  });

  test('counts as sent before only when the server may have it', () => {
    const { box, say } = setup();
    box.live('s1');
    say('a');
    box.take();
    box.lost();
    box.live('s1');
    box.take();
    box.refused(error('m1', 'STORE_UNAVAILABLE', true, MAX_WAIT + 1));
    expect(box.entries[0]).toMatchObject({ state: 'failed', tried: true, sessionId: 's1' });
  });
});

test('no more than 50 wait', () => {
  const { box, say } = setup();
  for (let i = 0; i < MAX_ENTRIES; i++) expect(say('x')).not.toBeNull();
  expect(say('x')).toBeNull();
  box.discard('m1');
  expect(say('x')).not.toBeNull();
});

test('after a day an entry is not sent by itself any more', () => {
  const { box, say, pass, states } = setup();
  say('a');
  pass(MAX_AGE + 1);
  box.live('s1');
  expect(box.take()).toBeNull();
  expect(box.entries[0]).toMatchObject({ state: 'failed', reason: 'EXPIRED' });
  box.retry('m1');
  expect(box.take()).toMatchObject({ message_id: 'm1' });
  expect(states()).toEqual(['m1:sent']);
});

// Beyond B12: unsent messages survive.
test('a reload finds the entries of the same user, and of no other', () => {
  const storage = new MemoryStore();
  const one = setup({ storage });
  one.box.adopt('u1');
  one.box.live('s1');
  one.say('sent');
  one.say('waiting');
  one.box.take();

  const two = setup({ storage });
  two.box.adopt('u2');
  expect(two.box.entries).toHaveLength(0);
  two.box.adopt('u1');
  expect(two.states()).toEqual(['m1:queued', 'm2:queued']);
  two.box.live('s1');
  expect(two.box.take()).toMatchObject({ message_id: 'm1', session_id: 's1', resent: true });
});

test('entries added before the user was known go out after those left behind', () => {
  const storage = new MemoryStore();
  const one = setup({ storage });
  one.box.adopt('u1');
  one.say('left behind');
  const two = setup({ storage });
  two.box.add({ type: 'help_request' });
  two.box.adopt('');
  storage.values.set('chatbox.outbox.1.u1', (storage.values.get('chatbox.outbox.1.u1') ?? '').replace('"m1"', '"m0"'));
  two.box.adopt('u1');
  expect(two.states()).toEqual(['m0:queued', 'm1:queued']);
});

test('storage that throws, or holds rubbish, costs nothing but the memory of a reload', () => {
  const storage = new MemoryStore();
  storage.broken = true;
  const broken = setup({ storage });
  broken.box.adopt('u1');
  broken.say('a');
  broken.box.live('s1');
  expect(broken.box.take()).toMatchObject({ message_id: 'm1' });

  for (const rubbish of ['{', '7', '[1,null,{"id":"x"},{"id":"y","type":"evil","state":"queued","at":1}]']) {
    const store = new MemoryStore();
    store.values.set('chatbox.outbox.1.u1', rubbish);
    const box = setup({ storage: store });
    box.box.adopt('u1');
    expect(box.box.entries).toHaveLength(0);
  }
});

test('an emptied outbox leaves nothing in storage', () => {
  const storage = new MemoryStore();
  const { box, say } = setup({ storage });
  box.adopt('u1');
  say('a');
  box.live('s1');
  box.take();
  box.acked(ack('m1', 2));
  expect(storage.values.size).toBe(1);
  box.durable('s1', 2);
  expect(storage.values.size).toBe(0);
});

test('every kind of entry has its frame', () => {
  const { box } = setup();
  box.live('s1');
  const frames: unknown[] = [];
  for (const d of [
    { type: 'model_select', modelId: 'm2' },
    { type: 'help_request' },
    { type: 'help_request', content: 'please' },
    { type: 'regenerate', target: 'a1' },
  ] as const) {
    const e = box.add(d);
    frames.push(box.take());
    box.acked(ack(e?.id ?? '', frames.length));
  }
  expect(frames).toEqual([
    { type: 'model_select', message_id: 'm1', model_id: 'm2' },
    { type: 'help_request', message_id: 'm2' },
    { type: 'help_request', message_id: 'm3', content: 'please' },
    { type: 'regenerate', message_id: 'm4', target: 'a1' },
  ]);
});

describe('what was acknowledged in a session that has ended', () => {
  function ended(storage = new MemoryStore()) {
    const s = setup({ storage });
    s.box.adopt('u1');
    s.box.live('s1');
    s.say('a');
    s.box.take();
    s.box.acked(ack('m1', 7));
    s.box.ended('s1');
    s.box.lost();
    return s;
  }

  test('is not missing from another session, also after a reload', () => {
    const storage = new MemoryStore();
    const first = ended(storage);
    first.box.snapshot(snapshot([], 1, { session_id: 's2' }));
    expect(first.states()).toEqual(['m1:acked']);
    const again = setup({ storage });
    again.box.adopt('u1');
    again.box.snapshot(snapshot([], 1, { session_id: 's2' }));
    again.box.live('s2');
    expect(again.box.take()).toBeNull();
  });

  test('is sent again when a snapshot of its own session lacks it, and forgotten when that is archived', () => {
    const lacking = ended();
    lacking.box.snapshot(snapshot([], 1));
    expect(lacking.states()).toEqual(['m1:queued']);
    const archived = ended();
    archived.box.durable('s1', 7);
    expect(archived.states()).toEqual([]);
  });

  test('is forgotten after a day', () => {
    const storage = new MemoryStore();
    const s = ended(storage);
    s.box.live('s2');
    s.pass(MAX_AGE + 1);
    expect(s.box.take()).toBeNull();
    expect(s.states()).toEqual([]);
    ended(storage);
    const late = setup({ storage, at: 1_000_000 + MAX_AGE + 1 });
    late.box.adopt('u1');
    expect(late.states()).toEqual([]);
  });

  test('is all that remains of it: a wish about one of its answers goes nowhere', () => {
    const { box, say, states } = setup();
    box.live('s1');
    box.add({ type: 'retry', target: 'q' });
    say('a');
    box.ended('s1');
    expect(states()).toEqual(['m2:queued']);
  });

  test('does not touch what another session acknowledged', () => {
    const s = ended();
    s.box.live('s2');
    s.say('b');
    s.box.take();
    s.box.acked(ack('m2', 3, { session_id: 's2' }));
    s.box.ended('s1');
    s.box.snapshot(snapshot([], 1, { session_id: 's3' }));
    expect(s.states()).toEqual(['m1:acked', 'm2:queued']);
  });
});
