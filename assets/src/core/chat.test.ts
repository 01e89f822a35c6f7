import { Chat } from './chat';
import { initial } from './state';
import type { State } from './state';
import { transcript } from './transcript';
import { parseDurable } from './protocol';
import { FakeClock, FakeNet, MemoryStore, settle, wire } from './testing';

function setup(storage: MemoryStore | null = null) {
  const clock = new FakeClock();
  const net = new FakeNet();
  const errors: string[] = [];
  let state: State = initial;
  let n = 0;
  const chat = new Chat({
    url: 'ws://h/chat/ws',
    dial: net.dial,
    clock,
    random: () => 0.5,
    uuid: () => `m${++n}`,
    storage,
    token: () => Promise.resolve('jwt'),
    probe: () => Promise.resolve('unreachable' as const),
    onState: (s) => {
      state = s;
    },
    onStatus: () => undefined,
    onError: (code) => errors.push(code),
  });
  const connect = async (...frames: object[]): Promise<void> => {
    await settle();
    net.last.open();
    net.last.say(...frames);
  };
  return { chat, clock, net, errors, connect, state: () => state };
}

const fresh = [wire.connected(), wire.snapshot([], 1), wire.live()];

async function live(storage: MemoryStore | null = null) {
  const s = setup(storage);
  s.chat.start('');
  await s.connect(...fresh);
  return s;
}

// Beyond B7: from thumb to transcript exactly once.
test('a message written before the first connection goes out when the session is live', async () => {
  const s = setup();
  expect(s.chat.send({ type: 'user_message', content: 'hi' })).toBe(true);
  s.chat.start('u1');
  await s.connect(wire.connected(), wire.snapshot([], 1));
  expect(s.net.last.sent).toEqual([]);
  s.net.last.say(wire.live());
  expect(s.net.last.of('user_message')).toEqual([{ type: 'user_message', message_id: 'm1', content: 'hi' }]);
  s.net.last.say(wire.ack('m1', 2));
  expect(transcript(s.state())).toHaveLength(1);
});

// Beyond B7: acks may be dropped.
test('a message whose ack was lost with the socket is confirmed by the catch-up and not sent again', async () => {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'hi' });
  s.net.last.close(1006);
  await s.clock.advance(1_000);
  await s.connect(wire.connected({ seq: 2, resumed: true, recovered: true }), wire.ack('m1', 2), wire.live());
  expect(s.net.last.url).toContain('last_seq=1');
  expect(s.net.last.of('user_message')).toEqual([]);
  expect(s.state().items.map((m) => m.content)).toEqual(['hi']);
});

test('a message that never arrived is sent again after the reconnect', async () => {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'hi' });
  s.net.last.close(1006);
  await s.clock.advance(1_000);
  await s.connect(wire.connected({ seq: 1, resumed: true, recovered: true }), wire.live());
  expect(s.net.last.of('user_message')).toEqual([
    { type: 'user_message', message_id: 'm1', content: 'hi', session_id: 's1', resent: true },
  ]);
});

test('after an ack the page asks how far the archive is, and forgets what is safe', async () => {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'hi' });
  s.net.last.say(wire.ack('m1', 2));
  await s.clock.advance(2_000);
  expect(s.net.last.of('ping')).toEqual([{ type: 'ping', last_seq: 2 }]);
  expect(s.state().outbox).toHaveLength(1);
  s.net.last.say(wire.pong(2, 2));
  expect(s.state().outbox).toHaveLength(0);
  expect(s.state().items).toHaveLength(1);
});

test('a stream of acks does not put off the question, and a reload asks it for what was acknowledged before', async () => {
  const storage = new MemoryStore();
  const s = await live(storage);
  for (let i = 1; i <= 4; i++) {
    s.chat.send({ type: 'user_message', content: `${i}` });
    s.net.last.say(wire.ack(`m${i}`, i + 1));
    await s.clock.advance(900);
  }
  expect(s.net.last.of('ping')).toHaveLength(1);
  s.chat.stop();
  const again = setup(storage);
  again.chat.start('u1');
  await again.connect(wire.connected(), wire.snapshot([wire.event(9, 'user_message', 'x')], 9, { has_more: true }), wire.live());
  expect(transcript(again.state())).toHaveLength(1); // the four are older than what is loaded
  await again.clock.advance(2_000);
  again.net.last.say(wire.pong(9, 9));
  expect(again.state().outbox).toEqual([]);
});

// Beyond B2: what Redis lost and the client has comes back.
test('a Redis that lost its tail gets the message again', async () => {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'hi' });
  s.net.last.say(wire.ack('m1', 2));
  s.net.last.close(1006);
  await s.clock.advance(1_000);
  await s.connect(wire.connected({ epoch: 'e2', seq: 1_001, resumed: true }), wire.snapshot([], 1_001, { epoch: 'e2' }), wire.live());
  expect(s.net.last.of('user_message')).toMatchObject([{ message_id: 'm1', resent: true, session_id: 's1' }]);
  expect(s.state().items).toEqual([]);
  s.net.last.say(wire.ack('m1', 1_002));
  expect(s.state().items.map((m) => m.seq)).toEqual([1_002]);
  expect(s.state()).toMatchObject({ epoch: 'e2', seq: 1_002 });
});

test('a refused message fails with its reason, and other errors are told', async () => {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'hi' });
  s.net.last.say(wire.error('m1', 'BUDGET_EXCEEDED', false), wire.error('', 'INTERNAL', true), wire.error('other', 'BAD_FRAME', true));
  expect(s.state().outbox).toMatchObject([{ state: 'failed', reason: 'BUDGET_EXCEEDED' }]);
  expect(s.errors).toEqual(['INTERNAL', 'BAD_FRAME']);
  s.chat.resend('m1');
  expect(s.net.last.of('user_message')).toHaveLength(2);
  s.net.last.say(wire.error('m1', 'BUDGET_EXCEEDED', false));
  s.chat.discard('m1');
  expect(s.state().outbox).toEqual([]);
});

test('a message that was told to wait goes out by itself', async () => {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'hi' });
  s.net.last.say(wire.error('m1', 'RATE_LIMITED', true, 3_000));
  await s.clock.advance(2_999);
  expect(s.net.last.of('user_message')).toHaveLength(1);
  await s.clock.advance(1);
  expect(s.net.last.of('user_message')).toHaveLength(2);
});

test('stop names the answer that runs, and only when one does', async () => {
  const s = await live();
  expect(s.chat.stopAnswer()).toBe(false);
  s.net.last.say(wire.delta('a', 1, 1, 'x'));
  expect(s.chat.stopAnswer()).toBe(true);
  expect(s.net.last.of('stop')).toMatchObject([{ target: 'a' }]);
});

test('typing is told at most every two seconds', async () => {
  const s = await live();
  s.chat.typing();
  s.chat.typing();
  await s.clock.advance(2_000);
  s.chat.typing();
  expect(s.net.last.of('typing_indicator')).toHaveLength(2);
});

test("somebody else's typing lapses", async () => {
  const s = await live();
  s.net.last.say({ type: 'typing_indicator', session_id: 's1', sender: 'admin', active: true });
  expect(s.state().typing).not.toBeNull();
  await s.clock.advance(5_000);
  expect(s.state().typing).toBeNull();
});

test('a new chat connects without the old session and starts empty', async () => {
  const s = await live();
  s.net.last.say(wire.event(2, 'user_message', 'x', { content: 'old' }));
  s.chat.renew(true);
  await settle();
  expect(s.net.last.url).toBe('ws://h/chat/ws');
  await s.connect(wire.connected({ session_id: 's2' }), wire.snapshot([], 1, { session_id: 's2' }), wire.live({ session_id: 's2' }));
  expect(s.state()).toMatchObject({ sessionId: 's2', items: [], live: true });
});

test('an ended session is not asked for again', async () => {
  const s = await live();
  s.net.last.say(wire.event(2, 'session_ended', 'e', { metadata: { next: 's2' } }));
  s.net.last.close(4001);
  await s.clock.advance(0);
  expect(s.net.last.url).toBe('ws://h/chat/ws');
});

test('older pages are added as they are', async () => {
  const s = await live();
  const old = parseDurable(wire.event(1, 'user_message', 'x', { content: 'old' }));
  s.chat.older('s1', old ? [old] : [], true);
  expect(s.state().items).toEqual([old]);
  expect(s.state().hasMore).toBe(true);
});

// Beyond B12: unsent messages survive.
test('a reload sends what was left behind, for the user that the server names', async () => {
  const storage = new MemoryStore();
  const one = await live(storage);
  one.net.last.close(1006);
  one.chat.send({ type: 'user_message', content: 'from before' });
  one.chat.stop();
  const two = await live(storage);
  expect(two.net.last.of('user_message')).toMatchObject([{ message_id: 'm1', content: 'from before' }]);
  two.chat.nudge();
  two.chat.reconnect();
  two.chat.stop();
  expect(two.clock.pending).toBe(0);
});

/** A live page whose first message is acknowledged, and whose second is not. */
async function saidTwo() {
  const s = await live();
  s.chat.send({ type: 'user_message', content: 'acknowledged' });
  s.net.last.say(wire.ack('m1', 2));
  s.chat.send({ type: 'user_message', content: 'unacknowledged' });
  return s;
}

const next = [wire.connected({ session_id: 's2' }), wire.snapshot([], 1, { session_id: 's2' }), wire.live({ session_id: 's2' })];

// Beyond B7: one message, in one session.
test('after a new chat what was acknowledged stays in the session that ended, and only the rest moves on', async () => {
  const s = await saidTwo();
  s.chat.renew(true);
  await s.connect(...next);
  expect(s.net.last.of('user_message')).toMatchObject([{ message_id: 'm2', session_id: 's1', resent: true }]);
});

test('the same when the end was somebody else\'s doing', async () => {
  const s = await saidTwo();
  s.net.last.say(wire.event(3, 'session_ended', 'e', { sender: 'system' }));
  s.net.last.close(4001);
  await s.clock.advance(0);
  await s.connect(...next);
  expect(s.net.last.of('user_message')).toMatchObject([{ message_id: 'm2' }]);
});

// Beyond B2: what Redis lost and the client has comes back.
test('a session that is gone without having ended leaves everything to the next one', async () => {
  const s = await saidTwo();
  s.chat.renew(false);
  await s.connect(...next);
  expect(s.net.last.of('user_message')).toMatchObject([{ message_id: 'm1', session_id: 's1', resent: true }]);
});
