import { Fragment } from 'preact';
import { eventRows, grouped } from '../core/transcript';
import type { Row } from '../core/transcript';
import { Announcer } from './announcer';
import { Down, Spark } from './icons';
import { Line } from './line';
import type { Page } from './page';
import { useFollow } from './scroll';
import { useStill } from './still';
import { text } from './text';
import { day, time } from './time';

/** Two messages further apart than this get a time between them, in milliseconds. */
const GAP_MS = 10 * 60_000;

/** The transcript: of the active conversation, or of the past one that is being read. */
export function Messages({ page }: { page: Page }) {
  const past = page.past.value;
  const rows = past ? eventRows(past.items) : page.rows.value;
  const hasMore = past ? past.next !== '' : page.state.value.hasMore && page.state.value.items.length > 0;
  const follow = useFollow(rows);
  const settled = past !== null || page.state.value.sessionId !== '';

  return (
    <div class="messages-place">
      <div class="messages" ref={follow.ref} onScroll={follow.onScroll} tabIndex={0} aria-label={text.transcript}>
        {(past ? past.partial : page.older.value === 'partial') && <p class="divider">{text.olderPartial}</p>}
        {hasMore && <Older page={page} onBefore={follow.keep} />}
        {settled && rows.length === 0 && !page.answering.value && <Greeting />}
        <div class="log" role="log" aria-live="off" aria-label={text.transcript}>
          {rows.map((row, i) => (
            <Fragment key={row.key}>
              <Divider before={rows[i - 1]} row={row} />
              <Line row={row} page={page} grouped={grouped(rows[i - 1], row)} />
            </Fragment>
          ))}
          {!past && <Activity page={page} />}
        </div>
      </div>
      {follow.away && (
        <button class="latest" type="button" aria-label={text.latest} title={text.latest} onClick={follow.toLatest}>
          <Down />
          {follow.unseen > 0 && <span class="latest-count">{follow.unseen}</span>}
        </button>
      )}
      {!past && <Announcer page={page} />}
    </div>
  );
}

function Older({ page, onBefore }: { page: Page; onBefore: () => void }) {
  const state = page.older.value;
  const load = (): void => {
    onBefore();
    void page.loadOlder();
  };
  return (
    <button class="older" type="button" disabled={state === 'loading'} onClick={load}>
      {state === 'loading' ? text.loadingOlder : state === 'failed' ? text.olderFailed : text.older}
    </button>
  );
}

function Greeting() {
  return (
    <div class="greeting">
      <span class="greeting-mark">
        <Spark />
      </span>
      <h2>{text.greeting}</h2>
      <p>{text.greetingHint}</p>
    </div>
  );
}

/** What happens right now and is in no transcript: thinking, or somebody typing. */
function Activity({ page }: { page: Page }) {
  const s = page.state.value;
  if (s.typing) return <Dots kind="admin" label={text.typing(s.typing.name)} />;
  const anew = page.rows.value.some((r) => r.kind === 'said' && r.again !== null);
  if (s.loading && s.answers.length === 0 && !anew) return <Thinking key={s.loading.id} word={page.trying.value} />;
  return null;
}

function Thinking({ word }: { word: string }) {
  const late = useStill('', true);
  return <Dots kind="ai" label={text.thinking} word={word || late} />;
}

function Dots({ kind, label, word }: { kind: string; label: string; word?: string }) {
  return (
    <div class={`row ${kind}`}>
      {kind === 'ai' && (
        <span class="avatar" aria-hidden="true">
          <Spark />
        </span>
      )}
      <div class="body">
        <span class="dots" role="img" aria-label={label}>
          <i />
          <i />
          <i />
        </span>
        {word && <span class="word">{word}</span>}
      </div>
    </div>
  );
}

function Divider({ before, row }: { before: Row | undefined; row: Row }) {
  const at = stamp(row);
  if (!at) return null;
  const last = before ? stamp(before) : '';
  if (day(at) !== day(last)) return <p class="divider">{`${day(at)}, ${time(at)}`}</p>;
  if (Date.parse(at) - Date.parse(last) > GAP_MS) return <p class="divider">{time(at)}</p>;
  return null;
}

function stamp(row: Row): string {
  switch (row.kind) {
    case 'event':
      return row.event.timestamp;
    case 'own':
      return new Date(row.entry.at).toISOString();
    case 'said':
      return row.said.parts[0]?.timestamp ?? '';
    case 'answer':
      return '';
  }
}
