import { Connection, HEARTBEAT_MS, PING_AFTER_ACK_MS, PONG_MS } from './connection';
import type { Position, Status, StopReason, TokenReason } from './connection';
import { FakeClock, FakeNet, settle, wire } from './testing';

function setup(o: { tokens?: (string | null)[]; probe?: 'ok' | 'unauthorized' | 'forbidden' | 'unreachable' } = {}) {
  const clock = new FakeClock();
  const net = new FakeNet();
  const statuses: string[] = [];
  const asked: TokenReason[] = [];
  const tokens = o.tokens ?? ['jwt'];
  let position: Position | null = null;
  let lost = 0;
  let probes = 0;
  const c = new Connection({
    url: 'wss://h/chat/ws',
    dial: net.dial,
    clock,
    random: () => 0.5,
    token: (reason) => {
      asked.push(reason);
      return Promise.resolve(tokens[Math.min(asked.length, tokens.length) - 1] ?? null);
    },
    probe: () => {
      probes++;
      return Promise.resolve(o.probe ?? 'unreachable');
    },
    position: () => position,
    onFrame: (f) => {
      if (f.kind === 'connected') position = { sessionId: f.sessionId, epoch: f.epoch, seq: f.seq };
    },
    onStatus: (s: Status) => statuses.push(s.kind),
    onLost: () => lost++,
  });
  const live = async (): Promise<void> => {
    await settle();
    net.last.open();
    net.last.say(wire.connected(), wire.live());
  };
  return { c, clock, net, statuses, asked, live, position: (p: Position | null) => (position = p), lost: () => lost, probes: () => probes };
}

async function started(o: Parameters<typeof setup>[0] = {}) {
  const s = setup(o);
  s.c.start();
  await s.live();
  return s;
}

test('the token travels as a subprotocol and never in the address', async () => {
  const { c, net, statuses, live } = setup();
  c.start();
  c.start();
  await live();
  expect(net.wires).toHaveLength(1);
  expect(net.last.protocols).toEqual(['chatbox.v1', 'bearer.jwt']);
  expect(net.last.url).toBe('wss://h/chat/ws');
  expect(statuses).toEqual(['connecting', 'opening', 'live']);
});

test('a reconnect says where the page is', async () => {
  const { net, clock, position, live } = await started();
  position({ sessionId: 's 1', epoch: '3-x', seq: 42 });
  net.last.close(1006);
  await clock.advance(1_000);
  await live();
  expect(net.last.url).toBe('wss://h/chat/ws?session_id=s%201&epoch=3-x&last_seq=42');
  position({ sessionId: 's2', epoch: '', seq: 0 });
  net.last.close(1006);
  await clock.advance(2_000);
  expect(net.last.url).toBe('wss://h/chat/ws?session_id=s2');
});

test('waits grow to 30 s, and are forgotten after 60 s of stable life', async () => {
  const { net, clock, c, live } = await started();
  const waits: number[] = [];
  for (let i = 0; i < 7; i++) {
    net.last.close(1006);
    const wait = c.current.kind === 'waiting' ? c.current.until - clock.now() : -1;
    waits.push(wait);
    await clock.advance(wait);
    await live();
  }
  expect(waits).toEqual([750, 1_500, 3_000, 6_000, 12_000, 22_500, 22_500]);
  for (let i = 0; i < 6; i++) {
    await clock.advance(10_000);
    net.last.say(wire.pong(1, 1));
  }
  net.last.close(1006);
  expect(c.current).toMatchObject({ kind: 'waiting', until: clock.now() + 750 });
});

test.each<[number, StopReason]>([
  [1009, 'too_large'], [4400, 'protocol'], [4401, 'unauthorized'], [4403, 'forbidden'], [4410, 'ended'], [4429, 'too_many'],
])('close code %i means stop', async (code, why) => {
  const { net, clock, c } = await started();
  net.last.close(code);
  expect(c.current).toEqual({ kind: 'stopped', why });
  await clock.advance(600_000);
  c.nudge();
  expect(net.wires).toHaveLength(1);
  expect(clock.pending).toBe(0);
});

test.each([1000, 1001, 1006, 1011, 1012, 1013, 4002, 4003, 4999])('close code %i means come back', async (code) => {
  const { net, clock, c, lost } = await started();
  net.last.close(code);
  expect(c.current.kind).toBe('waiting');
  expect(lost()).toBe(1);
  await clock.advance(1_000);
  expect(net.wires).toHaveLength(2);
});

// Beyond B6: clients of a draining replica come back when they were told to.
test('a draining replica says when to come back', async () => {
  const { net, clock, c } = await started();
  net.last.say({ type: 'connection_status', status: 'draining', reconnect_after: 120 });
  expect(c.current.kind).toBe('live');
  net.last.close(1012);
  expect(c.current).toMatchObject({ kind: 'waiting', until: clock.now() + 120 });
});

test('resync comes back at once, but not in a circle', async () => {
  const { net, clock, c, live } = await started();
  net.last.close(4001);
  await clock.advance(0);
  expect(net.wires).toHaveLength(2);
  await live();
  net.last.say({ type: 'connection_status', status: 'resync' });
  expect(c.current).toMatchObject({ kind: 'waiting', until: clock.now() + 1_500 });
});

test('an expired token is renewed once; a second refusal is believed', async () => {
  const { net, c, asked, live } = await started({ tokens: ['one', 'two', 'three'] });
  net.last.close(4101);
  await live();
  expect(asked).toEqual(['start', 'expired']);
  expect(net.last.protocols[1]).toBe('bearer.two');
  net.last.close(4101); // it was live in between: this is a new expiry
  await settle();
  expect(asked).toEqual(['start', 'expired', 'expired']);
  net.last.open();
  net.last.close(4101);
  expect(c.current).toEqual({ kind: 'stopped', why: 'unauthorized' });
});

test('a socket that never opened asks over HTTP whether the token is at fault', async () => {
  const s = setup({ tokens: ['old', 'new'], probe: 'unauthorized' });
  s.c.start();
  await settle();
  s.net.last.close(1006);
  await settle();
  expect(s.asked).toEqual(['start', 'refused']);
  expect(s.net.last.protocols[1]).toBe('bearer.new');
  expect(s.lost()).toBe(0);
  s.net.last.close(1006);
  await settle();
  expect(s.c.current).toEqual({ kind: 'stopped', why: 'unauthorized' });
  expect(s.probes()).toBe(2);
});

test('the same token again, or none, is no answer to a refusal', async () => {
  for (const tokens of [['same', 'same'], ['old', null], [null]]) {
    const s = setup({ tokens, probe: 'unauthorized' });
    s.c.start();
    await settle();
    if (s.net.wires.length > 0) s.net.last.close(1006);
    await settle();
    expect(s.c.current).toEqual({ kind: 'stopped', why: 'unauthorized' });
  }
});

test('a network that is away is waited for, a user who may not is told', async () => {
  const away = setup({ probe: 'unreachable' });
  away.net.refuse = true;
  away.c.start();
  await settle();
  expect(away.c.current.kind).toBe('waiting');
  const no = setup({ probe: 'forbidden' });
  no.c.start();
  await settle();
  no.net.last.close(1006);
  await settle();
  expect(no.c.current).toEqual({ kind: 'stopped', why: 'forbidden' });
});

test('a dial that hangs is given up', async () => {
  const s = setup();
  s.c.start();
  await s.clock.advance(15_000);
  expect(s.c.current.kind).toBe('waiting');
  expect(s.net.last.closedWith).toBe(4000);
});

// Promise 5: every ping gets its pong, and who gets none is not believed to be alive.
test('pings every 30 s, sooner after an ack, and leaves a socket that does not answer', async () => {
  const { net, clock, position, c } = await started();
  position({ sessionId: 's1', epoch: 'e', seq: 7 });
  await clock.advance(HEARTBEAT_MS);
  expect(net.last.of('ping')).toEqual([{ type: 'ping', last_seq: 7 }]);
  net.last.say(wire.pong(7, 7), wire.ack('m', 8));
  await clock.advance(PING_AFTER_ACK_MS);
  expect(net.last.of('ping')).toHaveLength(2);
  await clock.advance(PONG_MS - 1);
  expect(c.current.kind).toBe('live');
  await clock.advance(1);
  expect(c.current.kind).toBe('waiting');
  expect(net.last.closedWith).toBe(4000);
});

test('the server says how often to ping', async () => {
  const { net, clock, c } = await started();
  net.last.say(wire.connected({ heartbeat_ms: 600_000 }));
  await clock.advance(500_000);
  expect(c.current.kind).toBe('live');
  expect(net.last.of('ping')).toHaveLength(0);
  net.last.say(wire.connected({ heartbeat_ms: 5_000 }));
  await clock.advance(5_000);
  expect(net.last.of('ping')).toHaveLength(1);
});

test('45 s of silence end a socket even while a pong is awaited', async () => {
  const { net, clock, c } = await started();
  net.last.say(wire.pong(1, 1));
  for (let t = 0; t < 44_000; t += 4_000) {
    await clock.advance(4_000);
    c.nudge(); // keeps putting off the pong's deadline
  }
  expect(c.current.kind).toBe('live');
  await clock.advance(1_000);
  expect(c.current.kind).toBe('waiting');
});

test('a page that was frozen asks before it gives up', async () => {
  const { net, clock, c } = await started();
  await clock.advance(HEARTBEAT_MS);
  await clock.freeze(3_600_000);
  expect(c.current.kind).toBe('live');
  expect(net.last.of('ping').length).toBeGreaterThanOrEqual(2);
  net.last.say(wire.pong(1, 1));
  await clock.advance(8_000);
  expect(c.current.kind).toBe('live');
});

test('back online: waiting ends, a socket that looks open is asked, one silent for long is left', async () => {
  const waiting = await started();
  waiting.net.last.close(1006);
  waiting.c.nudge();
  await settle();
  expect(waiting.net.wires).toHaveLength(2);

  const open = await started();
  open.c.nudge();
  expect(open.net.last.of('ping')).toHaveLength(1);
  await open.clock.advance(5_000);
  expect(open.c.current.kind).toBe('waiting');

  const silent = await started();
  await silent.clock.freeze(1);
  const before = silent.clock.now();
  Object.assign(silent.clock, { time: before + 46_000 });
  silent.c.nudge();
  expect(silent.c.current.kind).toBe('waiting');
});

test('a socket is doubted from the moment the browser says offline until it is heard again', async () => {
  const { c, net, clock } = await started();
  c.doubt();
  expect(c.current).toEqual({ kind: 'live', doubted: true });
  expect(net.last.of('ping')).toHaveLength(1);
  net.last.say(wire.pong(1, 1));
  expect(c.current).toEqual({ kind: 'live' });
  c.doubt();
  await clock.advance(5_000);
  expect(c.current.kind).toBe('waiting');
  c.doubt();
  await settle();
  expect(c.current.kind).toBe('waiting');
});

test('bytes that are not text stop the page, a failing server does not', async () => {
  const stopped = await started();
  stopped.net.last.close(1007);
  expect(stopped.c.current).toEqual({ kind: 'stopped', why: 'protocol' });
  for (const code of [1006, 1011, 1012, 1013, 4002, 4003]) {
    const s = await started();
    s.net.last.close(code);
    expect(s.c.current.kind).toBe('waiting');
  }
});

test('a token about to expire is renewed on the open socket', async () => {
  const { net } = await started({ tokens: ['one', 'two'] });
  net.last.say({ type: 'auth_required', retry_after: 60_000 });
  await settle();
  expect(net.last.of('auth')).toEqual([{ type: 'auth', token: 'two' }]);
});

test('nothing of a socket that was given up is heard again', async () => {
  const { c, net, statuses, lost, live } = await started();
  const old = net.last;
  c.retry();
  await live();
  expect(lost()).toBe(1);
  const before = statuses.length;
  old.say(wire.live());
  old.close(4410);
  old.open();
  expect(statuses).toHaveLength(before);
  expect(c.current.kind).toBe('live');
});

test('stop ends everything, timers included', async () => {
  const { c, net, clock } = await started();
  c.stop();
  expect(net.last.closedWith).toBe(1000);
  expect(clock.pending).toBe(0);
  expect(c.send({ type: 'ping', last_seq: 0 })).toBe(false);
  await clock.advance(120_000);
  expect(net.wires).toHaveLength(1);
});
