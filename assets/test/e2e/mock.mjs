// A server that speaks enough of the protocol to develop the page and to run its tests without Redis and Go.
// It keeps everything in memory, trusts every token that it can read, and answers these like the scripted model:
// `!tokens N DELAY_MS`, `!cut N` (the connection breaks after N words), `!length`, `!error STATUS [times=N]`. More:
// `!hold MS` says one word, waits, and says another; `!fallback` is answered by the other model; `!budget` finds no
// tokens left when its turn comes, `!refuse` when it is sent; `!file` comes with files.

import { createServer } from 'node:http';
import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { WebSocketServer } from 'ws';

const dist = fileURLToPath(new URL('../../dist/', import.meta.url));
const models = [
  { id: 'fast', name: 'Fast' },
  { id: 'thorough', name: 'Thorough', vision: true, files: ['pdf'] },
];
const HOURS = 3 * 60 * 60 * 1000;
const wishes = ['regenerate', 'continue', 'retry'];
const SNAPSHOT = 50;

export async function startMock({ port = 0, host = '127.0.0.1' } = {}) {
  const users = new Map();
  const server = createServer((req, res) => void route(req, res).catch(() => res.writeHead(500).end()));
  const wss = new WebSocketServer({ noServer: true, handleProtocols: () => 'chatbox.v1' });
  const counts = { lookups: 0, accepted: 0 };
  /** What a test may break: the archive is away; nothing becomes durable. `people`: somebody can be asked for help. */
  const faults = { archive: false, flusher: false, people: false };

  server.on('upgrade', (req, socket, head) => {
    const url = new URL(req.url, 'http://mock');
    const token = /bearer\.([\w.-]+)/.exec(req.headers['sec-websocket-protocol'] ?? '')?.[1];
    const user = token && userOf(token);
    if (url.pathname !== '/chat/ws' || !user) return void socket.end('HTTP/1.1 401 Unauthorized\r\n\r\n');
    wss.handleUpgrade(req, socket, head, (ws) => accept(ws, user, url.searchParams));
  });

  function userOf(token) {
    try {
      const { sub, name } = JSON.parse(Buffer.from(token.split('.')[1], 'base64url').toString());
      if (!users.has(sub)) users.set(sub, { id: sub, name: name ?? sub, sessions: [] });
      return users.get(sub);
    } catch {
      return null;
    }
  }

  function active(user) {
    let s = user.sessions.find((x) => !x.ended);
    if (!s) {
      s = { id: `00-${randomUUID()}`, epoch: '1-mock', seq: 0, events: [], ids: new Map(), sockets: new Set(), model: 'fast', owed: [], gen: null };
      user.sessions.unshift(s);
      append(s, { type: 'session_started', message_id: randomUUID(), sender: 'system' });
    }
    return s;
  }

  function append(s, event, from) {
    const full = { seq: ++s.seq, session_id: s.id, timestamp: new Date().toISOString(), ...event };
    s.events.push(full);
    if (event.sender === 'user') s.ids.set(event.message_id, full.seq);
    for (const ws of s.sockets) {
      if (ws === from) send(ws, { type: 'ack', session_id: s.id, message_id: event.message_id, seq: full.seq });
      else send(ws, full);
    }
    return full;
  }

  function accept(ws, user, query) {
    const s = active(user);
    const resumed = query.get('session_id') === s.id;
    const last = Number(query.get('last_seq') ?? -1);
    const recovered = resumed && query.get('epoch') === s.epoch && last >= s.seq - SNAPSHOT;
    send(ws, {
      type: 'connection_status', status: 'connected', session_id: s.id, epoch: s.epoch, seq: s.seq, resumed, recovered,
      user: { id: user.id, name: user.name }, name: s.name, models, model_id: s.model, owner: 'ai', heartbeat_ms: 30_000, window_ms: 900_000,
      limits: { frame_bytes: 65_536, per_minute: 100, help: true },
    });
    if (recovered) for (const e of s.events.filter((x) => x.seq > last)) send(ws, e);
    else {
      send(ws, {
        type: 'connection_status', status: 'snapshot', session_id: s.id, epoch: s.epoch, seq: s.seq,
        messages: s.events.slice(-SNAPSHOT), has_more: s.events.length > SNAPSHOT,
      });
    }
    if (s.gen?.chunk) {
      send(ws, { type: 'ai_response', session_id: s.id, message_id: s.gen.id, sender: 'ai', attempt: 1, chunk: s.gen.chunk, delta: s.gen.text, reset: true });
    }
    send(ws, { type: 'connection_status', status: 'live', session_id: s.id });
    s.sockets.add(ws);
    ws.on('close', () => s.sockets.delete(ws));
    ws.on('error', () => ws.terminate());
    ws.on('message', (data) => frame(ws, user, s, JSON.parse(data.toString())));
  }

  function frame(ws, user, s, f) {
    switch (f.type) {
      case 'ping':
        return send(ws, { type: 'pong', session_id: s.id, seq: s.seq, durable: faults.flusher ? 0 : s.seq });
      case 'user_message': {
        // A message that was sent before may be in the session of its first try.
        const home = (f.resent && user.sessions.find((x) => x.id === f.session_id && x.ids.has(f.message_id))) || s;
        const known = home.ids.get(f.message_id);
        if (f.resent) counts.lookups++;
        if (known) return send(ws, { type: 'ack', session_id: home.id, message_id: f.message_id, seq: known, duplicate: true });
        if (f.content.startsWith('!refuse')) {
          return send(ws, { type: 'error', message_id: f.message_id, error: { code: 'BUDGET_EXCEEDED', message: 'no', recoverable: true, retry_after: HOURS } });
        }
        counts.accepted++;
        s.name ??= f.content.slice(0, 60);
        append(s, { type: 'user_message', message_id: f.message_id, sender: 'user', content: f.content }, ws);
        s.owed.push(f);
        return void answer(s);
      }
      case 'regenerate':
      case 'continue':
      case 'retry': {
        const known = s.ids.get(f.message_id);
        if (known) return send(ws, { type: 'ack', session_id: s.id, message_id: f.message_id, seq: known, duplicate: true });
        if (!targetOf(s, f)) return refuse(ws, f, 'NOT_FOUND');
        append(s, { type: f.type, message_id: f.message_id, sender: 'user', target: f.target }, ws);
        s.owed.push(f);
        return void answer(s);
      }
      case 'help_request':
        if (!faults.people) return refuse(ws, f, 'UNKNOWN_TYPE');
        return void append(s, { type: 'help_request', message_id: f.message_id, sender: 'user' }, ws);
      case 'model_select':
        if (!models.some((m) => m.id === f.model_id)) return refuse(ws, f, 'INVALID_MODEL');
        s.model = f.model_id;
        return void append(s, { type: 'model_select', message_id: f.message_id, sender: 'user', model_id: f.model_id }, ws);
      case 'stop':
        if (s.gen) s.gen.stop = true;
        return send(ws, { type: 'ack', session_id: s.id, message_id: f.message_id });
      default:
        return undefined;
    }
  }

  /** The answer that a wish is about: the one it names, or the newest to the question that it names. */
  function targetOf(s, f) {
    const answers = s.events.filter((e) => e.type === 'ai_response');
    return f.type === 'retry'
      ? answers.findLast((e) => e.metadata.answers.split(' ').includes(f.target))
      : answers.find((e) => e.message_id === f.target);
  }

  /** What is owed next: the questions up to the first wish, or that wish alone. */
  function next(s) {
    const until = s.owed.findIndex((f) => wishes.includes(f.type));
    const taken = s.owed.splice(0, until < 0 ? s.owed.length : Math.max(1, until));
    const ids = taken.map((f) => f.message_id);
    const wish = wishes.includes(taken[0].type) ? taken[0] : null;
    if (!wish) return { ids, asked: taken[taken.length - 1].content, metadata: {} };
    const target = targetOf(s, wish);
    ids.push(...target.metadata.answers.split(' ').filter((id) => !ids.includes(id)));
    const asked = s.events.findLast((e) => e.type === 'user_message' && ids.includes(e.message_id)).content;
    return { ids, asked, goesOn: wish.type === 'continue', metadata: { [wish.type === 'continue' ? 'continues' : 'replaces']: target.message_id } };
  }

  /** Reads a command, or makes the ordinary reply. */
  function script(s, { asked, goesOn }) {
    const [command, ...rest] = asked.startsWith('!') ? asked.slice(1).split(' ') : ['', asked];
    const [n, ms] = rest.map(Number);
    const count = (k) => Array.from({ length: k }, (_, i) => `t${i + 1}`);
    if (goesOn) return { words: ['', 'and', 'the', 'rest.'], ms: 40 };
    switch (command) {
      case 'tokens':
        return { words: count(n), ms };
      case 'hold':
        return { words: ['wait', 'done'], ms: n };
      case 'cut':
        return { words: count(n), ms: 15, metadata: { failed: 'LLM_UNAVAILABLE', interrupted: 'failed' } };
      case 'length':
        return { words: count(5), metadata: { length: 'true' } };
      case 'error': {
        const times = Number(/times=(\d+)/.exec(asked)?.[1] ?? Infinity);
        const [, wait] = /retry=(\d+)/.exec(asked) ?? [];
        s.failed ??= new Map();
        s.failed.set(asked, (s.failed.get(asked) ?? 0) + 3);
        if (s.failed.get(asked) > times) return { words: 'It works again.'.split(' ') };
        return { words: [], tries: 3, metadata: { failed: 'LLM_UNAVAILABLE', help: 'offered', ...(wait ? { retry_after: String(wait * 1000) } : {}) } };
      }
      case 'budget':
        return { words: [], metadata: { failed: 'BUDGET_EXCEEDED', retry_after: String(HOURS) } };
      case 'fallback':
        return { words: 'Here I am.'.split(' '), instead: true, metadata: { answered_by: 'Thorough' } };
      case 'file':
        return {
          words: 'Here are your files.'.split(' '),
          metadata: {
            links: JSON.stringify([{ name: 'figures.csv', url: 'https://files.example/figures.csv' }, { url: 'https://other.example/x' }]),
            file_ids: randomUUID(), files_lost: '[file chart.png]',
          },
        };
      default:
        return { words: `You said: ${asked}`.split(' ') };
    }
  }

  async function answer(s) {
    if (s.gen || s.owed.length === 0) return;
    const job = next(s);
    const plan = script(s, job);
    const gen = { id: randomUUID(), chunk: 0, text: '', stop: false };
    s.gen = gen;
    const tell = (f) => s.sockets.forEach((ws) => send(ws, { session_id: s.id, message_id: gen.id, ...f }));
    tell({ type: 'loading', active: true, try: 1 });
    await pause(120);
    for (let n = 2; n <= (plan.tries ?? 1); n++) {
      tell({ type: 'loading', active: true, try: n, content: 'Trying again' });
      await pause(600);
    }
    if (plan.instead) {
      tell({ type: 'loading', active: true, try: 1, content: 'Asking Thorough instead' });
      await pause(600);
    }
    for (const [i, w] of plan.words.entries()) {
      await pause(i === 0 ? 15 : (plan.ms || 15));
      if (gen.stop || s.ended) break;
      const delta = i === 0 ? w : ` ${w}`;
      gen.text += delta;
      gen.chunk++;
      tell({ type: 'ai_response', sender: 'ai', attempt: 1, chunk: gen.chunk, delta });
    }
    s.gen = null;
    const metadata = { answers: job.ids.join(' '), ...job.metadata, ...(gen.stop ? { stopped: 'true' } : plan.metadata) };
    if (!s.ended) append(s, { type: 'ai_response', message_id: gen.id, sender: 'ai', content: gen.text, metadata });
    void answer(s);
  }

  async function route(req, res) {
    const url = new URL(req.url, 'http://mock');
    const path = url.pathname.replace(/^\/chat\//, '');
    if (path === '' || /^app-[\w]+\.(js|css)$/.test(path)) return page(req, res, path);
    const user = userOf((req.headers.authorization ?? '').replace('Bearer ', ''));
    if (!user) return json(res, 401, {});
    if (path === 'me') return json(res, 200, { id: user.id });
    if (path === 'sessions' && req.method === 'POST') {
      const going = user.sessions.find((s) => !s.ended);
      return going ? json(res, 409, { session_id: going.id }) : json(res, 201, { id: active(user).id });
    }
    if (path === 'sessions') {
      const items = user.sessions.filter((s) => s.ids.size > 0 && !(faults.archive && s.ended)).map((s) => ({
        id: s.id, name: s.name ?? '', last_activity: s.events[s.events.length - 1].timestamp, active: !s.ended, admin_assisted: false,
        message_count: s.events.filter((e) => e.type === 'user_message' || e.type === 'ai_response').length,
      }));
      return json(res, 200, { items, ...(faults.archive ? { partial: true } : {}) });
    }
    const [, id, verb] = /^sessions\/([\w-]+)\/(messages|end)$/.exec(path) ?? [];
    const s = user.sessions.find((x) => x.id === id);
    if (!s) return json(res, 404, {});
    if (verb === 'end') {
      append(s, { type: 'session_ended', message_id: randomUUID(), sender: 'system', metadata: { reason: 'explicit' } });
      s.ended = true;
      for (const ws of s.sockets) ws.close(4410);
      return json(res, 200, {});
    }
    const before = Number(url.searchParams.get('before') ?? Infinity);
    const limit = Number(url.searchParams.get('limit') ?? 50);
    const all = s.events.filter((e) => e.seq < before);
    const items = all.slice(-limit);
    return json(res, 200, { items, ...(all.length > limit ? { next: String(items[0].seq) } : {}) });
  }

  async function page(req, res, path) {
    const type = path.endsWith('.js') ? 'text/javascript' : path.endsWith('.css') ? 'text/css' : 'text/html';
    let body = await readFile(dist + (path || 'index.html'));
    if (!path) body = body.toString().replace('name="chatbox-dev" content="0"', 'name="chatbox-dev" content="1"');
    res.writeHead(200, {
      'Content-Type': `${type}; charset=utf-8`,
      'Content-Security-Policy':
        `default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws://${req.headers.host}; img-src 'self' blob: data:; ` +
        "font-src 'self'; base-uri 'none'; form-action 'none'; frame-src 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types 'none'",
    });
    res.end(body);
  }

  await listen(server, port, host);
  return {
    url: `http://${host}:${server.address().port}/chat/`,
    counts,
    faults,
    /** Cuts every socket without a close frame, as a dying replica does. */
    cut: () => wss.clients.forEach((ws) => ws.terminate()),
    close: () => {
      wss.clients.forEach((ws) => ws.terminate());
      server.closeAllConnections();
      return new Promise((done) => server.close(done));
    },
  };
}

/** Listens on a port below 32768: the first free one from a random place, unless one was asked for. */
async function listen(server, port, host) {
  const first = port || 20_000 + Math.floor(Math.random() * 8_000);
  for (let p = first; p < first + (port ? 1 : 50); p++) {
    const ok = await new Promise((done) => {
      server.once('error', () => done(false));
      server.listen(p, host, () => done(true));
    });
    if (ok) return;
  }
  throw new Error(`no free port from ${first} on`);
}

function send(ws, frame) {
  if (ws.readyState === ws.OPEN) ws.send(JSON.stringify(frame));
}

function refuse(ws, f, code) {
  send(ws, { type: 'error', message_id: f.message_id, error: { code, message: 'no', recoverable: false } });
}

function json(res, status, body) {
  res.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(body));
}

function pause(ms) {
  return new Promise((done) => setTimeout(done, ms));
}

/** A token that says who one is and is signed by nobody. */
export function mockToken(sub) {
  const part = (o) => Buffer.from(JSON.stringify(o)).toString('base64url');
  return `${part({ alg: 'none' })}.${part({ sub, name: sub, exp: Math.floor(Date.now() / 1000) + 3600 })}.x`;
}

// `node test/e2e/mock.mjs 8090` serves the page for a person to look at.
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock({ port: Number(process.argv[2] ?? 8090) });
  console.log(`${mock.url}#token=${mockToken('dev')}`);
}
