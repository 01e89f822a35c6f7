/**
 * One conversation as a page needs it: the connection, the outbox and the state, tied together.
 *
 * The order within one incoming frame is fixed: the state first (an ack needs the entry it is about), then the
 * outbox, then whatever may be sent now. Listeners are called after every change, synchronously.
 */

import { Connection } from './connection';
import type { Clock, Dial, Status, TokenReason } from './connection';
import { Outbox } from './outbox';
import type { Draft, Store } from './outbox';
import type { DurableFrame, ServerFrame } from './protocol';
import { initial, reduce } from './state';
import type { Event, State } from './state';

export interface ChatOptions {
  readonly url: string;
  readonly dial: Dial;
  readonly clock: Clock;
  readonly random: () => number;
  readonly uuid: () => string;
  readonly storage: Store | null;
  readonly token: (reason: TokenReason) => Promise<string | null>;
  readonly probe: (token: string) => Promise<'ok' | 'unauthorized' | 'forbidden' | 'unreachable'>;
  readonly onState: (state: State) => void;
  readonly onStatus: (status: Status) => void;
  /** Errors that are about no message of the outbox, in the server's words. */
  readonly onError: (code: string, message: string) => void;
}

/** Typing is told at most this often, in milliseconds. */
const TYPING_EVERY = 2_000;

export class Chat {
  private state: State = initial;
  private readonly outbox: Outbox;
  private readonly connection: Connection;
  private timer: unknown = null;
  private typingTimer: unknown = null;
  private typedAt = -Infinity;

  constructor(private readonly options: ChatOptions) {
    const { clock, random } = options;
    this.outbox = new Outbox({
      storage: options.storage,
      now: () => clock.now(),
      random,
      uuid: options.uuid,
      onChange: (entries) => this.apply({ kind: 'outbox', entries }),
    });
    this.connection = new Connection({
      url: options.url,
      dial: options.dial,
      clock,
      random,
      token: options.token,
      probe: options.probe,
      position: () => {
        const { sessionId, epoch, seq, ended } = this.state;
        return sessionId && !ended ? { sessionId, epoch, seq } : null;
      },
      onFrame: (frame) => this.frame(frame),
      onStatus: options.onStatus,
      onLost: () => this.lost(),
    });
  }

  /** `scope` names the user as far as the page knows; empty: it waits for the server to say. */
  start(scope: string): void {
    this.outbox.adopt(scope);
    this.connection.start();
  }

  stop(): void {
    this.connection.stop();
    this.cancel();
  }

  /** Queues a frame that makes an event. false: too many wait already. */
  send(draft: Draft): boolean {
    const entry = this.outbox.add(draft);
    this.pump();
    return entry !== null;
  }

  resend(id: string): void {
    this.outbox.retry(id);
    this.pump();
  }

  discard(id: string): void {
    this.outbox.discard(id);
  }

  /** Asks for the end of the running answer. false: not connected, and there is nothing to stop. */
  stopAnswer(): boolean {
    const target = this.state.answers[this.state.answers.length - 1]?.id ?? this.state.loading?.id;
    if (!target) return false;
    return this.connection.send({ type: 'stop', message_id: this.options.uuid(), target });
  }

  /** The user is typing; call at will. */
  typing(): void {
    const now = this.options.clock.now();
    if (!this.state.live || now - this.typedAt < TYPING_EVERY) return;
    this.typedAt = now;
    this.connection.send({ type: 'typing_indicator', active: true });
  }

  /** An older page, read from the history endpoint. */
  older(sessionId: string, items: readonly DurableFrame[], hasMore: boolean): void {
    this.apply({ kind: 'history', sessionId, items, hasMore });
  }

  nudge(): void {
    this.connection.nudge();
  }

  /** The browser says that the network is gone. */
  doubt(): void {
    this.connection.doubt();
  }

  /** Connects now, whatever was. */
  reconnect(): void {
    this.connection.retry();
  }

  /**
   * Leaves the session behind and lets the server choose the next. `ended`: the session is known to have ended, not
   * lost, so that what it acknowledged stays there.
   */
  renew(ended: boolean): void {
    if (ended) this.outbox.ended(this.state.sessionId);
    this.apply({ kind: 'left' });
    this.connection.retry();
  }

  private frame(frame: ServerFrame): void {
    this.apply({ kind: 'frame', frame, at: this.options.clock.now() });
    switch (frame.kind) {
      case 'connected':
        this.outbox.adopt(frame.user.id);
        break;
      case 'snapshot':
        this.outbox.snapshot(frame);
        break;
      case 'live':
        this.outbox.live(this.state.sessionId);
        if (this.outbox.entries.some((e) => e.state === 'acked' && !e.left)) this.connection.pingSoon();
        break;
      case 'ack':
        this.outbox.acked(frame);
        break;
      case 'durable':
        this.outbox.seen(frame);
        if (frame.type === 'session_ended') this.outbox.ended(frame.sessionId || this.state.sessionId);
        break;
      case 'pong':
        this.outbox.durable(this.state.sessionId, frame.durable);
        break;
      case 'error':
        if (!this.outbox.refused(frame)) this.options.onError(frame.code, frame.message);
        break;
      case 'typing':
        this.forgetTyping();
        break;
    }
    this.pump();
  }

  private lost(): void {
    this.cancel();
    this.outbox.lost();
    this.apply({ kind: 'disconnected' });
  }

  /** Sends what may be sent and comes back when more may be. */
  private pump(): void {
    this.options.clock.cancel(this.timer);
    this.timer = null;
    if (!this.state.live) return;
    const frame = this.outbox.take();
    if (frame) this.connection.send(frame);
    const due = this.outbox.due();
    if (due === null) return;
    this.timer = this.options.clock.after(Math.max(1, due - this.options.clock.now()), () => this.pump());
  }

  private forgetTyping(): void {
    this.options.clock.cancel(this.typingTimer);
    const until = this.state.typing?.until;
    if (until === undefined) return;
    const rest = until - this.options.clock.now();
    this.typingTimer = this.options.clock.after(Math.max(1, rest), () =>
      this.apply({ kind: 'tick', at: this.options.clock.now() }),
    );
  }

  private cancel(): void {
    this.options.clock.cancel(this.timer);
    this.options.clock.cancel(this.typingTimer);
    this.timer = null;
    this.typingTimer = null;
  }

  private apply(event: Event): void {
    const next = reduce(this.state, event);
    if (next === this.state) return;
    this.state = next;
    this.options.onState(next);
  }
}
