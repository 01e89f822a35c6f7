import fc from 'fast-check';
import { encode, fits, parseFrame, parseText } from './protocol';
import { wire } from './testing';

const types = [
  'connection_status', 'ack', 'pong', 'error', 'loading', 'typing_indicator', 'stop', 'auth_required', 'ai_response', 'user_message',
  'session_ended', 'nonsense', '__proto__',
];
const keys = [
  'type', 'status', 'session_id', 'message_id', 'seq', 'epoch', 'messages', 'user', 'models', 'error', 'metadata', 'attempt', 'chunk',
  'first_chunk', 'delta', 'reset', 'content', 'limits', 'sender', 'owner', '__proto__', 'constructor', 'toString',
];
const statuses = ['connected', 'snapshot', 'live', 'draining', 'resync', 'x'];
const hostile = fc.dictionary(
  fc.constantFrom(...keys),
  fc.oneof(fc.constantFrom(...types, ...statuses), fc.anything(), fc.array(fc.anything())),
);

/** Whether nothing but plain data of the promised kinds is in a frame. */
function plain(value: unknown): boolean {
  if (Array.isArray(value)) return value.every(plain);
  if (typeof value === 'object') return value !== null && Object.values(value).every(plain);
  return typeof value === 'string' || typeof value === 'boolean' || (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0);
}

describe('parseFrame', () => {
  test('never throws and gives plain data only, whatever it gets', () => {
    fc.assert(
      fc.property(fc.oneof(hostile, fc.anything()), (value) => {
        const frame = parseFrame(value);
        expect(frame === null || plain(frame)).toBe(true);
      }),
      { numRuns: 2_000 },
    );
  });

  test('text that is not JSON, or no text at all, is skipped', () => {
    for (const data of ['', '{', 'null', '[]', '"x"', 7, null, undefined, new ArrayBuffer(8)]) expect(parseText(data)).toBeNull();
  });

  test('unknown types are skipped, unknown fields ignored', () => {
    expect(parseFrame({ type: 'hologram', seq: 3 })).toBeNull();
    expect(parseFrame({ type: 'pong', seq: 3, durable: 2, mood: 'good' })).toEqual({ kind: 'pong', seq: 3, durable: 2 });
  });

  test('an answer with a seq is stored, one with a chunk is running', () => {
    expect(parseFrame(wire.event(5, 'ai_response', 'a', { content: 'x' }))).toMatchObject({ kind: 'durable', seq: 5, content: 'x' });
    expect(parseFrame(wire.delta('a', 2, 3, 'x'))).toMatchObject({ kind: 'delta', attempt: 2, first: 3, chunk: 3, delta: 'x', reset: false });
    expect(parseFrame(wire.delta('a', 2, 5, 'xyz', { first_chunk: 3 }))).toMatchObject({ kind: 'delta', first: 3, chunk: 5, delta: 'xyz' });
    expect(parseFrame(wire.delta('a', 2, 5, 'xyz', { first_chunk: 6 }))).toBeNull();
    expect(parseFrame(wire.delta('a', 0, 3, 'x'))).toBeNull();
    expect(parseFrame(wire.delta('a', 1, 0, 'x'))).toBeNull();
    expect(parseFrame({ ...wire.delta('a', 1, 4, ''), delta: undefined, content: 'whole', reset: true })).toMatchObject({ delta: 'whole', reset: true });
  });

  test('metadata keeps strings only, and no key reaches the prototype', () => {
    const frame = parseText('{"type":"admin_join","seq":1,"metadata":{"name":"Mei","n":1,"__proto__":"x"}}');
    expect(frame).toMatchObject({ kind: 'durable', sender: 'system' });
    if (frame?.kind !== 'durable') throw new Error('no event');
    expect(Object.keys(frame.metadata).sort()).toEqual(['__proto__', 'name']);
    expect('toString' in frame.metadata).toBe(false);
  });

  test('inherited fields are not data', () => {
    expect(parseFrame(Object.create({ type: 'pong', seq: 1, durable: 1 }))).toBeNull();
  });

  test('the greeting is read in full', () => {
    expect(parseFrame(wire.connected({ name: 'Trip', assisted_by: 'Mei', owner: 'human', models: [{ id: 'm', vision: true, files: ['pdf', 3] }, 3, { name: 'x' }] }))).toMatchObject({
      kind: 'connected', sessionId: 's1', epoch: 'e1', name: 'Trip', owner: 'human', assistedBy: 'Mei', models: [{ id: 'm', name: 'm', vision: true, audio: false, files: ['pdf'] }],
      user: { id: 'u1', name: 'Ann' }, heartbeatMs: 30_000, limits: { frameBytes: 65_536, help: true },
    });
    expect(parseFrame({ type: 'connection_status', status: 'connected' })).toBeNull();
  });

  test('the remaining frames', () => {
    expect(parseFrame({ type: 'connection_status', status: 'draining', reconnect_after: 500 })).toEqual({ kind: 'draining', reconnectAfter: 500 });
    expect(parseFrame({ type: 'connection_status', status: 'resync' })).toEqual({ kind: 'resync' });
    expect(parseFrame({ type: 'auth_required', retry_after: 9 })).toEqual({ kind: 'auth_required', retryAfter: 9 });
    expect(parseFrame({ type: 'stop', target: 'a' })).toEqual({ kind: 'stop', target: 'a' });
    expect(parseFrame({ type: 'loading', message_id: 'a', active: true, try: 2 })).toMatchObject({ kind: 'loading', active: true, attemptAtProvider: 2 });
    expect(parseFrame({ type: 'typing_indicator', sender: 'admin', active: true })).toMatchObject({ kind: 'typing', sender: 'admin' });
    expect(parseFrame({ type: 'ack' })).toBeNull();
    expect(parseFrame({ type: 'error' })).toBeNull();
    expect(parseFrame(wire.error('', 'INTERNAL', true, 5))).toMatchObject({ kind: 'error', code: 'INTERNAL', recoverable: true, retryAfter: 5 });
  });
});

test('a message fits if the server will accept its frame', () => {
  const limit = 64 * 1024;
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 40 }), fc.integer({ min: 1, max: 4_000 }), (s, n) => {
      const content = s.repeat(n);
      const size = new TextEncoder().encode(encode({ type: 'user_message', message_id: 'x'.repeat(36), content, session_id: 'y'.repeat(64), resent: true })).length;
      if (fits(content)) expect(size).toBeLessThanOrEqual(limit);
      else expect(size).toBeGreaterThan(limit - 512);
    }),
  );
});
