import { parseDurable } from '../core/protocol';
import type { DurableFrame } from '../core/protocol';
import type { SessionEntry } from '../core/sessions';

/** One page of a list. */
export interface Part<T> {
  readonly items: readonly T[];
  /** Cursor of the page that follows; empty on the last. */
  readonly next: string;
  /** The archive is away: older items exist or may exist, and are missing here. */
  readonly partial: boolean;
}

/** The HTTP side of the service. Every method rejects when the answer is not a success. */
export class Api {
  constructor(
    private readonly base: URL,
    private readonly token: () => string,
  ) {}

  socketUrl(): string {
    const url = new URL('ws', this.base);
    url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:';
    return url.href;
  }

  /** Tells a refused token from a dead network. */
  async probe(token: string): Promise<'ok' | 'unauthorized' | 'forbidden' | 'unreachable'> {
    const r = await this.request('me', { token });
    if (r.status === 401) return 'unauthorized';
    if (r.status === 403) return 'forbidden';
    return r.ok ? 'ok' : 'unreachable';
  }

  /** The user's sessions, the latest first. */
  async sessions(cursor: string): Promise<Part<SessionEntry>> {
    const query = cursor ? `?${new URLSearchParams({ cursor }).toString()}` : '';
    const body = await this.json(`sessions${query}`);
    return { items: list(body, 'items').flatMap(parseEntry), ...more(body) };
  }

  /** Messages before `before` (empty: the newest), oldest first. */
  async messages(id: string, before: string, limit: number): Promise<Part<DurableFrame>> {
    const query = new URLSearchParams({ limit: String(limit) });
    if (before) query.set('before', before);
    const body = await this.json(`sessions/${encodeURIComponent(id)}/messages?${query.toString()}`);
    return { items: list(body, 'items').flatMap((i) => parseDurable(i) ?? []), ...more(body) };
  }

  /** Ends a session; one that has ended already is as good. false: the server does not know it (any more). */
  async end(id: string): Promise<boolean> {
    const r = await this.request(`sessions/${encodeURIComponent(id)}/end`, { method: 'POST' });
    if (!r.ok && r.status !== 404 && r.status !== 409) throw new Error(`end of session: ${r.status}`);
    return r.status !== 404;
  }

  /** Makes a session unless one is active: then nothing is made, and the answer is the id of that one, else empty. */
  async create(): Promise<string> {
    const r = await this.request('sessions', { method: 'POST' });
    if (r.ok) return '';
    const id = r.status === 409 ? record(await r.json())['session_id'] : '';
    if (typeof id === 'string' && id) return id;
    throw new Error(`new session: ${r.status}`);
  }

  private async json(path: string): Promise<Readonly<Record<string, unknown>>> {
    const r = await this.request(path, {});
    if (!r.ok) throw new Error(`${path.split('?')[0] ?? path}: ${r.status}`);
    return record(await r.json());
  }

  private request(path: string, o: { method?: string; token?: string }): Promise<Response> {
    return fetch(new URL(path, this.base), {
      method: o.method ?? 'GET',
      headers: { Authorization: `Bearer ${o.token ?? this.token()}` },
      credentials: 'omit',
      cache: 'no-store',
    });
  }
}

function parseEntry(value: unknown): SessionEntry[] {
  const o = record(value);
  const id = o['id'];
  if (typeof id !== 'string' || !id) return [];
  const words = (v: unknown): string => (typeof v === 'string' ? v : '');
  const n = o['message_count'];
  return [
    {
      id,
      name: words(o['name']),
      lastActivity: words(o['last_activity']),
      messageCount: typeof n === 'number' ? n : 0,
      adminAssisted: o['admin_assisted'] === true,
      active: o['active'] === true,
    },
  ];
}

function more(body: Readonly<Record<string, unknown>>): { next: string; partial: boolean } {
  const next = body['next'];
  return { next: typeof next === 'string' ? next : '', partial: body['partial'] === true };
}

function record(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? { ...value } : {};
}

function list(o: Readonly<Record<string, unknown>>, key: string): readonly unknown[] {
  const v = o[key];
  return Array.isArray(v) ? v : [];
}
