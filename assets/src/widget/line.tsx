import type { Entry } from '../core/outbox';
import type { DurableFrame } from '../core/protocol';
import type { Row } from '../core/transcript';
import { Final, Running, failureWords } from './answer';
import { Clock } from './icons';
import type { Page } from './page';
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
      return <Running answer={row.answer} page={page} />;
    case 'said':
      return <Final said={row.said} again={row.again} page={page} />;
    case 'event':
      return <Event event={row.event} page={page} grouped={grouped} />;
  }
}

function Event({ event, page, grouped }: { event: DurableFrame; page: Page; grouped: boolean }) {
  switch (event.type) {
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
            <span>{`${text.notSent}. ${text.reasons[entry.reason] ? failureWords(entry.reason, entry.until) : ''}`}</span>
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
