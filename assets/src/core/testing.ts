/** What the tests of the core share: a clock that is moved by hand, a server's end of a socket, frames. */

import type { Clock, Dial, SocketHandlers } from './connection';
import type { Store } from './outbox';

export class FakeClock implements Clock {
  private time = 1_700_000_000_000;
  private next = 1;
  private timers = new Map<number, { at: number; run: () => void }>();

  now(): number {
    return this.time;
  }

  after(ms: number, run: () => void): unknown {
    const id = this.next++;
    this.timers.set(id, { at: this.time + ms, run });
    return id;
  }

  cancel(timer: unknown): void {
    if (typeof timer === 'number') this.timers.delete(timer);
  }

  /** Lets time pass; timers run in order, each at its own time, and promises settle between them. */
  async advance(ms: number): Promise<void> {
    const end = this.time + ms;
    await settle();
    for (;;) {
      const due = [...this.timers].filter(([, t]) => t.at <= end).sort((a, b) => a[1].at - b[1].at || a[0] - b[0])[0];
      if (!due) break;
      this.timers.delete(due[0]);
      this.time = Math.max(this.time, due[1].at);
      due[1].run();
      await settle();
    }
    this.time = end;
  }

  /** The page was frozen: time has passed and every timer runs late. */
  async freeze(ms: number): Promise<void> {
    this.time += ms;
    await this.advance(0);
  }

  get pending(): number {
    return this.timers.size;
  }
}

/** Lets everything that waits for resolved promises run. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 8; i++) await Promise.resolve();
}

/** The server's end of one socket. */
export class Wire {
  readonly sent: Record<string, unknown>[] = [];
  closedWith: number | null = null;

  constructor(
    readonly url: string,
    readonly protocols: readonly string[],
    private readonly handlers: SocketHandlers,
  ) {}

  open(): void {
    this.handlers.open();
  }

  say(...frames: object[]): void {
    for (const f of frames) this.handlers.message(JSON.stringify(f));
  }

  raw(data: unknown): void {
    this.handlers.message(data);
  }

  close(code: number): void {
    this.handlers.close(code);
  }

  /** Frames of one type that the client sent. */
  of(type: string): Record<string, unknown>[] {
    return this.sent.filter((f) => f['type'] === type);
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text) as Record<string, unknown>);
  }
}

export class FakeNet {
  readonly wires: Wire[] = [];
  refuse = false;

  readonly dial: Dial = (url, protocols, handlers) => {
    if (this.refuse) throw new Error('no network');
    const wire = new Wire(url, protocols, handlers);
    this.wires.push(wire);
    return {
      send: (text) => wire.send(text),
      close: (code) => {
        wire.closedWith = code;
      },
    };
  };

  get last(): Wire {
    const wire = this.wires[this.wires.length - 1];
    if (!wire) throw new Error('nothing was dialled');
    return wire;
  }
}

export class MemoryStore implements Store {
  readonly values = new Map<string, string>();
  broken = false;

  getItem(key: string): string | null {
    this.check();
    return this.values.get(key) ?? null;
  }

  setItem(key: string, value: string): void {
    this.check();
    this.values.set(key, value);
  }

  removeItem(key: string): void {
    this.check();
    this.values.delete(key);
  }

  private check(): void {
    if (this.broken) throw new Error('SecurityError');
  }
}

export const wire = {
  connected: (o: object = {}) => ({
    type: 'connection_status', status: 'connected', session_id: 's1', epoch: 'e1', seq: 0, resumed: false, recovered: false,
    user: { id: 'u1', name: 'Ann' }, models: [{ id: 'm1', name: 'One' }, { id: 'm2', name: 'Two' }], model_id: 'm1', owner: 'ai',
    heartbeat_ms: 30_000, window_ms: 900_000, limits: { frame_bytes: 65_536, help: true }, ...o,
  }),
  snapshot: (messages: object[], seq: number, o: object = {}) => ({
    type: 'connection_status', status: 'snapshot', session_id: 's1', epoch: 'e1', seq, messages, has_more: false, ...o,
  }),
  live: (o: object = {}) => ({ type: 'connection_status', status: 'live', session_id: 's1', ...o }),
  event: (seq: number, type: string, messageId: string, o: object = {}) => ({
    seq, type, session_id: 's1', message_id: messageId, sender: type === 'ai_response' ? 'ai' : 'user',
    timestamp: '2026-11-23T07:00:00.000Z', ...o,
  }),
  delta: (messageId: string, attempt: number, chunk: number, delta: string, o: object = {}) => ({
    type: 'ai_response', session_id: 's1', message_id: messageId, sender: 'ai', attempt, chunk, delta, ...o,
  }),
  ack: (messageId: string, seq: number, o: object = {}) => ({ type: 'ack', session_id: 's1', message_id: messageId, seq, ...o }),
  pong: (seq: number, durable: number) => ({ type: 'pong', seq, durable }),
  error: (messageId: string, code: string, recoverable: boolean, retryAfter = 0) => ({
    type: 'error', message_id: messageId, error: { code, message: code, recoverable, retry_after: retryAfter },
  }),
};
