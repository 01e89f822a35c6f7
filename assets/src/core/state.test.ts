import fc from 'fast-check';
import { parseFrame } from './protocol';
import { initial, reduce } from './state';
import type { Event, State } from './state';
import { transcript } from './transcript';
import { wire } from './testing';

function run(frames: readonly object[], from: State = initial): State {
  return frames.reduce<State>((s, f) => {
    const frame = parseFrame(f);
    return frame ? reduce(s, { kind: 'frame', frame, at: 1_000 }) : s;
  }, from);
}

/** A page that has caught up on an empty session. */
const ready = run([wire.connected(), wire.snapshot([], 1), wire.live()]);

const text = (s: State): string[] =>
  transcript(s).map((r) => {
    switch (r.kind) {
      case 'event':
        return r.event.content;
      case 'said':
        return r.said.text;
      case 'own':
        return `(${r.entry.content})`;
      case 'answer':
        return `${r.answer.text}|`;
    }
  });

const entry = (id: string, content: string): Event => ({
  kind: 'outbox',
  entries: [{ id, type: 'user_message', content, modelId: '', target: '', at: 5, state: 'sent', sessionId: 's1', tried: false, seq: 0, left: false, reason: '', until: 0 }],
});

describe('a running answer', () => {
  test('grows by contiguous chunks and is replaced by its final', () => {
    const s = run([wire.delta('a', 1, 1, 'He'), wire.delta('a', 1, 2, 'llo')], ready);
    expect(text(s)).toEqual(['Hello|']);
    const done = run([wire.event(3, 'ai_response', 'a', { content: 'Hello.' }), wire.delta('a', 1, 3, 'late')], s);
    expect(text(done)).toEqual(['Hello.']);
    expect(done.seq).toBe(3);
  });

  test('ignores what it has', () => {
    expect(text(run([wire.delta('a', 1, 1, 'x'), wire.delta('a', 1, 1, 'x'), wire.delta('a', 1, 2, 'y'), wire.delta('a', 1, 1, 'x')], ready))).toEqual(['xy|']);
  });

  test('holds at a gap until a reset', () => {
    const s = run([wire.delta('a', 1, 1, 'x'), wire.delta('a', 1, 3, 'z'), wire.delta('a', 1, 4, '!')], ready);
    expect(text(s)).toEqual(['x|']);
    expect(text(run([wire.delta('a', 1, 5, 'xyz!?', { reset: true }), wire.delta('a', 1, 6, ' ok')], s))).toEqual(['xyz!? ok|']);
  });

  test('a delta of several chunks, as slow connections get them, goes on where the text stands, and nowhere else', () => {
    const merged = (first: number, chunk: number, d: string) => wire.delta('a', 1, chunk, d, { first_chunk: first });
    const s = run([wire.delta('a', 1, 1, 'a'), merged(2, 4, 'bcd'), wire.delta('a', 1, 5, 'e')], ready);
    expect(text(s)).toEqual(['abcde|']);
    expect(text(run([merged(1, 3, 'abc'), merged(4, 5, 'de')], ready))).toEqual(['abcde|']);
    expect(text(run([merged(2, 4, 'bcd')], s))).toEqual(['abcde|']);
    expect(run([merged(7, 9, 'ghi')], s).answers[0]?.gap).toBe(true);
    expect(run([merged(5, 9, 'efghi')], s).answers[0]?.gap).toBe(true);
    expect(text(run([merged(7, 9, 'ghi')], ready))).toEqual(['|']);
  });

  test('met in the middle shows nothing until it is whole', () => {
    const s = run([wire.delta('a', 1, 4, 'z')], ready);
    expect(text(s)).toEqual(['|']);
    expect(text(run([wire.delta('a', 1, 4, 'wxyz', { reset: true })], s))).toEqual(['wxyz|']);
  });

  // Beyond B1: never doubled, never mixed.
  test('is replaced as a whole by a new attempt, and goes on under one that continues', () => {
    const s = run([wire.delta('a', 1, 1, 'old '), wire.delta('a', 1, 2, 'text')], ready);
    expect(text(run([wire.delta('a', 2, 1, 'new', { reset: true }), wire.delta('a', 1, 3, ' late')], s))).toEqual(['new|']);
    expect(text(run([wire.delta('a', 2, 3, ' goes on')], s))).toEqual(['old text goes on|']);
    expect(text(run([wire.delta('a', 2, 2, 'hole')], s))).toEqual(['old text|']);
  });

  test('from before a reconnect is dropped unless the server still has it', () => {
    const s = run([wire.delta('a', 1, 1, 'x'), wire.delta('a', 1, 2, 'y')], ready);
    const back = [wire.connected({ seq: 1, resumed: true, recovered: true })];
    expect(text(run([...back, wire.live()], s))).toEqual([]);
    expect(text(run([...back, wire.delta('a', 1, 2, 'xy', { reset: true }), wire.live()], s))).toEqual(['xy|']);
    // A server that lost its tail knows less than we do, and is right.
    expect(text(run([...back, wire.delta('a', 1, 1, 'x', { reset: true }), wire.delta('a', 1, 2, 'Y'), wire.live()], s))).toEqual(['xY|']);
  });
});

describe('own messages', () => {
  test('are shown at once, confirmed by their ack in its place, and never twice', () => {
    const sent = reduce(ready, entry('m1', 'hi'));
    expect(text(sent)).toEqual(['(hi)']);
    const acked = run([wire.ack('m1', 2)], sent);
    expect(text(acked)).toEqual(['hi']);
    expect(acked.seq).toBe(2);
    expect(text(run([wire.event(2, 'user_message', 'm1', { content: 'hi' })], acked))).toEqual(['hi']);
  });

  test('keep their key when they are confirmed, so that they stay one element', () => {
    const sent = reduce(ready, entry('m1', 'hi'));
    expect(transcript(run([wire.ack('m1', 2)], sent))[0]?.key).toBe(transcript(sent)[0]?.key);
  });

  test('a duplicate ack shows the message where it is and moves no cursor', () => {
    const s = run([wire.ack('m1', 9, { duplicate: true })], reduce(ready, entry('m1', 'hi')));
    expect(s.seq).toBe(1);
    expect(s.items.map((m) => m.seq)).toEqual([9]);
  });

  test('an ack without a seq, or of another session, changes nothing', () => {
    const sent = reduce(ready, entry('m1', 'hi'));
    expect(run([wire.ack('m1', 0)], sent)).toBe(sent);
    expect(run([wire.ack('m1', 5, { session_id: 's9' })], sent)).toBe(sent);
  });

  test('stand before the running answer', () => {
    const s = reduce(run([wire.delta('a', 1, 1, 'x')], ready), entry('m1', 'and?'));
    expect(text(s)).toEqual(['(and?)', 'x|']);
  });

  test('said in a session that was left are not shown in the next', () => {
    const left = reduce(ready, entry('m1', 'hi'));
    for (const state of ['acked', 'queued', 'sent'] as const) {
      const acked: Event = { kind: 'outbox', entries: left.outbox.map((e) => ({ ...e, state, seq: 2 })) };
      expect(text(run([wire.connected({ session_id: 's2' })], reduce(left, acked)))).toEqual([]);
    }
  });
});

describe('catching up', () => {
  test('another session begins with an empty page', () => {
    const s = run([wire.event(2, 'user_message', 'm', { content: 'x' })], ready);
    const next = run([wire.connected({ session_id: 's2', epoch: 'e2' })], s);
    expect(next).toMatchObject({ sessionId: 's2', items: [], seq: 0, epoch: '' });
  });

  test('a new numbering is taken with the snapshot, not before', () => {
    const s = run([wire.connected({ epoch: 'e2', resumed: true })], run([wire.event(2, 'user_message', 'm')], ready));
    expect(s).toMatchObject({ epoch: 'e1', seq: 2 });
    expect(run([wire.snapshot([], 1_002, { epoch: 'e2' })], s)).toMatchObject({ epoch: 'e2', seq: 1_002, items: [] });
  });

  test('in a new numbering an answer that was under way is gone, and one that begins again is not mixed with it', () => {
    const s = run([wire.delta('a', 1, 1, 'old '), wire.delta('a', 1, 2, 'text')], ready);
    const lost = run([wire.snapshot([], 1_002, { epoch: 'e2' })], s);
    expect(lost.answers).toEqual([]);
    expect(run([wire.delta('a', 1, 1, 'new '), wire.delta('a', 1, 2, 'words')], lost).answers).toMatchObject([{ text: 'new words', gap: false }]);
    expect(run([wire.snapshot([], 2)], s).answers).toMatchObject([{ text: 'old text' }]);
  });

  test('pages read before stay when the snapshot joins them, and go when there is a hole', () => {
    const page = [5, 6, 7].map((n) => wire.event(n, 'user_message', `m${n}`, { content: `${n}` }));
    const s = run([wire.snapshot(page, 7, { has_more: true })], ready);
    const joins = run([wire.snapshot([wire.event(8, 'user_message', 'm8', { content: '8' })], 8, { has_more: true })], s);
    expect(text(joins)).toEqual(['5', '6', '7', '8']);
    const hole = run([wire.snapshot([wire.event(20, 'user_message', 'm20', { content: '20' })], 20, { has_more: true })], s);
    expect(text(hole)).toEqual(['20']);
  });

  test('the same message under a new number replaces the old', () => {
    const s = run([wire.event(2, 'user_message', 'm', { content: 'x' }), wire.event(1_005, 'user_message', 'm', { content: 'x' })], ready);
    expect(s.items.map((m) => m.seq)).toEqual([1_005]);
  });

  test('older pages go in front', () => {
    const s = run([wire.snapshot([wire.event(9, 'user_message', 'm9', { content: '9' })], 9, { has_more: true })], ready);
    const old = parseFrame(wire.event(8, 'user_message', 'm8', { content: '8' }));
    const items = old?.kind === 'durable' ? [old] : [];
    const more = reduce(s, { kind: 'history', sessionId: 's1', items, hasMore: false });
    expect(text(more)).toEqual(['8', '9']);
    expect(more).toMatchObject({ hasMore: false, seq: 9 });
    expect(reduce(s, { kind: 'history', sessionId: 'other', items, hasMore: false })).toBe(s);
  });
});

describe('the session', () => {
  // Beyond B13: who owns the conversation is always visible.
  test('shows who answers', () => {
    const help = run([wire.event(2, 'help_request', 'h')], ready);
    expect(help.owner).toBe('waiting');
    const join = run([wire.event(3, 'admin_join', 'j', { sender: 'admin', metadata: { name: 'Mei' } })], help);
    expect(join).toMatchObject({ owner: 'human', assistedBy: 'Mei' });
    const left = run([wire.event(4, 'admin_leave', 'l', { sender: 'admin' })], join);
    expect(left).toMatchObject({ owner: 'ai', assistedBy: '' });
    // An old event that comes again says nothing about now.
    expect(run([wire.event(3, 'admin_join', 'j', { sender: 'admin', metadata: { name: 'Mei' } })], left).owner).toBe('ai');
  });

  test('ends, and says what follows', () => {
    const s = run([wire.delta('a', 1, 1, 'x'), wire.event(3, 'session_ended', 'e', { metadata: { reason: 'explicit', next: 's2' } })], ready);
    expect(s).toMatchObject({ owner: 'ended', ended: { reason: 'explicit', next: 's2' }, answers: [] });
  });

  test('follows the chosen model', () => {
    expect(run([wire.event(2, 'model_select', 'x', { model_id: 'm2' })], ready).modelId).toBe('m2');
  });

  test('shows loading until the first word, and typing until it lapses', () => {
    const loading = run([{ type: 'loading', session_id: 's1', message_id: 'a', active: true, try: 2, content: 'Trying again' }], ready);
    expect(loading.loading).toEqual({ id: 'a', attempt: 2, content: 'Trying again' });
    expect(run([wire.delta('a', 1, 1, 'x')], loading).loading).toBeNull();
    expect(run([{ type: 'loading', session_id: 's1', message_id: 'a', active: false }], loading).loading).toBeNull();
    const typing = run([{ type: 'typing_indicator', session_id: 's1', sender: 'admin', active: true }], ready);
    expect(typing.typing?.until).toBe(6_000);
    expect(reduce(typing, { kind: 'tick', at: 5_999 })).toBe(typing);
    expect(reduce(typing, { kind: 'tick', at: 6_000 }).typing).toBeNull();
    expect(run([{ type: 'typing_indicator', session_id: 's1', sender: 'user', active: true }], ready).typing).toBeNull();
  });

  test('remembers how far the archive is', () => {
    expect(run([wire.pong(9, 7), wire.pong(9, 3)], ready).durable).toBe(7);
  });

  test('leaving clears the page', () => {
    const s = reduce(run([wire.event(2, 'user_message', 'm')], ready), { kind: 'left' });
    expect(s).toMatchObject({ sessionId: '', items: [], user: { id: 'u1' } });
    expect(reduce(ready, { kind: 'disconnected' }).live).toBe(false);
  });
});

// Promise 12, Beyond B1 and B11: any interleaving of deltas, duplicates, resets, snapshots and reconnects gives one
// transcript. A model server says something; a network in between repeats, cuts and reconnects at any point.
test('every way of hearing a conversation ends in the same transcript', () => {
  interface Step {
    readonly kind: 'next' | 'merged' | 'again' | 'reconnect' | 'drop';
    readonly pick: number;
    readonly snapshot: boolean;
  }
  const steps = fc.array(
    fc.record({
      kind: fc.constantFrom<Step['kind']>('next', 'next', 'next', 'merged', 'again', 'again', 'reconnect', 'drop'),
      pick: fc.nat(1_000),
      snapshot: fc.boolean(),
    }),
    { maxLength: 120 },
  );
  const turns = fc.array(
    fc.record({
      words: fc.array(fc.string({ minLength: 1, maxLength: 3 }), { minLength: 1, maxLength: 6 }),
      restartAt: fc.option(fc.nat(5)),
      continued: fc.boolean(),
    }),
    { minLength: 1, maxLength: 4 },
  );

  fc.assert(
    fc.property(turns, steps, (script, plan) => {
      const server = new Model();
      script.forEach((t, i) => server.turn(`q${i}`, `a${i}`, t.words, t.restartAt ?? null, t.continued));

      let s = run([wire.connected(), wire.snapshot([], 0), wire.live()]);
      let at = 0;
      const heard: object[] = [];
      const hear = (f: object): void => {
        s = run([f], s);
        heard.push(f);
      };
      for (const step of plan) {
        const next = server.log[at];
        if (step.kind === 'next' && next) {
          hear(next.frame);
          at++;
        } else if (step.kind === 'merged' && next) {
          const joined = join(next.frame, server.log[at + 1]?.frame);
          hear(joined ?? next.frame);
          at += joined ? 2 : 1;
        } else if (step.kind === 'drop' && next && next.stored === 0 && !('reset' in next.frame)) {
          // A chunk gets lost; stored events never are, the server reads them again. Nor is a reset: without it the
          // next chunk could look like a continued attempt, which is why the final text has the last word.
          at++;
        } else if (step.kind === 'again' && heard.length > 0) {
          const old = heard[step.pick % heard.length];
          if (old) s = run([old], s);
        } else if (step.kind === 'reconnect') {
          at = Math.min(server.log.length, at + (step.pick % 4));
          heard.length = 0; // what an old socket had said cannot come again on the new one
          for (const f of server.catchUp(at, s.seq, step.snapshot)) s = run([f], s);
        }
        for (const a of s.answers) expect(server.texts(a.id).some((t) => t.startsWith(a.text))).toBe(true);
        const seqs = s.items.map((m) => m.seq);
        expect(seqs).toEqual([...new Set(seqs)].sort((x, y) => x - y));
      }
      for (; at < server.log.length; at++) s = run([server.log[at]?.frame ?? {}], s);

      expect(text(s)).toEqual(server.transcript());
      expect(s.answers).toEqual([]);
    }),
    { numRuns: 500 },
  );
});

/** What a slow client gets in place of two deltas, if one follows on the other. */
function join(a: object, b: object | undefined): object | null {
  const first = parseFrame(a);
  const last = parseFrame(b);
  if (first?.kind !== 'delta' || last?.kind !== 'delta' || last.reset) return null;
  if (first.messageId !== last.messageId || first.attempt !== last.attempt) return null;
  return wire.delta(first.messageId, first.attempt, last.chunk, first.delta + last.delta, first.reset ? { reset: true } : { first_chunk: first.chunk });
}

/** A server that has a conversation: what it sends live, and how it brings a client up to date at any point. */
class Model {
  readonly log: { frame: object; stored: number; running: object | null }[] = [];
  private seq = 0;
  private all = new Map<string, string[]>();

  turn(question: string, answer: string, words: readonly string[], restartAt: number | null, continued: boolean): void {
    this.store(wire.event(++this.seq, 'user_message', question, { content: question }));
    let attempt = 1;
    let chunk = 0;
    let body = '';
    const texts = [''];
    for (const [i, w] of words.entries()) {
      let reset = false;
      if (i === restartAt) {
        attempt++;
        if (!continued) {
          reset = true;
          body = '';
          chunk = 0;
        }
      }
      body += w;
      chunk++;
      texts.push(body);
      const running = wire.delta(answer, attempt, chunk, body, { reset: true });
      this.log.push({ frame: wire.delta(answer, attempt, chunk, w, reset ? { reset } : {}), stored: 0, running });
    }
    this.all.set(answer, texts);
    this.store(wire.event(++this.seq, 'ai_response', answer, { content: body }));
  }

  texts(id: string): readonly string[] {
    return this.all.get(id) ?? [];
  }

  transcript(): string[] {
    return this.stored(this.log.length).map((f) => String((f as { content: string }).content));
  }

  /** What a client gets that connects after `at` frames were sent and has read up to `seq`. */
  catchUp(at: number, seq: number, snapshot: boolean): object[] {
    const past = this.stored(at);
    const top = past.length;
    const recovered = !snapshot;
    const missed = recovered ? past.slice(seq) : [wire.snapshot(past.slice(-3), top, { has_more: past.length > 3 })];
    const running = this.log[at - 1]?.running;
    return [wire.connected({ seq: top, resumed: true, recovered }), ...missed, ...(running ? [running] : []), wire.live()];
  }

  private store(frame: object): void {
    this.log.push({ frame, stored: this.seq, running: null });
  }

  private stored(at: number): object[] {
    return this.log.slice(0, at).flatMap((l) => (l.stored > 0 ? [l.frame] : []));
  }
}
