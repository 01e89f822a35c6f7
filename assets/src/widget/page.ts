/**
 * What the page knows, as signals, and what it can do. Components read the signals and call the functions; nothing
 * else holds state. One instance per page.
 */

import { batch, computed, signal } from '@preact/signals';
import { Chat } from '../core/chat';
import type { Status } from '../core/connection';
import { fits } from '../core/protocol';
import type { DurableFrame } from '../core/protocol';
import { initial } from '../core/state';
import type { State } from '../core/state';
import { subject } from '../core/token';
import { transcript } from '../core/transcript';
import { Api } from './api';
import type { SessionEntry } from './api';
import { clock, dial, sessionStore, uuid } from './browser';
import type { TokenSource } from './host';
import { text } from './text';

/** A past conversation that is being read. */
export interface Past {
  readonly id: string;
  readonly name: string;
  readonly items: readonly DurableFrame[];
  readonly next: string;
}

export interface Sessions {
  readonly items: readonly SessionEntry[];
  /** Cursor of the page that follows; empty: there is none. */
  readonly next: string;
  readonly state: 'loading' | 'ready' | 'failed';
}

export type Page = ReturnType<typeof createPage>;

const PAGE_SIZE = 50;
const DRAFT_KEY = 'chatbox.draft.1';
const NOTE_MS = 6_000;
/** How long the list of conversations waits for more to happen before it is read again, in milliseconds. */
const LIST_MS = 1_000;
/** Wide enough for that list to stand beside the chat. */
const WIDE = '(min-width: 900px)';

export function createPage(base: URL, tokens: TokenSource) {
  const state = signal<State>(initial);
  const status = signal<Status>({ kind: 'idle' });
  const online = signal(navigator.onLine);
  const waitingForHost = signal(true);
  const note = signal('');
  const past = signal<Past | null>(null);
  const sessions = signal<Sessions>({ items: [], next: '', state: 'loading' });
  const listOpen = signal(isWide());
  const older = signal<'idle' | 'loading' | 'failed'>('idle');
  const draft = signal(readDraft());
  const rows = computed(() => transcript(state.value));
  const answering = computed(() => state.value.answers.length > 0 || state.value.loading !== null);

  const api = new Api(base, () => tokens.current());
  let noteTimer: unknown = null;
  let listTimer: unknown = null;
  let listed = '';

  function tell(message: string): void {
    clock.cancel(noteTimer);
    note.value = message;
    noteTimer = clock.after(NOTE_MS, () => {
      note.value = '';
    });
  }

  const chat = new Chat({
    url: api.socketUrl(),
    dial,
    clock,
    random: Math.random,
    uuid,
    storage: sessionStore(),
    token: (reason) => tokens.get(reason),
    probe: (token) => api.probe(token),
    onState: (s) => {
      state.value = s;
      followList(s);
    },
    onStatus: (s) => {
      status.value = s;
    },
    onError: (code, message) => tell(text.reasons[code] ?? message),
  });

  async function start(): Promise<void> {
    const token = await tokens.get('start');
    if (!token) return;
    waitingForHost.value = false;
    chat.start(subject(token));
  }

  /** Reads the list again when something was said and somebody looks at it. */
  function followList(s: State): void {
    const key = `${s.sessionId} ${s.items[s.items.length - 1]?.seq ?? 0}`;
    if (!s.live || !listOpen.value || key === listed) return;
    listed = key;
    clock.cancel(listTimer);
    listTimer = clock.after(sessions.value.state === 'loading' ? 0 : LIST_MS, () => void loadSessions());
  }

  function toggleList(): void {
    listOpen.value = !listOpen.value;
    if (listOpen.value) void loadSessions();
  }

  /** On a narrow page the list covers the chat. */
  function uncoverChat(): void {
    if (!isWide()) listOpen.value = false;
  }

  /** Sends what is in the composer. false: it stays there, and a note says why. */
  function send(): boolean {
    const content = draft.value.trim();
    if (!content) return false;
    if (!fits(content)) {
      tell(text.tooLong);
      return false;
    }
    if (!chat.send({ type: 'user_message', content })) {
      tell(text.tooMany);
      return false;
    }
    write('');
    return true;
  }

  function write(value: string): void {
    draft.value = value;
    saveDraft(value);
    if (value) chat.typing();
  }

  async function loadSessions(): Promise<void> {
    try {
      sessions.value = { ...(await api.sessions('')), state: 'ready' };
    } catch {
      sessions.value = { ...sessions.value, state: 'failed' };
    }
  }

  async function moreSessions(): Promise<void> {
    const before = sessions.value;
    try {
      const page = await api.sessions(before.next);
      if (sessions.value !== before) return; // read anew meanwhile
      sessions.value = { items: [...before.items, ...page.items], next: page.next, state: 'ready' };
    } catch {
      sessions.value = { ...before, state: 'failed' };
    }
  }

  /** Opens a past conversation for reading. The active one is simply shown. */
  async function open(entry: SessionEntry): Promise<void> {
    if (entry.active || entry.id === state.value.sessionId) {
      past.value = null;
      return;
    }
    try {
      const page = await api.messages(entry.id, '', PAGE_SIZE);
      past.value = { id: entry.id, name: entry.name, items: page.items, next: page.next };
    } catch {
      tell(text.sessionsFailed);
    }
  }

  async function loadOlder(): Promise<void> {
    if (older.value === 'loading') return;
    older.value = 'loading';
    try {
      const reading = past.value;
      if (reading) await olderOf(reading);
      else await olderOfCurrent();
      older.value = 'idle';
    } catch {
      older.value = 'failed';
    }
  }

  async function olderOf(reading: Past): Promise<void> {
    const page = await api.messages(reading.id, reading.next, PAGE_SIZE);
    if (past.value?.id !== reading.id) return;
    past.value = { ...reading, items: [...page.items, ...reading.items], next: page.next };
  }

  async function olderOfCurrent(): Promise<void> {
    const { sessionId, items } = state.value;
    const page = await api.messages(sessionId, String(items[0]?.seq ?? ''), PAGE_SIZE);
    chat.older(sessionId, page.items, page.next !== '');
  }

  /** Ends the active conversation and begins another. */
  async function newChat(): Promise<void> {
    const { sessionId, ended } = state.value;
    try {
      if (sessionId && !ended) await api.end(sessionId);
    } catch {
      tell(text.broken);
      return;
    }
    batch(() => {
      past.value = null;
      chat.renew();
    });
  }

  return {
    state, status, online, waitingForHost, note, past, sessions, listOpen, older, draft, rows, answering,
    toggleList, uncoverChat, start, send, write, open, loadOlder, moreSessions, newChat,
    closePast: () => (past.value = null),
    stopAnswer: () => chat.stopAnswer(),
    selectModel: (modelId: string) => chat.send({ type: 'model_select', modelId }),
    resend: (id: string) => chat.resend(id),
    discard: (id: string) => chat.discard(id),
    reconnect: () => chat.reconnect(),
    nudge: () => chat.nudge(),
  };
}

function isWide(): boolean {
  return matchMedia(WIDE).matches;
}

function readDraft(): string {
  try {
    return sessionStore()?.getItem(DRAFT_KEY) ?? '';
  } catch {
    return '';
  }
}

function saveDraft(value: string): void {
  try {
    if (value) sessionStore()?.setItem(DRAFT_KEY, value);
    else sessionStore()?.removeItem(DRAFT_KEY);
  } catch {
    // A draft that cannot be kept is still in the field.
  }
}
