// Stories of the plain page in a real browser.
//
// CHATBOX_E2E_URL and CHATBOX_E2E_TOKEN name a running server in development mode and a token for it; without them
// the stories run against mock.mjs. CHATBOX_E2E_BROWSER is the browser's path, else `chromium` on PATH.
// CHATBOX_E2E_SHOTS is a folder for screenshots. Without a browser the stories are skipped, unless
// CHATBOX_REQUIRE_SERVICES=1.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { chromium } from 'playwright-core';
import { mockToken, startMock } from './mock.mjs';

const flags = [
  '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync',
];
const WAIT = { timeout: 15_000 };

function findBrowser() {
  if (process.env.CHATBOX_E2E_BROWSER) return process.env.CHATBOX_E2E_BROWSER;
  try {
    return execFileSync('sh', ['-c', 'command -v chromium || command -v chromium-browser || command -v google-chrome']).toString().trim();
  } catch {
    return '';
  }
}

const executablePath = findBrowser();
const missing = executablePath === '' && process.env.CHATBOX_REQUIRE_SERVICES !== '1';
const shots = process.env.CHATBOX_E2E_SHOTS ?? '';
const foreign = process.env.CHATBOX_E2E_URL ?? '';

describe('the page', { skip: missing ? 'no chromium on PATH' : false }, () => {
  let mock = null;
  let browser;
  let context;
  let problems;
  let story = 0;
  let token;

  before(async () => {
    if (shots) mkdirSync(shots, { recursive: true });
    mock = foreign ? null : await startMock();
    browser = await chromium.launch({ executablePath, headless: true, args: flags });
  });
  after(async () => {
    await browser?.close();
    await mock?.close();
  });

  beforeEach(async () => {
    token = foreign ? (process.env.CHATBOX_E2E_TOKEN ?? '') : mockToken(`user-${++story}`);
    context = await browser.newContext({ viewport: { width: 1100, height: 760 } });
    problems = [];
  });
  afterEach(async () => {
    await context.close();
    assert.deepEqual(problems, [], 'no errors in the console and no violations of the policy');
  });

  /** Opens the page as a user does who follows the launcher's link. */
  async function open(on = context) {
    const page = await on.newPage();
    page.on('console', (m) => {
      if (m.type() === 'error' && !expected(m.text())) problems.push(m.text());
    });
    page.on('pageerror', (e) => problems.push(String(e)));
    await page.addInitScript(() => {
      document.addEventListener('securitypolicyviolation', (e) => console.error(`policy: ${e.violatedDirective} ${e.blockedURI}`));
    });
    await page.goto(`${pageUrl()}#token=${token}`);
    await page.locator('.dot[data-state="live"]').waitFor(WAIT);
    return page;
  }

  function pageUrl() {
    if (!foreign) return mock.url;
    const url = new URL(foreign);
    if (!url.pathname.includes('/chat')) url.pathname = '/chat/';
    url.hash = '';
    return url.href;
  }

  /** Begins a conversation of its own, so that stories on one account do not see each other's messages. */
  async function openFresh() {
    const page = await open();
    if (foreign) {
      await startAnother(page);
    }
    return page;
  }

  async function say(page, words) {
    await page.getByRole('textbox').fill(words);
    await page.getByRole('textbox').press('Enter');
  }

  /** The button in the header or in the list, whichever is there. */
  const newChat = (page) => page.getByRole('button', { name: 'New chat' }).and(page.locator('.round')).first();

  /** Ends the conversation of a page and waits for the next one. */
  async function startAnother(page) {
    await newChat(page).click();
    await page.locator('.row').first().waitFor({ state: 'detached', ...WAIT });
    await page.locator('.dot[data-state="live"]').waitFor(WAIT);
  }

  /** How far the list is from its end, in pixels. */
  const fromEnd = (page) => page.locator('.messages').evaluate((el) => el.scrollHeight - el.scrollTop - el.clientHeight);

  const answers = (page) => page.locator('.row.ai .text');
  const own = (page) => page.locator('.row.user .bubble');

  async function finished(page) {
    await page.locator('.row.ai .text[data-running="false"]').first().waitFor(WAIT);
    await page.locator('.row.ai[aria-busy="true"]').waitFor({ state: 'detached', timeout: 30_000 });
  }

  async function shot(page, name) {
    if (shots) await page.screenshot({ path: join(shots, `${name}.png`) });
  }

  const sequence = (n) => Array.from({ length: n }, (_, i) => `t${i + 1}`).join(' ');

  test('opens, and takes the token out of the address at once', async () => {
    const page = await openFresh();
    assert.ok(!page.url().includes('token'));
    assert.equal(new URL(page.url()).hash, '');
    await shot(page, 'empty');
  });

  test('shows an answer while it is being written, and Send is Stop meanwhile', async () => {
    const page = await openFresh();
    await say(page, '!tokens 40 40');
    await page.locator('.text[data-running="true"]').waitFor(WAIT);
    await page.getByRole('button', { name: 'Stop the answer' }).waitFor(WAIT);
    await shot(page, 'streaming');
    await finished(page);
    assert.equal((await answers(page).last().textContent()).trim(), sequence(40));
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor(WAIT);
  });

  // Beyond B11: refresh loses nothing.
  test('a reload in the middle of an answer shows all of it once, in order', async () => {
    const page = await openFresh();
    await say(page, '!tokens 60 50');
    await page.locator('.log').getByText('t10', { exact: false }).waitFor(WAIT);
    await page.reload();
    await page.locator('.text[data-running="true"]').waitFor(WAIT);
    await finished(page);
    assert.equal(await answers(page).count(), 1);
    assert.equal((await answers(page).textContent()).trim(), sequence(60));
    assert.equal(await own(page).count(), 1);
  });

  test('stop ends an answer and keeps what was said', async () => {
    const page = await openFresh();
    await say(page, '!tokens 200 50');
    await page.locator('.log').getByText('t5', { exact: false }).waitFor(WAIT);
    await page.getByRole('textbox').fill('more');
    await page.getByRole('button', { name: 'Send', exact: true }).waitFor(WAIT);
    await shot(page, 'stop-beside-send');
    await page.getByRole('button', { name: 'Stop the answer' }).click();
    await page.locator('.log').getByText('Stopped', { exact: true }).waitFor(WAIT);
    await finished(page);
    assert.match(await answers(page).textContent(), /^t1 t2 t3/);
    assert.ok(await page.getByRole('textbox').evaluate((el) => el === document.activeElement), 'one can go on writing');
    assert.equal(await page.locator('p[role="status"]').textContent(), 'Stopped');
    await page.getByRole('textbox').fill('');
    await startAnother(page);
    assert.equal(await page.locator('p[role="status"]').textContent(), '');
  });

  // Beyond B7 and B12: unsent messages survive, and arrive once.
  test('what is sent offline is queued and arrives', async () => {
    const page = await openFresh();
    await context.setOffline(true);
    await say(page, 'written in a tunnel');
    await say(page, '!tokens 5 10');
    assert.equal(await own(page).count(), 2);
    await page.getByText('You are offline. Messages will be sent later.').waitFor({ timeout: 2_000 });
    await shot(page, 'offline');
    await context.setOffline(false);
    await page.locator('.status').first().waitFor({ state: 'detached', timeout: 30_000 });
    await page.locator('.log').getByText(sequence(5), { exact: false }).waitFor({ timeout: 30_000 });
    await finished(page);
    assert.deepEqual(await own(page).allTextContents(), ['written in a tunnel', '!tokens 5 10']);
    await page.reload();
    await page.locator('.dot[data-state="live"]').waitFor(WAIT);
    assert.deepEqual(await own(page).allTextContents(), ['written in a tunnel', '!tokens 5 10']);
  });

  // Beyond B12: several tabs on one session, in sync.
  test('a second tab shows the same, while it happens', async () => {
    const one = await openFresh();
    const two = await open();
    await say(one, '!tokens 30 40');
    await two.locator('.text[data-running="true"]').waitFor(WAIT);
    await finished(one);
    await finished(two);
    await say(two, 'hello from the second tab');
    await one.locator('.row.user').getByText('hello from the second tab').waitFor(WAIT);
    for (const page of [one, two]) {
      assert.equal((await answers(page).first().textContent()).trim(), sequence(30));
      assert.deepEqual(await own(page).allTextContents(), ['!tokens 30 40', 'hello from the second tab']);
    }
  });

  test('offline is said at once, and hides neither the last line nor the list', async () => {
    const page = await openFresh();
    await say(page, '!tokens 900 1');
    await finished(page);
    await page.locator('.list-row').first().waitFor(WAIT);
    assert.ok((await fromEnd(page)) < 2);
    await context.setOffline(true);
    await page.locator('.dot:not([data-state="live"])').waitFor({ timeout: 1_000 });
    await page.locator('.strip.offline').waitFor({ timeout: 2_000 });
    assert.ok((await fromEnd(page)) < 2, 'the last line is in view');
    await page.getByRole('button', { name: 'Hide conversations' }).first().click();
    await page.getByRole('button', { name: 'Show conversations' }).click();
    await page.locator('.list-row').first().waitFor(WAIT);
    await page.waitForTimeout(300);
    assert.equal(await page.getByText('The list could not be loaded.').count(), 0);
    await shot(page, 'offline-list');
    await context.setOffline(false);
    await page.locator('.dot[data-state="live"]').waitFor({ timeout: 30_000 });
  });

  test('the list names a conversation from its first message on, and knows which one is current', async () => {
    const page = await openFresh();
    await say(page, '!tokens 60 50 in the list');
    await page.locator('.list-row[aria-current="true"]', { hasText: '!tokens 60 50 in the list' }).getByText('Now').waitFor({ timeout: 2_000 });
    await shot(page, 'list-first-answer');
    await startAnother(page);
    assert.equal(await page.locator('.list-row .badge.on').count(), 0);
    await page.locator('.list-row', { hasText: '!tokens 60 50 in the list' }).first().waitFor(WAIT);
  });

  // Promise 48: one active session.
  test('a new chat in one tab lets the other go on there, and is not ended from there without asking', async () => {
    const one = await openFresh();
    const two = await open();
    await say(one, 'before');
    await finished(one);
    await finished(two);
    await startAnother(one);
    await say(one, 'after');
    await finished(one);
    await two.getByText('This conversation has ended.').first().waitFor(WAIT);
    await shot(two, 'other-tab');
    await two.locator('.closing').getByRole('button', { name: 'New chat' }).click();
    await two.getByText('Another chat is going on. A new one would end it.').waitFor(WAIT);
    await shot(two, 'other-tab-asks');
    await two.getByRole('button', { name: 'Continue in the current chat' }).click();
    await own(two).getByText('after').waitFor(WAIT);
    assert.equal(await one.getByRole('textbox').count(), 1);
    await startAnother(two);
    await one.locator('.closing').getByRole('button', { name: 'New chat' }).click();
    await one.getByRole('button', { name: 'End it and start a new one' }).click();
    await one.locator('.row').first().waitFor({ state: 'detached', ...WAIT });
    await two.getByText('This conversation has ended.').first().waitFor(WAIT);
  });

  test('a failed answer says what is tried, fails in one sentence, and another try takes its place', async () => {
    const page = await openFresh();
    await say(page, '!error 500 times=3');
    await page.locator('.word').getByText('Trying again (2)').waitFor({ timeout: 30_000 });
    await shot(page, 'trying-again');
    const card = page.locator('.card.danger');
    await card.waitFor({ timeout: 30_000 });
    await shot(page, 'answer-failed');
    assert.match(await card.textContent(), /^The assistant is not available right now\.Retry/);
    await card.getByRole('button', { name: 'Retry' }).focus();
    await page.keyboard.press('Enter');
    await card.waitFor({ state: 'detached', timeout: 30_000 });
    await finished(page);
    assert.deepEqual(await own(page).allTextContents(), ['!error 500 times=3']);
    assert.equal(await answers(page).count(), 1);
    assert.notEqual((await answers(page).textContent()).trim(), '');
    await shot(page, 'retried');
    await page.reload();
    await page.locator('.dot[data-state="live"]').waitFor(WAIT);
    assert.equal(await answers(page).count(), 1);
    assert.deepEqual(await own(page).allTextContents(), ['!error 500 times=3']);
  });

  test('an answer that broke off keeps its text, and goes on where it stopped, also after a reload', async () => {
    const page = await openFresh();
    await say(page, '!cut 3');
    const card = page.locator('.card.danger');
    await card.waitFor({ timeout: 30_000 });
    const before = (await answers(page).textContent()).trim();
    assert.match(before, /^t1 t2/);
    assert.match(await card.textContent(), /^The answer broke off\.ContinueRetry/);
    await shot(page, 'broken-off');
    await page.getByRole('button', { name: 'Continue', exact: true }).click();
    await page.waitForFunction((n) => document.querySelector('.row.ai .text').textContent.length > n, before.length, { timeout: 30_000 });
    await page.locator('.row.ai[aria-busy="true"]').waitFor({ state: 'detached', timeout: 30_000 });
    await page.reload();
    await page.locator('.dot[data-state="live"]').waitFor(WAIT);
    const text = await answers(page).textContent();
    assert.ok(text.startsWith(before) && text.length > before.length, text);
    assert.equal(await page.locator('.row.ai').count(), 1);
    await shot(page, 'went-on');
  });

  test('an answer that was stopped goes on under the same heading', async () => {
    const page = await openFresh();
    await say(page, '!tokens 200 50');
    await page.locator('.log').getByText('t5', { exact: false }).waitFor(WAIT);
    await page.getByRole('button', { name: 'Stop the answer' }).click();
    await page.locator('.foot').getByText('Stopped').waitFor(WAIT);
    await shot(page, 'stopped');
    const before = (await answers(page).textContent()).length;
    await page.getByRole('button', { name: 'Continue', exact: true }).click();
    await page.waitForFunction((n) => document.querySelector('.row.ai .text').textContent.length > n, before, { timeout: 30_000 });
    assert.equal(await page.locator('.row.ai').count(), 1);
    const stop = page.getByRole('button', { name: 'Stop the answer' });
    if (await stop.count()) await stop.click();
    await page.locator('.row.ai[aria-busy="true"]').waitFor({ state: 'detached', timeout: 30_000 });
  });

  test('an answer can be given anew by key, in every tab, and the earlier one be read', async () => {
    const page = await openFresh();
    const other = await open();
    await say(page, '!tokens 8 30');
    await finished(page);
    await page.getByRole('button', { name: 'Answer again' }).focus();
    await shot(page, 'regenerate');
    await page.keyboard.press('Space');
    for (const p of [page, other]) {
      await p.locator('.earlier summary').waitFor(WAIT);
      await p.locator('.row.ai[aria-busy="true"]').waitFor({ state: 'detached', timeout: 30_000 });
      await p.getByRole('button', { name: 'Answer again' }).waitFor(WAIT);
      assert.equal(await p.locator('.row.ai').count(), 1);
      assert.deepEqual(await own(p).allTextContents(), ['!tokens 8 30']);
      assert.equal((await p.locator('.row.ai .body > .text').textContent()).trim(), sequence(8));
    }
    await page.locator('.earlier summary').focus();
    await page.keyboard.press('Enter');
    await page.locator('.earlier .text').getByText(sequence(8)).waitFor(WAIT);
    await shot(page, 'given-anew');
  });

  test('a wish made offline waits, survives a reload, and is granted once', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, 'hello');
    await finished(page);
    await context.setOffline(true);
    await page.locator('.dot:not([data-state="live"])').waitFor({ timeout: 5_000 });
    await page.getByRole('button', { name: 'Answer again' }).click();
    await page.locator('.word').getByText('Waiting to be sent').waitFor(WAIT);
    await shot(page, 'wish-offline');
    await context.setOffline(false);
    await page.reload();
    await page.locator('.earlier summary').waitFor(WAIT);
    await page.getByRole('button', { name: 'Answer again' }).waitFor(WAIT);
    await page.reload();
    await page.locator('.earlier summary').waitFor(WAIT);
    assert.equal(await page.locator('.earlier summary').textContent(), 'Earlier answer');
  });

  test('another model is told, while it is asked and after', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, '!fallback');
    await page.locator('.word').getByText('Asking Thorough instead').waitFor(WAIT);
    await shot(page, 'asking-instead');
    await finished(page);
    await page.locator('.foot').getByText('Answered by Thorough').waitFor(WAIT);
    assert.equal(await page.locator('.picker select').inputValue(), 'fast');
    await shot(page, 'answered-by');
  });

  test('an allowance that is used up is said with its end, and nothing is sent again by itself', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    const words = /Your allowance for today is used up\. It begins anew at .*\d/;
    await say(page, '!budget');
    await page.locator('.card.danger').getByText(words).waitFor(WAIT);
    assert.equal(await page.getByRole('button', { name: 'Retry' }).count(), 0);
    const frames = [];
    await say(page, '!refuse this');
    await page.locator('.status.failed').getByText(words).waitFor(WAIT);
    page.on('websocket', () => frames.push('reconnected'));
    await shot(page, 'allowance');
    await page.waitForTimeout(3_000);
    assert.equal(await page.locator('.status.failed').count(), 1);
    assert.deepEqual(frames, []);
    await page.getByRole('button', { name: 'Discard' }).click();
    await own(page).nth(1).waitFor({ state: 'detached', ...WAIT });
  });

  test('when no model can be had a person is offered', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, '!error 500 retry=3');
    await page.getByRole('button', { name: /^Retry in \d s$/ }).waitFor(WAIT);
    await shot(page, 'help-offered');
    await page.getByRole('button', { name: 'Retry', exact: true }).waitFor(WAIT);
    await page.getByRole('button', { name: 'Ask a person' }).click();
    await page.getByText('A person cannot be asked here.').waitFor(WAIT);
    await shot(page, 'help-refused');
    mock.faults.people = true;
    try {
      await page.reload();
      await page.getByRole('button', { name: 'Ask a person' }).click();
      await page.getByText('We have told the team. You can keep chatting.').waitFor(WAIT);
      await shot(page, 'help-asked');
    } finally {
      mock.faults.people = false;
    }
  });

  test('files of an answer are links to elsewhere, or named', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, '!file');
    await finished(page);
    const link = page.getByRole('link', { name: 'figures.csv' });
    await link.waitFor(WAIT);
    assert.equal(await link.getAttribute('rel'), 'noopener noreferrer nofollow');
    await page.getByText('A file could not be kept: chart.png').waitFor(WAIT);
    await shot(page, 'files');
  });

  test('a window that becomes narrow shows the chat, and the list again when it becomes wide', async () => {
    const page = await openFresh();
    await page.locator('.list').waitFor(WAIT);
    await page.setViewportSize({ width: 700, height: 760 });
    await page.locator('.list').waitFor({ state: 'detached', ...WAIT });
    await page.getByRole('textbox').click();
    await page.setViewportSize({ width: 1100, height: 760 });
    await page.locator('.list').waitFor(WAIT);
  });

  test('a token that was never good is not called a sign-out', async () => {
    token = 'not.a.token';
    const page = await context.newPage();
    await page.goto(`${pageUrl()}#token=${token}`);
    await page.getByText('This link is not valid any more').waitFor(WAIT);
    await shot(page, 'bad-token');
  });

  // Beyond B7: one message, in one session.
  test('what was acknowledged is not sent again to the next conversation', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    mock.faults.flusher = true;
    try {
      await say(page, 'acknowledged and not yet archived');
      await finished(page);
      const { lookups, accepted } = mock.counts;
      await startAnother(page);
      await page.reload();
      await page.locator('.dot[data-state="live"]').waitFor(WAIT);
      await say(page, 'next');
      await finished(page);
      assert.deepEqual(mock.counts, { lookups, accepted: accepted + 1 });
      assert.deepEqual(await own(page).allTextContents(), ['next']);
    } finally {
      mock.faults.flusher = false;
    }
  });

  test('an answer that stands still says so, also after a reconnect', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, '!hold 16000');
    await page.locator('.text[data-running="true"]').waitFor(WAIT);
    await page.getByText('Still working…').waitFor(WAIT);
    await shot(page, 'still-working');
    mock.cut();
    await page.getByText('The answer is being picked up again…').waitFor(WAIT);
    await shot(page, 'picking-up');
    await finished(page);
    assert.equal(await answers(page).textContent(), 'wait done');
    assert.equal(await page.getByText('picked up again').count(), 0);
  });

  test('while the archive is away the list says that it is not whole, and keeps what it had', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, 'the older one');
    await finished(page);
    await startAnother(page);
    await page.locator('.list-row', { hasText: 'the older one' }).waitFor(WAIT);
    mock.faults.archive = true;
    try {
      await say(page, 'the newer one');
      await page.getByText('Older conversations are briefly unavailable.').waitFor(WAIT);
      await page.locator('.list-row', { hasText: 'the older one' }).waitFor(WAIT);
      await finished(page);
      await shot(page, 'partial-list');
    } finally {
      mock.faults.archive = false;
    }
  });

  test('shift and Enter makes a line, and markup stays text', async () => {
    const page = await openFresh();
    const evil = '<img src=x onerror="document.title=1">';
    await page.getByRole('textbox').fill('one');
    await page.getByRole('textbox').press('Shift+Enter');
    await page.getByRole('textbox').pressSequentially(evil);
    await page.getByRole('textbox').press('Enter');
    await own(page).first().waitFor(WAIT);
    assert.equal(await own(page).first().textContent(), `one\n${evil}`);
    assert.equal(await page.locator('.messages img').count(), 0);
    assert.equal(await page.title(), 'Chat');
  });

  test('a past conversation can be read, and the current one is a click away', async () => {
    const page = await openFresh();
    await say(page, 'first conversation');
    await finished(page);
    await startAnother(page);
    await say(page, 'second conversation');
    await finished(page);
    await shot(page, 'desktop');
    await page.locator('.list-row', { hasText: 'first conversation' }).first().click();
    await own(page).getByText('first conversation').waitFor(WAIT);
    assert.equal(await page.getByRole('textbox').count(), 0);
    await shot(page, 'past');
    await page.getByRole('button', { name: 'Back to the current chat' }).first().click();
    await own(page).getByText('second conversation').waitFor(WAIT);
  });

  test('a cut connection comes back by itself with the rest of the answer', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, '!tokens 60 60');
    await page.locator('.log').getByText('t8', { exact: false }).waitFor(WAIT);
    mock.cut();
    await finished(page);
    await page.locator('.dot[data-state="live"]').waitFor(WAIT);
    await page.locator('.log').getByText(sequence(60)).waitFor(WAIT);
    assert.equal(await answers(page).count(), 1);
  });

  test('a refused message says why and can be discarded', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    await say(page, '!refuse this');
    await page.getByText('Not sent', { exact: false }).waitFor(WAIT);
    await shot(page, 'failed');
    await page.getByRole('button', { name: 'Discard' }).click();
    await own(page).first().waitFor({ state: 'detached', ...WAIT });
  });

  test('older messages are loaded on demand and what was in view stays', { skip: foreign !== '' }, async () => {
    const page = await openFresh();
    for (let i = 1; i <= 60; i++) {
      await say(page, `question ${i}`);
      await own(page).getByText(`question ${i}`, { exact: true }).waitFor(WAIT);
    }
    await page.locator('.log').getByText('You said: question 60').waitFor(WAIT);
    await page.reload();
    await page.locator('.log').getByText('You said: question 60').waitFor(WAIT);
    assert.equal(await own(page).getByText('question 1', { exact: true }).count(), 0);
    const list = page.locator('.messages');
    await list.evaluate((el) => (el.scrollTop = 0));
    const first = own(page).first();
    const shown = await own(page).count();
    const label = await first.textContent();
    const before = (await first.boundingBox()).y;
    const more = page.getByRole('button', { name: 'Load older messages' });
    await more.click();
    await page.waitForFunction((n) => document.querySelectorAll('.row.user').length > n, shown, WAIT);
    const now = (await own(page).getByText(label, { exact: true }).boundingBox()).y;
    assert.ok(Math.abs(now - before) < 60, `what was at ${before} px is at ${now} px`);
    while ((await own(page).getByText('question 1', { exact: true }).count()) === 0) {
      await more.click();
      await page.locator('.older:disabled').waitFor({ state: 'detached', ...WAIT });
    }
    assert.deepEqual(await own(page).allTextContents(), Array.from({ length: 60 }, (_, i) => `question ${i + 1}`));
    await more.waitFor({ state: 'detached', ...WAIT });
  });

  test('a phone in the dark', async () => {
    const phone = await browser.newContext({ viewport: { width: 390, height: 780 }, colorScheme: 'dark', hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
    const page = await open(phone);
    await say(page, 'What are your opening hours on a public holiday, and can I bring my dog?');
    await finished(page);
    await shot(page, 'phone-dark');
    await page.getByRole('button', { name: 'Show conversations' }).click();
    await page.locator('.list-row').first().waitFor(WAIT);
    await shot(page, 'phone-list');
    await phone.close();
  });

  test('without a token it waits for its host', async () => {
    const page = await context.newPage();
    await page.goto(pageUrl());
    await page.getByText('Waiting for the page that holds this chat').waitFor(WAIT);
    await shot(page, 'waiting');
  });
});

/** Messages of the browser that are no mistake of the page: it says so when a socket or a request finds no network. */
function expected(words) {
  return /ERR_INTERNET_DISCONNECTED|status of (401|409)|ERR_CONNECTION|WebSocket connection to .* failed/.test(words);
}
