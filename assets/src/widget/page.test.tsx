/**
 * @jest-environment jsdom
 * @jest-environment-options {"customExportConditions": ["node", "require"]}
 */
import { render } from 'preact';
import { act } from 'preact/test-utils';
import { parseFrame } from '../core/protocol';
import { initial, reduce } from '../core/state';
import type { State } from '../core/state';
import { wire } from '../core/testing';
import { announcement } from './announcer';
import { App } from './app';
import { createPage } from './page';
import type { Page } from './page';
import { strip } from './strip';
import { text } from './text';

/** What the service answers over HTTP, by method and path; everything else is a dead network. */
let answers: Record<string, { status?: number; body?: object }> = {};
const asked: string[] = [];
let page: Page;
let root: HTMLElement;

beforeEach(async () => {
  answers = { 'GET sessions': { body: { items: [] } } };
  asked.length = 0;
  Object.assign(window, {
    matchMedia: () => ({ matches: true, addEventListener: () => undefined }),
    ResizeObserver: class {
      observe(): void {}
      disconnect(): void {}
    },
    fetch: (url: URL, o: { method: string }) => {
      const key = `${o.method} ${url.pathname.replace('/chat/', '')}`;
      asked.push(key);
      const a = answers[key];
      if (!a) return Promise.reject(new TypeError('no network'));
      const status = a.status ?? 200;
      return Promise.resolve({ ok: status < 300, status, json: () => Promise.resolve(a.body ?? {}) });
    },
  });
  Object.defineProperty(window, 'crypto', { value: { getRandomValues: (b: Uint8Array) => b.fill(7) }, configurable: true });
  sessionStorage.clear();
  await open(false);
});
afterEach(() => act(() => render(null, root)));

async function open(link: boolean): Promise<void> {
  document.body.replaceChildren((root = document.createElement('div')));
  page = createPage(new URL('http://h/chat/'), { link, get: () => Promise.resolve(null), current: () => 'jwt' });
  page.waitingForHost.value = false;
  await act(() => render(<App page={page} />, root));
}

/** Shows a session in which these events have happened. */
async function show(...frames: object[]): Promise<void> {
  const all = [wire.connected(), wire.snapshot([wire.event(1, 'session_started', 'x', { sender: 'system' })], 1), wire.live(), ...frames];
  await act(() => {
    page.status.value = { kind: 'live' };
    page.state.value = all.reduce<State>((s, f) => {
      const frame = parseFrame(f);
      return frame ? reduce(s, { kind: 'frame', frame, at: 1 }) : s;
    }, initial);
  });
}

const more = (f: object): Promise<void> =>
  act(() => {
    const frame = parseFrame(f);
    if (frame) page.state.value = reduce(page.state.value, { kind: 'frame', frame, at: 1 });
  });
const words = (selector: string): string[] => [...root.querySelectorAll(selector)].map((e) => e.textContent ?? '');
const button = (label: string): HTMLButtonElement | undefined =>
  [...root.querySelectorAll('button')].find((b) => b.textContent === label || b.getAttribute('aria-label') === label);
const press = (label: string): Promise<void> => act(() => button(label)?.click());
const settle = (): Promise<void> => act(async () => new Promise((done) => setTimeout(done, 0)));

const question = wire.event(2, 'user_message', 'q', { content: 'why?' });

test('two answers in a row each have their mark', async () => {
  await show(question, wire.event(3, 'ai_response', 'a', { content: 'one' }), wire.event(4, 'ai_response', 'b', { content: 'two' }));
  expect(root.querySelectorAll('.row.ai .avatar')).toHaveLength(2);
  expect(root.querySelectorAll('.row.ai[data-grouped="true"]')).toHaveLength(0);
});

test('what is being tried stands beside the dots and is announced, in our words where we know it', async () => {
  const loading = (o: object): object => ({ type: 'loading', session_id: 's1', message_id: 'a', active: true, try: 1, ...o });
  await show(question, loading({}));
  expect(words('.word')).toEqual([]);
  for (const [o, word] of [
    [{ try: 2, content: 'Trying again' }, text.tryingAgain(2)],
    [{ content: 'Asking Two instead' }, text.askingInstead('Two')],
    [{ try: 2, content: 'Leaving out older messages' }, text.leavingOut],
    [{ content: 'Something new' }, 'Something new'],
  ] as const) {
    await more(loading(o));
    expect(words('.word')).toEqual([word]);
    expect(words('p[role="status"]')).toEqual([word]);
  }
});

test('stop stands beside send when there is text, alone when there is none, and gives the focus to the field', async () => {
  await show(question, wire.delta('a', 1, 1, 'x'));
  expect([button(text.stop), button(text.send)].map(Boolean)).toEqual([true, false]);
  await act(() => page.write('next'));
  expect([button(text.stop), button(text.send)].map(Boolean)).toEqual([true, true]);
  button(text.stop)?.focus();
  await press(text.stop);
  expect(document.activeElement?.tagName).toBe('TEXTAREA');
});

test('who was never in has not been signed out', async () => {
  const refuse = (): Promise<void> => act(() => void (page.status.value = { kind: 'stopped', why: 'unauthorized' }));
  await refuse();
  expect(words('h1')).toEqual([text.notSignedIn]);
  await open(true);
  await refuse();
  expect(words('h1')).toEqual([text.linkInvalid]);
  await show();
  await refuse();
  expect(words('h1')).toEqual([text.expired]);
});

test('news are announced, what was there is not, and another session begins in silence', async () => {
  await show(question);
  const spoken = (): string => words('p[role="status"]').join();
  expect(spoken()).toBe('');
  await more(wire.event(3, 'ai_response', 'a', { content: 'half', metadata: { stopped: 'true' } }));
  expect(spoken()).toBe(text.stopped);
  await more(wire.connected({ session_id: 's2' }));
  expect(spoken()).toBe('');
  await more(wire.snapshot([], 1, { session_id: 's2' }));
  await more(wire.live({ session_id: 's2' }));
  await more(wire.event(2, 'user_message', 'z', { session_id: 's2' }));
  expect(spoken()).toBe(text.sent);
});

test('what is said of an event', () => {
  const say = (type: string, o: object = {}): string => {
    const f = parseFrame(wire.event(3, type, 'a', o));
    return f?.kind === 'durable' ? announcement(f) : '?';
  };
  expect(say('ai_response', { content: 'yes' })).toBe(`${text.answered}. yes`);
  expect(say('ai_response', { metadata: { failed: 'LLM_UNAVAILABLE' } })).toBe(text.reasons['LLM_UNAVAILABLE']);
  expect(say('ai_response', { metadata: { interrupted: 'true' } })).toBe(text.interrupted);
  expect(say('ai_response', { content: 'ha', metadata: { failed: 'LLM_UNAVAILABLE' } })).toBe(text.brokenOff);
  expect(say('user_message', { sender: 'admin', content: 'hello' })).toBe(`${text.support}: hello`);
  expect(say('admin_join', { sender: 'admin', metadata: { name: 'Mei' } })).toBe(text.joined('Mei'));
  expect(say('admin_leave', { sender: 'admin', metadata: { name: 'Mei' } })).toBe(text.left('Mei'));
  expect(say('session_ended', { sender: 'system' })).toBe(text.ended);
  expect(say('session_started', { sender: 'system' })).toBe('');
});

describe('an answer that stands still', () => {
  beforeEach(() => jest.useFakeTimers());
  afterEach(() => jest.useRealTimers());
  const pass = (ms: number): Promise<void> => act(() => void jest.advanceTimersByTime(ms));

  test('says so after 8 s, and no longer when it moves', async () => {
    await show(question, wire.delta('a', 1, 1, 'x'));
    await pass(7_999);
    expect(words('.mark')).toEqual([]);
    await pass(1);
    expect(words('.mark')).toEqual([text.stillWorking]);
    await more(wire.delta('a', 1, 2, 'y'));
    expect(words('.mark')).toEqual([]);
  });

  test('after a reconnect says after 3 s that it is being picked up, and nothing while there is no connection', async () => {
    await show(question, wire.delta('a', 1, 1, 'x'));
    await act(() => void (page.status.value = { kind: 'waiting', until: 0, attempt: 1 }));
    await pass(20_000);
    expect(words('.mark')).toEqual([]);
    await act(() => void (page.status.value = { kind: 'live' }));
    await pass(2_999);
    expect(words('.mark')).toEqual([]);
    await pass(1);
    expect(words('.mark')).toEqual([text.pickingUp]);
    await more(wire.delta('a', 1, 2, 'y'));
    await pass(7_000);
    expect(words('.mark')).toEqual([]);
  });
});

describe('the list', () => {
  const item = { id: 'old', name: 'Old', last_activity: '2026-11-23T06:00:00Z', message_count: 2, active: false };

  test('that cannot be read again is shown as it was, without a word', async () => {
    answers = { 'GET sessions': { body: { items: [item] } } };
    page.toggleList();
    page.toggleList();
    await settle();
    answers = {};
    page.toggleList();
    page.toggleList();
    await settle();
    expect(page.sessions.value.state).toBe('failed');
    expect(words('.list-name')).toEqual(['Old']);
    expect(words('.list-word')).toEqual([]);
  });

  test('that was never read says so', async () => {
    answers = {};
    page.toggleList();
    page.toggleList();
    await settle();
    expect(words('.list-word')).toEqual([text.sessionsFailed]);
  });

  test('says when the archive is away, and keeps what was read before', async () => {
    answers = { 'GET sessions': { body: { items: [item] } } };
    page.toggleList();
    page.toggleList();
    await settle();
    answers = { 'GET sessions': { body: { items: [], partial: true } } };
    page.toggleList();
    page.toggleList();
    await settle();
    expect(words('.list-name')).toEqual(['Old']);
    expect(words('.list-word')).toEqual([text.sessionsPartial]);
  });

  test('opens a past conversation of which the archive gives only a part', async () => {
    answers = { 'GET sessions/old/messages': { body: { items: [], partial: true } } };
    await page.open({ id: 'old', name: 'Old', lastActivity: '', messageCount: 2, adminAssisted: false, active: false });
    await settle();
    expect(words('.divider')).toEqual([text.olderPartial]);
    answers = {};
    await page.open({ id: 'other', name: '', lastActivity: '', messageCount: 2, adminAssisted: false, active: false });
    await settle();
    expect(words('.note')).toEqual([text.openFailed]);
  });
});

describe('a new chat', () => {
  const ended = (reason: string): object => wire.event(3, 'session_ended', 'e', { sender: 'system', metadata: { reason } });

  test('ends the conversation of the page, once', async () => {
    answers['POST sessions/s1/end'] = {};
    await show(question);
    const first = page.newChat();
    expect(page.leaving.value).toBe(true);
    await page.newChat();
    await first;
    expect(asked.filter((a) => a.startsWith('POST'))).toEqual(['POST sessions/s1/end']);
    expect(page.state.value.sessionId).toBe('');
  });

  test('of one in which nothing was said is that one', async () => {
    await show();
    await page.newChat();
    expect(asked.filter((a) => a.startsWith('POST'))).toEqual([]);
    expect(page.state.value.sessionId).toBe('s1');
  });

  test('says so when it cannot be had', async () => {
    await show(question);
    await page.newChat();
    await settle();
    expect(words('.note')).toEqual([text.newChatFailed]);
    expect(page.state.value.sessionId).toBe('s1');
  });

  test('after an end elsewhere asks before it ends another one', async () => {
    answers['POST sessions'] = { status: 409, body: { session_id: 's2' } };
    answers['POST sessions/s2/end'] = {};
    await show(question, ended('explicit'));
    expect(button(text.continueCurrent)).toBeDefined();
    await press(text.newChat);
    button(text.newChat)?.click();
    [...root.querySelectorAll<HTMLButtonElement>('.closing button')].find((b) => b.textContent === text.newChat)?.click();
    await settle();
    expect(words('.closing span')[0]).toBe(text.goingOn);
    expect(asked).not.toContain('POST sessions/s2/end');
    await press(text.endAndStart);
    await settle();
    expect(asked).toContain('POST sessions/s2/end');
    expect(page.goingOn.value).toBe('');
  });

  test('is not the only way on: the list leads to the conversation that goes on elsewhere', async () => {
    const current = { id: 's2', name: 'After', lastActivity: '', messageCount: 1, adminAssisted: false, active: true };
    await show(question);
    await page.open(current);
    expect(page.state.value.sessionId).toBe('s1');
    await show(question, ended('explicit'));
    await page.open(current);
    expect(page.state.value.sessionId).toBe('');
  });

  test('begins at once when none is active, and one that ran out of time offers nothing else', async () => {
    answers['POST sessions'] = { status: 201 };
    await show(question, ended('expired'));
    expect(button(text.continueCurrent)).toBeUndefined();
    await page.newChat();
    expect(page.state.value.sessionId).toBe('');
  });
});

test('the menu says what a model can read beside text', async () => {
  const models = [{ id: 'm1', name: 'One', vision: true, audio: true, files: ['pdf', '.csv'] }, { id: 'm2', name: 'Two' }];
  await show(wire.connected({ models }));
  expect([...root.querySelectorAll('option')].map((o) => o.title)).toEqual(['Reads images, recordings, pdf, csv', 'Reads text only']);
});

test('the strip: offline after 400 ms, whatever the socket thinks of itself, and nothing while it proves to live', () => {
  const at = { status: { kind: 'live', doubted: true }, live: false, online: false, wasLive: true, since: 0, shown: false } as const;
  expect(strip({ ...at, now: 399 }).kind).toBe('none');
  expect(strip({ ...at, now: 400 }).kind).toBe('offline');
  expect(strip({ ...at, live: true, now: 400 }).kind).toBe('none');
  expect(strip({ ...at, online: true, now: 1_500 })).toEqual({ kind: 'lost', seconds: 0 });
});
