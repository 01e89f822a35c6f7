/**
 * What the page knows, as signals, and what it can do. Components read the signals and call the functions; nothing
 * else holds state. One instance per page.
 */

import { batch, computed, signal } from '@preact/signals';
import { answersOf, offersOf, wishOf } from '../core/answers';
import type { Offers, Said, Wish } from '../core/answers';
import { Chat } from '../core/chat';
import type { Status } from '../core/connection';
import { fits } from '../core/protocol';
import type { Entry } from '../core/outbox';
import type { DurableFrame } from '../core/protocol';
import { initial } from '../core/state';
import type { State } from '../core/state';
import { subject } from '../core/token';
import { listed, withKnown } from '../core/sessions';
import type { SessionEntry } from '../core/sessions';
import { transcript } from '../core/transcript';
import { Api } from './api';
import { clock, dial, sessionStore, uuid } from './browser';
import type { TokenSource } from './host';
import { text } from './text';

/** A past conversation that is being read. */
export interface Past {
  readonly id: string;
  readonly name: string;
  readonly items: readonly DurableFrame[];
  readonly next: string;
  /** Older messages exist and cannot be read now. */
  readonly partial: boolean;
}

export interface Sessions {
  readonly items: readonly SessionEntry[];
  /** Cursor of the page that follows; empty: there is none. */
  readonly next: string;
  readonly state: 'loading' | 'ready' | 'failed';
  /** Older ones may exist and cannot be read now. */
  readonly partial: boolean;
}

export type Page = ReturnType<typeof createPage>;

const PAGE_SIZE = 50;
const DRAFT_KEY = 'chatbox.draft.1';
const NOTE_MS = 6_000;
/** How long the list of conversations waits for more to happen before it is read again, in milliseconds. */
const LIST_MS = 1_000;
const LIST_FAILED_MS = 5_000;
/** Refusals of a wish that time or the user can do something about. */
const lasting: ReadonlySet<string> = new Set(['BUDGET_EXCEEDED', 'EXPIRED']);
/** Wide enough for that list to stand beside the chat. */
const WIDE = '(min-width: 900px)';

export function createPage(base: URL, tokens: TokenSource) {
  const state = signal<State>(initial);
  const status = signal<Status>({ kind: 'idle' });
  const online = signal(navigator.onLine);
  const waitingForHost = signal(true);
  const note = signal('');
  const past = signal<Past | null>(null);
  const sessions = signal<Sessions>({ items: [], next: '', state: 'loading', partial: false });
  const wide = matchMedia(WIDE);
  const listOpen = signal(wide.matches);
  const older = signal<'idle' | 'loading' | 'failed' | 'partial'>('idle');
  /** A conversation is being left for another. */
  const leaving = signal(false);
  /** Rises with every conversation that the user begins here. */
  const begun = signal(0);
  /** The active session that a new chat would end, found when the user asked for one; empty: none known. */
  const goingOn = signal('');
  const draft = signal(readDraft());
  const rows = computed(() => transcript(state.value));
  const connected = computed(() => status.value.kind === 'live' && !status.value.doubted);
  const entries = computed(() => listed(sessions.value.items, state.value));
  /** What is being tried for the answer that is awaited, in words; empty: nothing out of the ordinary. */
  const trying = computed(() => (state.value.live ? wordsOf(state.value) : ''));
  const newest = computed(() => {
    const row = [...rows.value].reverse().find((r) => r.kind === 'said');
    return row?.kind === 'said' ? { id: row.said.id, offers: offersOf(state.value, row.said, answersOf(state.value.items)) } : null;
  });
  /** The server does not know how a person is asked. */
  const helpless = signal(false);
  const help = computed(() => {
    const s = state.value;
    if (s.owner !== 'ai' || !s.limits.help) return 'none' as const;
    if (helpless.value) return 'refused' as const;
    return s.outbox.some((e) => e.type === 'help_request' && e.state !== 'failed' && e.state !== 'acked') ? ('asked' as const) : ('possible' as const);
  });
  const answering = computed(() => state.value.answers.length > 0 || state.value.loading !== null);

  const api = new Api(base, () => tokens.current());
  let noteTimer: unknown = null;
  let listTimer: unknown = null;
  let listedAt = '';
  let openWhenWide = listOpen.value;

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
      s.outbox.forEach(giveUp);
    },
    onStatus: (s) => {
      status.value = s;
    },
    onError: (code, message) => tell(text.reasons[code] ?? message),
  });

  /** Forgets what was refused and is no message, unless another try makes sense; the user is told. */
  function giveUp(e: Entry): void {
    if (e.state !== 'failed' || e.type === 'user_message') return;
    if (wishOf(e.type) && lasting.has(e.reason)) return;
    chat.discard(e.id);
    if (e.type === 'help_request' && e.reason !== 'EXPIRED') helpless.value = true;
    else if (e.type === 'model_select') tell(text.reasons[e.reason] ?? text.modelKept);
    else tell(text.notPossible);
  }

  async function start(): Promise<void> {
    const token = await tokens.get('start');
    if (!token) return;
    waitingForHost.value = false;
    chat.start(subject(token));
  }

  /** Reads the list again when a session goes live, gets its name, or something was said, and somebody looks at it. */
  function followList(s: State): void {
    if (!s.live) listedAt = '';
    const key = `${s.sessionId} ${s.items[s.items.length - 1]?.seq ?? 0} ${s.name}`;
    if (!s.live || !listOpen.value || key === listedAt) return;
    listedAt = key;
    clock.cancel(listTimer);
    const wait = { loading: 0, ready: LIST_MS, failed: LIST_FAILED_MS }[sessions.value.state];
    listTimer = clock.after(wait, () => void loadSessions());
  }

  function toggleList(): void {
    listOpen.value = !listOpen.value;
    if (listOpen.value) void loadSessions();
  }

  /** On a narrow page the list covers the chat. */
  function uncoverChat(): void {
    if (!wide.matches) listOpen.value = false;
  }

  /** The page became wide or narrow: a list that stood beside the chat is not to cover it. */
  function fitList(): void {
    if (!wide.matches) openWhenWide = listOpen.value;
    listOpen.value = wide.matches && openWhenWide;
    if (listOpen.value) void loadSessions();
  }

  /** Sends what is in the composer. false: it stays there, and a note says why. */
  function send(): boolean {
    const content = draft.value.trim();
    if (!content || !say(content)) return false;
    write('');
    return true;
  }

  function say(content: string): boolean {
    if (!fits(content)) {
      tell(text.tooLong);
      return false;
    }
    if (!chat.send({ type: 'user_message', content })) {
      tell(text.tooMany);
      return false;
    }
    return true;
  }

  /** Asks for another answer. */
  function ask(how: Wish, target: string): void {
    if (!chat.send({ type: how, target })) tell(text.tooMany);
  }

  function askPerson(): void {
    if (!chat.send({ type: 'help_request' })) tell(text.tooMany);
  }

  function write(value: string): void {
    draft.value = value;
    saveDraft(value);
    if (value) chat.typing();
  }

  async function loadSessions(): Promise<void> {
    try {
      const first = await api.sessions('');
      const items = first.partial ? withKnown(first.items, sessions.value.items) : first.items;
      sessions.value = { ...first, items, state: 'ready' };
    } catch {
      listedAt = '';
      sessions.value = { ...sessions.value, state: 'failed' };
    }
  }

  async function moreSessions(): Promise<void> {
    const before = sessions.value;
    try {
      const page = await api.sessions(before.next);
      if (sessions.value !== before) return; // read anew meanwhile
      sessions.value = { ...page, items: [...before.items, ...page.items], next: page.next || (page.partial ? before.next : ''), state: 'ready' };
    } catch {
      tell(text.sessionsFailed);
    }
  }

  /** Whether the conversation of this page has ended, as far as the page knows. */
  function over(): boolean {
    return state.value.ended !== null || status.value.kind === 'stopped';
  }

  /** Opens a past conversation for reading. The active one is simply shown, and entered where another has ended. */
  async function open(entry: SessionEntry): Promise<void> {
    if (entry.active && entry.id !== state.value.sessionId && over()) return leave(true);
    if (entry.active || entry.id === state.value.sessionId) {
      past.value = null;
      return;
    }
    try {
      const page = await api.messages(entry.id, '', PAGE_SIZE);
      past.value = { ...page, id: entry.id, name: entry.name };
    } catch {
      tell(text.openFailed);
    }
  }

  async function loadOlder(): Promise<void> {
    if (older.value === 'loading') return;
    older.value = 'loading';
    try {
      const reading = past.value;
      const partial = reading ? await olderOf(reading) : await olderOfCurrent();
      older.value = partial ? 'partial' : 'idle';
    } catch {
      older.value = 'failed';
    }
  }

  async function olderOf(reading: Past): Promise<boolean> {
    const page = await api.messages(reading.id, reading.next, PAGE_SIZE);
    if (past.value?.id !== reading.id) return false;
    const next = page.next || (page.partial ? reading.next : '');
    past.value = { ...reading, items: [...page.items, ...reading.items], next, partial: page.partial };
    return page.partial;
  }

  async function olderOfCurrent(): Promise<boolean> {
    const { sessionId, items } = state.value;
    const page = await api.messages(sessionId, String(items[0]?.seq ?? ''), PAGE_SIZE);
    chat.older(sessionId, page.items, page.next !== '' || page.partial);
    return page.partial;
  }

  /**
   * Ends the conversation of this page and begins another. On a page whose conversation has ended already another may
   * be going on elsewhere: it is not ended without asking.
   */
  async function newChat(): Promise<void> {
    const { sessionId, items, hasMore, outbox } = state.value;
    const unused = !hasMore && outbox.length === 0 && !items.some((m) => m.type !== 'session_started' && m.type !== 'model_select');
    if (sessionId && !over() && unused) return leave(null);
    await leavingFor(async () => {
      if (sessionId && !over()) return leave(await api.end(sessionId));
      goingOn.value = await api.create();
      past.value = null;
      if (!goingOn.value) leave(true);
    });
  }

  /** Ends the conversation that goes on elsewhere, which the user was asked about, and begins another. */
  async function endAndStart(): Promise<void> {
    await leavingFor(async () => {
      await api.end(goingOn.value);
      leave(true);
    });
  }

  async function leavingFor(run: () => Promise<void>): Promise<void> {
    if (leaving.value) return;
    leaving.value = true;
    try {
      await run();
    } catch {
      tell(text.newChatFailed);
    } finally {
      leaving.value = false;
    }
  }

  /** Shows the active conversation. `ended`: whether that of this page has ended or is lost; null: it is the active one. */
  function leave(ended: boolean | null): void {
    batch(() => {
      past.value = null;
      goingOn.value = '';
      begun.value++;
      if (ended !== null) chat.renew(ended);
    });
  }

  return {
    state, status, online, connected, waitingForHost, note, past, sessions, listed: entries, listOpen, wide, older, draft, rows,
    answering, trying, help, leaving, begun, goingOn,
    toggleList, uncoverChat, fitList, start, send, ask, askPerson, write, open, loadOlder, moreSessions, newChat, endAndStart,
    byLink: tokens.link,
    continueCurrent: () => leave(true),
    /** What may be asked for about an answer; null: it is not the newest, or this is not the time. */
    offersFor: (said: Said): Offers | null => (newest.value?.id === said.id ? newest.value.offers : null),
    closePast: () => (past.value = null),
    stopAnswer: () => chat.stopAnswer(),
    selectModel: (modelId: string) => chat.send({ type: 'model_select', modelId }),
    resend: (id: string) => chat.resend(id),
    discard: (id: string) => chat.discard(id),
    reconnect: () => chat.reconnect(),
    nudge: () => chat.nudge(),
    doubt: () => chat.doubt(),
  };
}

function wordsOf(s: State): string {
  if (!s.loading) return '';
  const { attempt, content } = s.loading;
  if (content === 'Leaving out older messages') return text.leavingOut;
  if (attempt > 1) return text.tryingAgain(attempt);
  const other = s.models.find((m) => content === `Asking ${m.name} instead`);
  return other ? text.askingInstead(other.name) : content;
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
