/**
 * The frames of the wire protocol `chatbox.v1` as the browser sees them.
 *
 * `parseFrame` is the only place where something unknown becomes a typed value; everything behind it may trust
 * the types. Unknown types and unknown fields are not errors: a newer server may send them, and they are skipped.
 */

export const SUBPROTOCOL = 'chatbox.v1';

/** Largest client frame in bytes of UTF-8, envelope included; the server closes the socket (1009) above it. */
export const MAX_FRAME = 64 * 1024;

/** Bytes of a frame that are not content: type, ids and flags, generously. */
const ENVELOPE = 512;

export type Sender = 'user' | 'ai' | 'admin' | 'system';
export type Owner = 'ai' | 'waiting' | 'human' | 'ended';
export type Metadata = Readonly<Record<string, string>>;

export interface Model {
  readonly id: string;
  readonly name: string;
  /** It can look at images. */
  readonly vision: boolean;
  /** It can listen to recordings. */
  readonly audio: boolean;
  /** Extensions of other files that it can read. */
  readonly files: readonly string[];
}

export interface Limits {
  /** Bytes of one client frame; 0 when the server did not say. */
  readonly frameBytes: number;
  /** Whether a person can be asked for: `help_request` is accepted. */
  readonly help: boolean;
}

/** A stored event: it has a seq, which alone orders the session. */
export interface DurableFrame {
  readonly kind: 'durable';
  readonly type: DurableType;
  readonly seq: number;
  readonly sessionId: string;
  readonly messageId: string;
  readonly sender: Sender;
  readonly content: string;
  readonly timestamp: string;
  readonly target: string;
  readonly fileId: string;
  readonly fileUrl: string;
  readonly modelId: string;
  readonly metadata: Metadata;
}

/**
 * A piece of a running answer. With `reset` the delta is the whole text up to and including `chunk`, else that of the
 * chunks from `first` to `chunk`: more than one where the connection is slow.
 */
export interface DeltaFrame {
  readonly kind: 'delta';
  readonly sessionId: string;
  readonly messageId: string;
  readonly attempt: number;
  readonly first: number;
  readonly chunk: number;
  readonly delta: string;
  readonly reset: boolean;
}

export interface ConnectedFrame {
  readonly kind: 'connected';
  readonly sessionId: string;
  readonly epoch: string;
  readonly seq: number;
  readonly resumed: boolean;
  readonly recovered: boolean;
  readonly user: { readonly id: string; readonly name: string };
  /** Of the session; empty until it has one. */
  readonly name: string;
  readonly models: readonly Model[];
  readonly modelId: string;
  readonly owner: Owner;
  readonly assistedBy: string;
  /** Milliseconds between pings; 0 when the server did not say. */
  readonly heartbeatMs: number;
  readonly windowMs: number;
  readonly limits: Limits;
}

export interface SnapshotFrame {
  readonly kind: 'snapshot';
  readonly sessionId: string;
  readonly epoch: string;
  readonly seq: number;
  readonly messages: readonly DurableFrame[];
  readonly hasMore: boolean;
}

export interface LiveFrame {
  readonly kind: 'live';
  readonly sessionId: string;
}

export interface DrainingFrame {
  readonly kind: 'draining';
  readonly reconnectAfter: number;
}

export interface ResyncFrame {
  readonly kind: 'resync';
}

export interface AckFrame {
  readonly kind: 'ack';
  readonly sessionId: string;
  readonly messageId: string;
  /** 0 for a frame that made no event. */
  readonly seq: number;
  readonly duplicate: boolean;
}

export interface PongFrame {
  readonly kind: 'pong';
  readonly seq: number;
  readonly durable: number;
}

export interface ErrorFrame {
  readonly kind: 'error';
  /** Empty when the error is not about one frame of ours. */
  readonly messageId: string;
  readonly code: string;
  readonly message: string;
  readonly recoverable: boolean;
  /** Milliseconds; 0 when the server did not say. */
  readonly retryAfter: number;
}

export interface LoadingFrame {
  readonly kind: 'loading';
  readonly sessionId: string;
  readonly messageId: string;
  readonly active: boolean;
  readonly attemptAtProvider: number;
  readonly content: string;
}

export interface TypingFrame {
  readonly kind: 'typing';
  readonly sessionId: string;
  readonly sender: Sender;
  readonly active: boolean;
  readonly name: string;
}

export interface StopFrame {
  readonly kind: 'stop';
  readonly target: string;
}

export interface AuthRequiredFrame {
  readonly kind: 'auth_required';
  /** Milliseconds left on the token. */
  readonly retryAfter: number;
}

export type ServerFrame =
  | DurableFrame
  | DeltaFrame
  | ConnectedFrame
  | SnapshotFrame
  | LiveFrame
  | DrainingFrame
  | ResyncFrame
  | AckFrame
  | PongFrame
  | ErrorFrame
  | LoadingFrame
  | TypingFrame
  | StopFrame
  | AuthRequiredFrame;

const durableTypes = [
  'user_message',
  'ai_response',
  'file_upload',
  'voice_message',
  'model_select',
  'help_request',
  'leave_message',
  'admin_join',
  'admin_leave',
  'regenerate',
  'continue',
  'retry',
  'session_started',
  'session_ended',
  'transcript',
] as const;

export type DurableType = (typeof durableTypes)[number];

/** What the page may send. Identity, time and seq are the server's. */
export type ClientFrame =
  | {
      readonly type: 'user_message';
      readonly message_id: string;
      readonly content: string;
      readonly session_id?: string;
      readonly resent?: true;
    }
  | { readonly type: 'ping'; readonly last_seq: number }
  | { readonly type: 'stop' | 'regenerate' | 'continue' | 'retry'; readonly message_id: string; readonly target: string }
  | { readonly type: 'model_select'; readonly message_id: string; readonly model_id: string }
  | { readonly type: 'help_request'; readonly message_id: string; readonly content?: string }
  | { readonly type: 'typing_indicator'; readonly active: boolean }
  | { readonly type: 'auth'; readonly token: string };

export function encode(frame: ClientFrame): string {
  return JSON.stringify(frame);
}

/** Says whether a message with this text fits into one frame. */
export function fits(content: string): boolean {
  // No UTF-16 unit takes more than six bytes as JSON (a control character), so short texts need no counting.
  if (content.length * 6 <= MAX_FRAME - ENVELOPE) return true;
  return new TextEncoder().encode(JSON.stringify(content)).length <= MAX_FRAME - ENVELOPE;
}

/** Parses the text of one WebSocket message. Never throws; null means "not for us, skip it". */
export function parseText(data: unknown): ServerFrame | null {
  if (typeof data !== 'string') return null;
  try {
    return parseFrame(JSON.parse(data));
  } catch {
    return null;
  }
}

/**
 * Turns anything into a frame, or null if it is not one that this page understands. Never throws, and never
 * keeps a reference to an object it was given.
 */
export function parseFrame(value: unknown): ServerFrame | null {
  const o = object(value);
  if (!o) return null;
  const type = str(o, 'type');
  switch (type) {
    case 'connection_status':
      return parseStatus(o);
    case 'ack':
      return withId(o, (messageId) => ({
        kind: 'ack',
        sessionId: str(o, 'session_id'),
        messageId,
        seq: count(o, 'seq'),
        duplicate: flag(o, 'duplicate'),
      }));
    case 'pong':
      return { kind: 'pong', seq: count(o, 'seq'), durable: count(o, 'durable') };
    case 'error':
      return parseError(o);
    case 'loading':
      return withId(o, (messageId) => ({
        kind: 'loading',
        sessionId: str(o, 'session_id'),
        messageId,
        active: flag(o, 'active'),
        attemptAtProvider: count(o, 'try'),
        content: str(o, 'content'),
      }));
    case 'typing_indicator':
      return {
        kind: 'typing',
        sessionId: str(o, 'session_id'),
        sender: sender(o),
        active: flag(o, 'active'),
        name: metadata(o)['name'] ?? '',
      };
    case 'stop':
      return { kind: 'stop', target: str(o, 'target') };
    case 'auth_required':
      return { kind: 'auth_required', retryAfter: count(o, 'retry_after') };
    case 'ai_response':
      return count(o, 'seq') > 0 ? parseDurable(o) : parseDelta(o);
    default:
      return parseDurable(o);
  }
}

/** A stored event, as in `messages` of a snapshot and in the history over HTTP. */
export function parseDurable(value: unknown): DurableFrame | null {
  const o = object(value);
  if (!o) return null;
  const type = durableTypes.find((t) => t === o['type']);
  const seq = count(o, 'seq');
  if (!type || seq === 0) return null;
  return {
    kind: 'durable',
    type,
    seq,
    sessionId: str(o, 'session_id'),
    messageId: str(o, 'message_id'),
    sender: sender(o),
    content: str(o, 'content'),
    timestamp: str(o, 'timestamp'),
    target: str(o, 'target'),
    fileId: str(o, 'file_id'),
    fileUrl: str(o, 'file_url'),
    modelId: str(o, 'model_id'),
    metadata: metadata(o),
  };
}

function parseDelta(o: Unknown): DeltaFrame | null {
  const messageId = str(o, 'message_id');
  const attempt = count(o, 'attempt');
  const chunk = count(o, 'chunk');
  const reset = flag(o, 'reset');
  // A reset may stand at chunk 0: the answer runs and has said nothing yet.
  if (!messageId || attempt === 0 || (chunk === 0 && !reset)) return null;
  const delta = typeof o['delta'] === 'string' ? o['delta'] : str(o, 'content');
  const first = count(o, 'first_chunk') || chunk;
  if (first > chunk) return null;
  return { kind: 'delta', sessionId: str(o, 'session_id'), messageId, attempt, first, chunk, delta, reset };
}

function parseStatus(o: Unknown): ServerFrame | null {
  const sessionId = str(o, 'session_id');
  switch (o['status']) {
    case 'connected': {
      if (!sessionId) return null;
      const user = object(o['user']);
      const limits = object(o['limits']);
      return {
        kind: 'connected',
        sessionId,
        epoch: str(o, 'epoch'),
        seq: count(o, 'seq'),
        resumed: flag(o, 'resumed'),
        recovered: flag(o, 'recovered'),
        user: { id: user ? str(user, 'id') : '', name: user ? str(user, 'name') : '' },
        name: str(o, 'name'),
        models: list(o, 'models').flatMap(parseModel),
        modelId: str(o, 'model_id'),
        owner: owner(o),
        assistedBy: str(o, 'assisted_by'),
        heartbeatMs: count(o, 'heartbeat_ms'),
        windowMs: count(o, 'window_ms'),
        limits: { frameBytes: limits ? count(limits, 'frame_bytes') : 0, help: limits?.['help'] === true },
      };
    }
    case 'snapshot':
      if (!sessionId) return null;
      return {
        kind: 'snapshot',
        sessionId,
        epoch: str(o, 'epoch'),
        seq: count(o, 'seq'),
        messages: list(o, 'messages').flatMap((m) => parseDurable(m) ?? []),
        hasMore: flag(o, 'has_more'),
      };
    case 'live':
      return { kind: 'live', sessionId };
    case 'draining':
      return { kind: 'draining', reconnectAfter: count(o, 'reconnect_after') };
    case 'resync':
      return { kind: 'resync' };
    default:
      return null;
  }
}

function parseError(o: Unknown): ErrorFrame | null {
  const e = object(o['error']);
  if (!e) return null;
  return {
    kind: 'error',
    messageId: str(o, 'message_id'),
    code: str(e, 'code'),
    message: str(e, 'message'),
    recoverable: flag(e, 'recoverable'),
    retryAfter: count(e, 'retry_after'),
  };
}

function parseModel(value: unknown): Model[] {
  const o = object(value);
  const id = o ? str(o, 'id') : '';
  if (!o || !id) return [];
  const files = list(o, 'files').flatMap((f) => (typeof f === 'string' && f ? [f] : []));
  return [{ id, name: str(o, 'name') || id, vision: flag(o, 'vision'), audio: flag(o, 'audio'), files }];
}

type Unknown = Readonly<Record<string, unknown>>;

function object(value: unknown): Unknown | null {
  // The only cast: a non-null object that is no array can be read by name, and every field is unknown still.
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Unknown) : null;
}

function withId<F>(o: Unknown, make: (messageId: string) => F): F | null {
  const id = str(o, 'message_id');
  return id ? make(id) : null;
}

function str(o: Unknown, key: string): string {
  const v = own(o, key);
  return typeof v === 'string' ? v : '';
}

/** A whole number from 0 to 2^53; anything else counts as absent. */
function count(o: Unknown, key: string): number {
  const v = own(o, key);
  return typeof v === 'number' && Number.isSafeInteger(v) && v > 0 ? v : 0;
}

function flag(o: Unknown, key: string): boolean {
  return own(o, key) === true;
}

function list(o: Unknown, key: string): readonly unknown[] {
  const v = own(o, key);
  return Array.isArray(v) ? v : [];
}

/** Reads own properties only, so that `constructor` and its kin are never taken for data. */
function own(o: Unknown, key: string): unknown {
  return Object.prototype.hasOwnProperty.call(o, key) ? o[key] : undefined;
}

function sender(o: Unknown): Sender {
  const v = o['sender'];
  return v === 'user' || v === 'ai' || v === 'admin' ? v : 'system';
}

function owner(o: Unknown): Owner {
  const v = o['owner'];
  return v === 'waiting' || v === 'human' || v === 'ended' ? v : 'ai';
}

function metadata(o: Unknown): Metadata {
  const m = object(own(o, 'metadata'));
  const out: Record<string, string> = Object.create(null); // so that `__proto__` is a key like any other
  if (m) {
    for (const [k, v] of Object.entries(m)) if (typeof v === 'string') out[k] = v;
  }
  return out;
}
