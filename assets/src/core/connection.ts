/**
 * One live socket to the server, for as long as somebody wants one.
 *
 * States: idle -> connecting -> opening -> live, and after a loss waiting -> connecting and so on; `stopped` is left
 * by `retry` only. At most one socket exists at a time, and nothing of a socket that was given up is heard again.
 * Frames are handed on in the order in which they arrived. Loss and order across sockets are the caller's business
 * (outbox.ts, state.ts): this file only says when a socket is caught up (`live`) and when it is gone (`onLost`).
 */

import { STABLE_MS, backoff } from './backoff';
import { encode, parseText, SUBPROTOCOL } from './protocol';
import type { ClientFrame, ServerFrame } from './protocol';

export interface Socket {
  send(text: string): void;
  close(code: number, reason: string): void;
}

export interface SocketHandlers {
  open(): void;
  message(data: unknown): void;
  /** Called once, whether the socket had opened or not. */
  close(code: number): void;
}

/** Makes a socket. May throw, which counts as a socket that never opened. */
export type Dial = (url: string, protocols: readonly string[], handlers: SocketHandlers) => Socket;

export interface Clock {
  /** Milliseconds since 1970. */
  now(): number;
  after(ms: number, run: () => void): unknown;
  cancel(timer: unknown): void;
}

/** Why a token is asked for. `refused`: the last one was not accepted; `renew`: it is about to expire. */
export type TokenReason = 'start' | 'expired' | 'refused' | 'renew';

export type StopReason = 'unauthorized' | 'forbidden' | 'ended' | 'protocol' | 'too_large' | 'too_many';

export type Status =
  | { readonly kind: 'idle' }
  | { readonly kind: 'connecting'; readonly attempt: number }
  | { readonly kind: 'opening' }
  /** `doubted`: the browser says that the network is gone, and the socket has not yet proved otherwise. */
  | { readonly kind: 'live'; readonly doubted?: true }
  | { readonly kind: 'waiting'; readonly until: number; readonly attempt: number }
  | { readonly kind: 'stopped'; readonly why: StopReason };

export interface Position {
  readonly sessionId: string;
  readonly epoch: string;
  readonly seq: number;
}

export interface ConnectionOptions {
  /** Address of the socket without a query, `wss://host/chat/ws`. */
  readonly url: string;
  readonly dial: Dial;
  readonly clock: Clock;
  /** [0, 1). */
  readonly random: () => number;
  /** The token to use, null when there is none to be had. */
  readonly token: (reason: TokenReason) => Promise<string | null>;
  /** Asks over HTTP what a socket cannot tell: whether the token is accepted. */
  readonly probe: (token: string) => Promise<'ok' | 'unauthorized' | 'forbidden' | 'unreachable'>;
  /** Where the page is in the session; null for a page that has none. */
  readonly position: () => Position | null;
  readonly onFrame: (frame: ServerFrame) => void;
  readonly onStatus: (status: Status) => void;
  /** A socket that had opened is gone. */
  readonly onLost: () => void;
}

/** Milliseconds. */
export const HEARTBEAT_MS = 30_000;
export const PONG_MS = 10_000;
export const PING_AFTER_ACK_MS = 2_000;
const wakePongMs = 5_000;
const dialMs = 15_000;
const maxHintMs = 30_000;
/** A timer that fires this late belongs to a page that was frozen: the pong may be waiting behind it. */
const lateMs = 2_000;

/** What a close code asks of the client; codes that are not listed mean "reconnect", as do all that are no fault of ours. */
const verdicts: Readonly<Record<number, StopReason | 'resync' | 'refresh' | 'reconnect'>> = {
  1007: 'protocol',
  1009: 'too_large',
  1011: 'reconnect',
  1012: 'reconnect',
  1013: 'reconnect',
  4001: 'resync',
  4002: 'reconnect',
  4003: 'reconnect',
  4101: 'refresh',
  4400: 'protocol',
  4401: 'unauthorized',
  4403: 'forbidden',
  4410: 'ended',
  4429: 'too_many',
};

export class Connection {
  private status: Status = { kind: 'idle' };
  private socket: Socket | null = null;
  /** Rises whenever a socket or an attempt is given up, so that nothing late is listened to. */
  private turn = 0;
  private attempts = 0;
  private lastToken = '';
  /** A new token has been tried since a socket was last live. */
  private refreshed = false;
  private drainMs = 0;
  private heartbeat = HEARTBEAT_MS;
  private heardAt = 0;
  private pingAt = 0;
  private timers = new Map<string, unknown>();

  constructor(private readonly options: ConnectionOptions) {}

  get current(): Status {
    return this.status;
  }

  start(): void {
    if (this.status.kind === 'idle') void this.connect('start');
  }

  /** Connects at once, forgetting failures: the user asked for it, or the session was left behind. */
  retry(): void {
    this.drop(1000, 'reconnect');
    this.attempts = 0;
    this.refreshed = false;
    void this.connect('start');
  }

  /** The network came back or the page became visible: waiting makes no sense, and a socket that looks open may be dead. */
  nudge(): void {
    if (this.status.kind === 'waiting') {
      void this.connect('start');
    } else if (this.status.kind === 'opening' || this.status.kind === 'live') {
      if (this.options.clock.now() - this.heardAt > this.silenceMs()) this.giveUp('silence');
      else this.ping(wakePongMs);
    }
  }

  /** The browser says that the network is gone. Browsers err, so the socket is asked, and until it answers nothing is sure. */
  doubt(): void {
    if (this.status.kind !== 'opening' && this.status.kind !== 'live') return;
    if (this.status.kind === 'live') this.become({ kind: 'live', doubted: true });
    this.nudge();
  }

  stop(): void {
    this.drop(1000, 'bye');
    this.become({ kind: 'idle' });
  }

  /** Asks before long how far the archive is. Asking again does not put it off. */
  pingSoon(): void {
    if (this.status.kind !== 'live' && this.status.kind !== 'opening') return;
    if (this.pingAt > this.options.clock.now() + PING_AFTER_ACK_MS) this.pingIn(PING_AFTER_ACK_MS);
  }

  /** Sends if a socket is open. false: it was not, and the frame is the caller's to keep. */
  send(frame: ClientFrame): boolean {
    if (!this.socket || (this.status.kind !== 'live' && this.status.kind !== 'opening')) return false;
    try {
      this.socket.send(encode(frame));
      return true;
    } catch {
      return false;
    }
  }

  private async connect(reason: TokenReason): Promise<void> {
    this.clearTimers();
    const turn = ++this.turn;
    this.become({ kind: 'connecting', attempt: this.attempts });
    const before = this.lastToken;
    const token = await this.options.token(reason).catch(() => null);
    if (turn !== this.turn) return;
    if (token === null || token === '') return this.halt('unauthorized');
    if (reason === 'refused' && token === before) return this.halt('unauthorized');
    this.lastToken = token;
    this.open(turn, token);
  }

  private open(turn: number, token: string): void {
    let opened = false;
    let closed = false;
    const handlers: SocketHandlers = {
      open: () => {
        if (turn !== this.turn) return;
        opened = true;
        this.opened();
      },
      message: (data) => {
        if (turn === this.turn) this.message(data);
      },
      close: (code) => {
        if (turn !== this.turn || closed) return;
        closed = true;
        this.socket = null;
        this.closed(opened, code, token);
      },
    };
    this.timer('dial', dialMs, () => this.giveUp('dial'));
    try {
      this.socket = this.options.dial(this.address(), [SUBPROTOCOL, `bearer.${token}`], handlers);
    } catch {
      handlers.close(1006);
    }
  }

  private address(): string {
    const at = this.options.position();
    if (!at || !at.sessionId) return this.options.url;
    const query = [`session_id=${encodeURIComponent(at.sessionId)}`];
    if (at.epoch) query.push(`epoch=${encodeURIComponent(at.epoch)}`, `last_seq=${at.seq}`);
    return `${this.options.url}?${query.join('&')}`;
  }

  private opened(): void {
    this.cancel('dial');
    this.heardAt = this.options.clock.now();
    this.drainMs = 0;
    this.become({ kind: 'opening' });
    this.watchSilence();
    this.schedulePing();
  }

  private message(data: unknown): void {
    this.heardAt = this.options.clock.now();
    if (this.status.kind === 'live' && this.status.doubted) this.become({ kind: 'live' });
    const frame = parseText(data);
    if (!frame) return;
    switch (frame.kind) {
      case 'connected':
        this.heartbeat = frame.heartbeatMs || HEARTBEAT_MS;
        this.schedulePing();
        this.watchSilence();
        break;
      case 'pong':
        this.cancel('pong');
        break;
      case 'ack':
        if (frame.seq > 0) this.pingSoon();
        break;
      case 'draining':
        this.drainMs = Math.min(Math.max(frame.reconnectAfter, 1), maxHintMs);
        break;
      case 'auth_required':
        void this.renew(this.turn);
        break;
    }
    const turn = this.turn;
    this.options.onFrame(frame);
    if (frame.kind === 'live' && turn === this.turn) this.caughtUp();
    if (frame.kind === 'resync' && turn === this.turn) this.giveUp('resync');
  }

  private caughtUp(): void {
    this.refreshed = false;
    this.become({ kind: 'live' });
    this.timer('stable', STABLE_MS, () => {
      this.attempts = 0;
    });
  }

  private async renew(turn: number): Promise<void> {
    const token = await this.options.token('renew').catch(() => null);
    if (turn !== this.turn || !token || token === this.lastToken) return;
    if (this.send({ type: 'auth', token })) this.lastToken = token;
  }

  /** The socket is gone; `code` says what to do about it. */
  private closed(opened: boolean, code: number, token: string): void {
    this.clearTimers();
    const turn = ++this.turn;
    if (!opened) {
      void this.investigate(turn, token);
      return;
    }
    this.options.onLost();
    if (turn !== this.turn) return;
    const verdict = verdicts[code];
    if (verdict === 'refresh') {
      this.refresh('expired');
    } else if (verdict === 'resync') {
      // At once the first time; a server that keeps asking gets the ordinary waits.
      this.wait(this.attempts === 0 ? 0 : undefined);
    } else if (verdict !== undefined && verdict !== 'reconnect') {
      this.halt(verdict);
    } else {
      this.wait(code === 1012 && this.drainMs > 0 ? this.drainMs : undefined);
    }
  }

  /** A refused upgrade looks like a dead network to a page, so it asks over HTTP. */
  private async investigate(turn: number, token: string): Promise<void> {
    const answer = await this.options.probe(token).catch(() => 'unreachable' as const);
    if (turn !== this.turn) return;
    if (answer === 'unauthorized') this.refresh('refused');
    else if (answer === 'forbidden') this.halt('forbidden');
    else this.wait();
  }

  /** Asks for another token, once; a server that refuses that one too is believed. */
  private refresh(reason: TokenReason): void {
    if (this.refreshed) return this.halt('unauthorized');
    this.refreshed = true;
    void this.connect(reason);
  }

  private wait(ms: number = backoff(this.attempts, this.options.random)): void {
    this.attempts++;
    const until = this.options.clock.now() + ms;
    this.become({ kind: 'waiting', until, attempt: this.attempts });
    this.timer('retry', ms, () => void this.connect('start'));
  }

  private halt(why: StopReason): void {
    this.clearTimers();
    this.become({ kind: 'stopped', why });
  }

  /** The socket is believed dead: it is left behind without waiting for its close. */
  private giveUp(reason: string): void {
    const opened = this.status.kind === 'opening' || this.status.kind === 'live';
    const token = this.lastToken;
    const { socket } = this;
    this.socket = null;
    this.closed(opened, 1006, token);
    shut(socket, 4000, reason);
  }

  /** Ends whatever goes on without a word about what comes next. */
  private drop(code: number, reason: string): void {
    const opened = this.status.kind === 'opening' || this.status.kind === 'live';
    const { socket } = this;
    this.turn++;
    this.socket = null;
    this.clearTimers();
    shut(socket, code, reason);
    if (opened) this.options.onLost();
  }

  private ping(deadline: number): void {
    this.schedulePing();
    const at = this.options.position();
    this.send({ type: 'ping', last_seq: at ? at.seq : 0 });
    this.awaitPong(deadline);
  }

  private awaitPong(deadline: number): void {
    const due = this.options.clock.now() + deadline;
    this.timer('pong', deadline, () => {
      if (this.options.clock.now() - due > lateMs) this.ping(wakePongMs);
      else this.giveUp('pong');
    });
  }

  private schedulePing(): void {
    this.pingIn(this.heartbeat * (0.9 + 0.2 * this.options.random()));
  }

  private pingIn(ms: number): void {
    this.pingAt = this.options.clock.now() + ms;
    this.timer('ping', ms, () => this.ping(PONG_MS));
  }

  private watchSilence(): void {
    const rest = this.heardAt + this.silenceMs() - this.options.clock.now();
    this.timer('silence', Math.max(rest, 1), () => {
      const quiet = this.options.clock.now() - this.heardAt;
      if (quiet < this.silenceMs()) this.watchSilence();
      else if (quiet > this.silenceMs() + lateMs) {
        this.ping(wakePongMs); // the page was asleep, not the server
        this.heardAt = this.options.clock.now();
        this.watchSilence();
      } else this.giveUp('silence');
    });
  }

  private silenceMs(): number {
    return this.heartbeat * 1.5;
  }

  private become(status: Status): void {
    this.status = status;
    this.options.onStatus(status);
  }

  private timer(name: string, ms: number, run: () => void): void {
    this.cancel(name);
    const id = this.options.clock.after(ms, () => {
      this.timers.delete(name);
      run();
    });
    this.timers.set(name, id);
  }

  private cancel(name: string): void {
    if (!this.timers.has(name)) return;
    this.options.clock.cancel(this.timers.get(name));
    this.timers.delete(name);
  }

  private clearTimers(): void {
    for (const id of this.timers.values()) this.options.clock.cancel(id);
    this.timers.clear();
  }
}

function shut(socket: Socket | null, code: number, reason: string): void {
  try {
    socket?.close(code, reason);
  } catch {
    // A socket that cannot be closed is not listened to either.
  }
}
