import type { ComponentChildren } from 'preact';
import type { Entry } from '../core/outbox';
import type { DurableFrame } from '../core/protocol';
import type { Answer } from '../core/state';
import type { Row } from '../core/transcript';
import { Clock, Spark } from './icons';
import type { Page } from './page';
import { useStill } from './still';
import { text } from './text';
import { time } from './time';

interface LineProps {
  row: Row;
  page: Page;
  grouped: boolean;
}

/** One row of the transcript. Text is set as text, never as markup. */
export function Line({ row, page, grouped }: LineProps) {
  switch (row.kind) {
    case 'own':
      return <Own entry={row.entry} page={page} grouped={grouped} />;
    case 'answer':
      return <Running answer={row.answer} live={page.connected.value} />;
    case 'event':
      return <Event event={row.event} page={page} grouped={grouped} />;
  }
}

function Event({ event, page, grouped }: { event: DurableFrame; page: Page; grouped: boolean }) {
  switch (event.type) {
    case 'ai_response':
      return <Final event={event} page={page} />;
    case 'user_message':
      return event.sender === 'admin' ? (
        <Agent event={event} grouped={grouped} />
      ) : (
        <Mine content={event.content} grouped={grouped} stamp={event.timestamp} />
      );
    case 'file_upload':
    case 'voice_message': {
      const name = event.metadata['name'] ?? '';
      const label = [event.type === 'file_upload' ? text.file : text.voice, name, event.content].filter(Boolean).join(' · ');
      return <Mine content={label} grouped={grouped} stamp={event.timestamp} />;
    }
    default:
      return <p class={`system ${event.type}`}>{says(event, page)}</p>;
  }
}

function says(event: DurableFrame, page: Page): string {
  const name = event.metadata['name'] ?? '';
  switch (event.type) {
    case 'admin_join':
      return text.joined(name);
    case 'admin_leave':
      return text.left(name);
    case 'help_request':
      return text.helpRequested;
    case 'leave_message':
      return text.leftMessage;
    case 'session_ended':
      return text.ended;
    case 'model_select':
      return text.modelSelected(page.state.value.models.find((m) => m.id === event.modelId)?.name ?? event.modelId);
    default:
      return '';
  }
}

function mark(event: DurableFrame): string {
  const { stopped, interrupted, length } = event.metadata;
  if (stopped) return text.stopped;
  if (interrupted) return text.interrupted;
  return length ? text.cut : '';
}

function Running({ answer, live }: { answer: Answer; live: boolean }) {
  const word = useStill(`${answer.attempt} ${answer.chunk} ${answer.text.length}`, live);
  return <Ai content={answer.text} running stamp="" word={word} />;
}

function Final({ event, page }: { event: DurableFrame; page: Page }) {
  const { failed } = event.metadata;
  return (
    <Ai content={event.content} stamp={event.timestamp} word={failed ? '' : mark(event)}>
      {failed && <Failure reason={text.reasons[failed] ?? text.failed} question={page.past.value ? '' : page.askable(event)} page={page} />}
    </Ai>
  );
}

/** One sentence about an answer that did not come, and another try while it is the last thing that happened. */
function Failure({ reason, question, page }: { reason: string; question: string; page: Page }) {
  return (
    <p class="card danger">
      {reason}
      {question && (
        <button class="link" type="button" onClick={() => page.say(question)}>
          {text.retry}
        </button>
      )}
    </p>
  );
}

interface AiProps {
  content: string;
  stamp: string;
  running?: boolean;
  /** Said below the text, or beside the dots while there is none. */
  word: string;
  children?: ComponentChildren;
}

function Ai(p: AiProps) {
  return (
    <div class="row ai" aria-busy={p.running ?? false}>
      <span class="avatar" aria-hidden="true">
        <Spark />
      </span>
      <div class="body" title={time(p.stamp)}>
        <span class="hidden">{`${text.ai}: `}</span>
        {p.content !== '' && (
          <div class="text" dir="auto" data-running={p.running ?? false}>
            {p.content}
          </div>
        )}
        {p.running && p.content === '' && (
          <span class="dots" role="img" aria-label={text.thinking}>
            <i />
            <i />
            <i />
          </span>
        )}
        {p.word && (p.running && p.content === '' ? <span class="word">{p.word}</span> : <p class="mark">{p.word}</p>)}
        {p.children}
      </div>
    </div>
  );
}

function Agent({ event, grouped }: { event: DurableFrame; grouped: boolean }) {
  const name = event.metadata['name'] ?? event.metadata['admin_name'] ?? '';
  return (
    <div class="row admin" data-grouped={grouped}>
      <div class="body" title={time(event.timestamp)}>
        {!grouped && <p class="who">{name ? `${name} · ${text.support}` : text.support}</p>}
        <div class="bubble" dir="auto">
          {event.content}
        </div>
      </div>
    </div>
  );
}

function Mine({ content, grouped, stamp }: { content: string; grouped: boolean; stamp: string }) {
  return (
    <div class="row user" data-grouped={grouped}>
      <div class="body" title={time(stamp)}>
        <div class="bubble" dir="auto">
          {content}
        </div>
      </div>
    </div>
  );
}

function Own({ entry, page, grouped }: { entry: Entry; page: Page; grouped: boolean }) {
  return (
    <div class="row user" data-grouped={grouped} data-state={entry.state}>
      <div class="body">
        <div class="bubble" dir="auto">
          {entry.content}
        </div>
        {entry.state === 'failed' ? (
          <p class="status failed" role="alert">
            {`${text.notSent}. ${text.reasons[entry.reason] ?? ''} `}
            <button class="link" type="button" onClick={() => page.resend(entry.id)}>
              {text.retry}
            </button>
            <button class="link" type="button" onClick={() => page.discard(entry.id)}>
              {text.discard}
            </button>
          </p>
        ) : (
          <p class="status">
            <Clock />
            {page.connected.value ? text.sending : text.queued}
          </p>
        )}
      </div>
    </div>
  );
}
