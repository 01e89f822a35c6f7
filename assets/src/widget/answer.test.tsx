/**
 * @jest-environment jsdom
 * @jest-environment-options {"customExportConditions": ["node", "require"]}
 */
import { render } from 'preact';
import { act } from 'preact/test-utils';
import { wire } from '../core/testing';
import { App } from './app';
import { createPage } from './page';
import type { Page } from './page';
import { text } from './text';
import { time } from './time';

let socket: { onopen?: () => void; onmessage?: (e: { data: string }) => void } | null = null;
let history: object[] = [];
const sent: Record<string, string>[] = [];
let page: Page;
let root: HTMLElement;
let ids = 0;

beforeEach(() => {
  history = [];
  Object.assign(window, {
    matchMedia: () => ({ matches: false, addEventListener: () => undefined }),
    ResizeObserver: class {
      observe(): void {}
      disconnect(): void {}
    },
    fetch: () => Promise.resolve({ ok: true, status: 200, json: () => Promise.resolve({ items: history }) }),
    WebSocket: class {
      onopen?: () => void;
      onmessage?: (e: { data: string }) => void;
      constructor() {
        socket = this;
      }
      send(data: string): void {
        sent.push(JSON.parse(data) as Record<string, string>);
      }
      close(): void {}
    },
  });
  Object.defineProperty(window, 'crypto', { value: { getRandomValues: (b: Uint8Array) => b.fill(ids++) }, configurable: true });
});
afterEach(() => act(() => render(null, root)));

/** Opens a page on a session in which these events have happened. */
async function show(...events: object[]): Promise<void> {
  if (root) await act(() => render(null, root));
  sessionStorage.clear();
  sent.length = 0;
  document.body.replaceChildren((root = document.createElement('div')));
  page = createPage(new URL('http://h/chat/'), { link: false, get: () => Promise.resolve('a.e30.c'), current: () => 'jwt' });
  await act(() => render(<App page={page} />, root));
  await act(() => page.start());
  await act(async () => {
    for (let i = 0; i < 8; i++) await Promise.resolve();
  });
  await act(() => socket?.onopen?.());
  await hear(wire.connected());
  await hear(wire.snapshot(events, 3));
  await hear(wire.live());
}

const hear = (f: object): Promise<void> => act(() => socket?.onmessage?.({ data: JSON.stringify(f) }));
const words = (selector: string): string[] => [...root.querySelectorAll(selector)].map((e) => e.textContent ?? '');
const button = (label: string): HTMLButtonElement | undefined =>
  [...root.querySelectorAll('button')].find((b) => b.textContent === label || b.getAttribute('aria-label') === label);
const press = (label: string): Promise<void> => act(() => button(label)?.click());
/** The last frame of a type that the page has sent. */
const last = (type: string): Record<string, string> => sent.filter((f) => f['type'] === type).pop() ?? {};

const question = wire.event(2, 'user_message', 'q', { content: 'why?' });
const failure = (seq: number, code: string): object =>
  wire.event(seq, 'ai_response', `a${seq}`, { metadata: { answers: 'q', failed: code } });

describe('a failed answer', () => {
  test('is one sentence, known or not, and a retry asks for the question again without saying it again', async () => {
    await show(question, failure(3, 'SOMETHING_NEW'));
    expect(words('.card.danger')).toEqual([text.failed + text.retry]);
    await show(question, failure(3, 'LLM_UNAVAILABLE'));
    expect(words('.card.danger')).toEqual([`${text.reasons['LLM_UNAVAILABLE'] ?? ''}${text.retry}`]);
    button(text.retry)?.focus();
    await press(text.retry);
    expect(last('retry')).toEqual({ type: 'retry', message_id: expect.any(String), target: 'q' });
    expect(words('.bubble')).toEqual(['why?']);
    expect(button(text.retry)).toBeUndefined();
    expect(root.querySelectorAll('.row.ai .dots')).toHaveLength(1);
    expect(document.activeElement?.className).toBe('messages');
  });

  test('offers a retry only as the last word, and none while a person answers', async () => {
    await show(question, failure(3, 'LLM_UNAVAILABLE'), wire.event(4, 'user_message', 'q2', { content: 'again' }));
    expect(button(text.retry)).toBeUndefined();
    await show(question, failure(3, 'LLM_UNAVAILABLE'), wire.event(4, 'admin_join', 'j', { sender: 'admin', metadata: { name: 'Mei' } }));
    expect(button(text.retry)).toBeUndefined();
  });

  test('with something said keeps it, says that it broke off, and offers to go on or to begin again', async () => {
    await show(question, wire.event(3, 'ai_response', 'a', { content: 'bec', metadata: { answers: 'q', failed: 'LLM_UNAVAILABLE', interrupted: 'failed' } }));
    expect(words('.row.ai .text')).toEqual(['bec']);
    expect(words('.card.danger')).toEqual([text.brokenOff + text.goOn + text.retry]);
    await press(text.goOn);
    expect(last('continue')).toEqual({ type: 'continue', message_id: expect.any(String), target: 'a' });
    expect(words('.row.ai .text')).toEqual(['bec']);
  });

  test('can be retried when the server says that it may work, and counts the seconds until then', async () => {
    jest.useFakeTimers();
    try {
      const now = new Date().toISOString();
      await show(question, wire.event(3, 'ai_response', 'a', { timestamp: now, metadata: { answers: 'q', failed: 'LLM_UNAVAILABLE', retry_after: '2000' } }));
      expect(button(text.retryIn(2))?.disabled).toBe(true);
      await act(() => void jest.advanceTimersByTime(1_000));
      expect(button(text.retryIn(1))?.disabled).toBe(true);
      await act(() => void jest.advanceTimersByTime(1_000));
      expect(button(text.retry)?.disabled).toBe(false);
    } finally {
      jest.useRealTimers();
    }
  });

  test('for want of an allowance says when it begins anew, and can be retried then', async () => {
    const used = (ms: number): object =>
      wire.event(3, 'ai_response', 'a', { timestamp: new Date(Date.now() - ms).toISOString(), metadata: { answers: 'q', failed: 'BUDGET_EXCEEDED', retry_after: '7200000' } });
    await show(question, used(0));
    expect(words('.card.danger')[0]).toMatch(/^Your allowance for today is used up\. It begins anew at .*\d\d.*\.$/);
    expect(button(text.retry)).toBeUndefined();
    await show(question, used(7_200_001));
    expect(words('.card.danger')).toEqual([text.budgetOver + text.retry]);
    await show(question, failure(3, 'BUDGET_EXCEEDED'));
    expect(words('.card.danger')).toEqual([`${text.reasons['BUDGET_EXCEEDED'] ?? ''}${text.retry}`]);
    await show(question, used(-86_400_000)); // the clock here is a day behind: it is not for longer than was said
    expect(words('.card.danger')).toEqual([text.budgetUntil(time(new Date(Date.now() + 7_200_000).toISOString()))]);
  });

  test('offers a person, asks once, and says so when nobody can be asked', async () => {
    const down = wire.event(3, 'ai_response', 'a', { metadata: { answers: 'q', failed: 'LLM_UNAVAILABLE', help: 'offered' } });
    await show(question, down);
    await press(text.askPerson);
    expect(last('help_request')).toEqual({ type: 'help_request', message_id: expect.any(String) });
    expect(button(text.askPerson)).toBeUndefined();
    expect(words('.quiet')).toEqual([text.askingPerson]);
    await hear(wire.ack(last('help_request')['message_id'] ?? '', 4));
    expect(words('.system.help_request')).toEqual([text.helpRequested]);
    expect(button(text.askPerson)).toBeUndefined();
    expect(button(text.retry)).toBeDefined();
  });

  test('offers no person where none can be asked for', async () => {
    await show(question, wire.event(3, 'ai_response', 'a', { metadata: { answers: 'q', failed: 'LLM_UNAVAILABLE', help: 'offered' } }));
    await hear(wire.connected({ limits: { frame_bytes: 65_536 } }));
    await hear(wire.live());
    expect(button(text.askPerson)).toBeUndefined();
    expect(button(text.retry)).toBeDefined();
  });
});

describe('an answer', () => {
  const said = (metadata: object, content = 'half'): object => wire.event(3, 'ai_response', 'a', { content, metadata: { answers: 'q', ...metadata } });

  test('that was stopped, interrupted or cut can go on; one that is whole can be given anew', async () => {
    for (const [meta, word] of [[{ stopped: 'true' }, text.stopped], [{ interrupted: 'admin_join' }, text.interrupted], [{ length: 'true' }, text.cut]] as const) {
      await show(question, said(meta));
      expect(words('.foot')).toEqual([word + text.goOn]);
    }
    await press(text.goOn);
    expect(last('continue')['target']).toBe('a');
    await show(question, said({}));
    expect(button(text.goOn)).toBeUndefined();
    expect(button(text.regenerate)?.getAttribute('title')).toBe(text.regenerate);
  });

  test('that waits for a person says so, with words of its own or without, and offers one while it is the last word', async () => {
    for (const content of ['', 'One moment.']) {
      await show(question, said({ paused: 'true', help: 'offered' }, content));
      expect(words('.row.ai .text')).toEqual(content ? [content] : []);
      expect(words('.card')).toEqual([text.paused + text.askPerson]);
      expect(words('.card.danger')).toEqual([]);
    }
    await press(text.askPerson);
    expect(last('help_request')).toEqual({ type: 'help_request', message_id: expect.any(String) });
    expect(words('.card')).toEqual([text.paused + text.askingPerson]);
    await show(question, said({ paused: 'true', help: 'offered' }), wire.event(4, 'user_message', 'q2', { content: 'well?' }));
    expect(words('.card')).toEqual([text.paused]);
  });

  test('that is asked for anew makes way for dots and then for the new one, and can be read still', async () => {
    await show(question, said({}, 'old'));
    await press(text.regenerate);
    expect(last('regenerate')['target']).toBe('a');
    expect(words('.earlier summary')).toEqual([text.earlier(1)]);
    const id = page.state.value.outbox[0]?.id ?? '';
    await hear(wire.ack(id, 4));
    await hear({ type: 'loading', session_id: 's1', message_id: 'b', active: true, try: 1 });
    expect(root.querySelectorAll('.dots')).toHaveLength(1);
    await hear(wire.delta('b', 1, 1, 'ne'));
    expect(words('.row.ai > .body > .text')).toEqual(['ne']);
    await hear(wire.event(5, 'ai_response', 'b', { content: 'new', metadata: { answers: `${id} q`, replaces: 'a' } }));
    expect(words('.row.ai > .body > .text')).toEqual(['new']);
    expect(words('.earlier .text')).toEqual(['old']);
    expect(root.querySelectorAll('.row.ai')).toHaveLength(1);
  });

  test('that goes on is one text, while it runs and after', async () => {
    await show(question, said({ stopped: 'true' }, 'one '));
    await press(text.goOn);
    await hear(wire.ack(page.state.value.outbox[0]?.id ?? '', 4));
    await hear(wire.delta('b', 1, 1, 'two'));
    expect(words('.row.ai .text')).toEqual(['one two']);
    await hear(wire.event(5, 'ai_response', 'b', { content: 'two', metadata: { continues: 'a' } }));
    expect(words('.row.ai .text')).toEqual(['one two']);
    expect(words('.mark, .earlier')).toEqual([]);
  });

  test('says who gave it when that is not the model that was chosen, and nothing otherwise', async () => {
    await show(question, said({ answered_by: 'Two' }));
    expect(words('.foot')).toEqual([text.answeredBy('Two')]);
    await show(question, said({}));
    expect(words('.foot')).toEqual(['']); // the button has no words
  });

  test('shows its files: links that open elsewhere and tell nothing, stored ones, and those that were lost', async () => {
    const links = JSON.stringify([{ name: 'a.pdf', url: 'https://files.example/a' }, { url: 'https://other.example/b' }, { name: 'x', url: 'javascript:alert(1)' }]);
    await show(question, said({ links, file_ids: 'f1', files_lost: '[file c.csv]' }));
    expect(words('.files li')).toEqual(['a.pdffiles.example', 'other.example', text.file]);
    const a = root.querySelector<HTMLAnchorElement>('.files a');
    expect([a?.target, a?.rel, a?.href]).toEqual(['_blank', 'noopener noreferrer nofollow', 'https://files.example/a']);
    expect(words('.mark')).toEqual([text.filesLost(['c.csv'])]);
  });

  test('that goes on after one on an older page is joined to it when that is loaded', async () => {
    history = [question, said({ stopped: 'true' }, 'one '), { type: 'from the future' }];
    await show(wire.event(5, 'ai_response', 'b', { content: 'two', metadata: { answers: 'c q', continues: 'a' } }));
    expect(words('.row.ai .text')).toEqual(['two']);
    await hear(wire.snapshot([wire.event(5, 'ai_response', 'b', { content: 'two', metadata: { answers: 'c q', continues: 'a' } })], 5, { has_more: true }));
    await press(text.older);
    await act(async () => new Promise((done) => setTimeout(done, 0)));
    expect(words('.row.ai .text')).toEqual(['one two']);
    expect(words('.bubble')).toEqual(['why?']);
  });

  test('of a past conversation offers nothing', async () => {
    history = [question, said({ stopped: 'true' })];
    await show();
    await page.open({ id: 'old', name: 'Old', lastActivity: '', messageCount: 2, adminAssisted: false, active: false });
    await act(async () => new Promise((done) => setTimeout(done, 0)));
    expect(words('.foot')).toEqual([text.stopped]);
    expect([button(text.goOn), button(text.regenerate)]).toEqual([undefined, undefined]);
  });
});

describe('what the service refuses', () => {
  beforeEach(() => show(question, failure(3, 'LLM_UNAVAILABLE')));

  test('a model that is not on offer any more is told, and the menu shows what goes on', async () => {
    await act(() => void page.selectModel('m2'));
    expect(root.querySelector('select')?.value).toBe('m2');
    await hear(wire.error(last('model_select')['message_id'] ?? '', 'INVALID_MODEL', false));
    expect(words('.note')).toEqual([text.reasons['INVALID_MODEL']]);
    expect(root.querySelector('select')?.value).toBe('m1');
    expect(page.state.value.outbox).toEqual([]);
  });

  test('a choice of the session before does not stand for that of the new one', async () => {
    await act(() => void page.selectModel('m2'));
    const s = page.state.value;
    page.state.value = { ...s, outbox: s.outbox.map((e) => ({ ...e, state: 'acked', sessionId: 'before', left: true })) };
    await act(() => undefined);
    expect(root.querySelector('select')?.value).toBe('m1');
  });

  test('a wish that cannot be granted is told and forgotten', async () => {
    await press(text.retry);
    await hear(wire.error(last('retry')['message_id'] ?? '', 'BAD_FRAME', false));
    expect(words('.note')).toEqual([text.notPossible]);
    expect(page.state.value.outbox).toEqual([]);
    expect(button(text.retry)).toBeDefined();
  });

  test('a wish or message beyond the allowance waits for the user, with the time when it begins anew', async () => {
    await press(text.retry);
    await hear(wire.error(last('retry')['message_id'] ?? '', 'BUDGET_EXCEEDED', true, 7_200_000));
    expect(words('.card.danger')[0]).toMatch(/^Not sent\. Your allowance for today is used up\. It begins anew at .*RetryDiscard$/);
    await press(text.discard);
    expect(words('.card.danger')).toEqual([`${text.reasons['LLM_UNAVAILABLE'] ?? ''}${text.retry}`]);
    await act(() => page.write('more'));
    await act(() => void page.send());
    await hear(wire.error(last('user_message')['message_id'] ?? '', 'BUDGET_EXCEEDED', true, 7_200_000));
    expect(words('.status.failed')[0]).toMatch(/^Not sent\. Your allowance for today is used up\./);
  });

  test('a person who cannot be asked is not offered again', async () => {
    await hear(wire.event(4, 'ai_response', 'b', { metadata: { answers: 'q', failed: 'LLM_UNAVAILABLE', help: 'offered' } }));
    await press(text.askPerson);
    await hear(wire.error(last('help_request')['message_id'] ?? '', 'UNKNOWN_TYPE', false));
    expect(words('.quiet')).toEqual([text.noPerson]);
    expect(page.state.value.outbox).toEqual([]);
  });
});

