import type { Page } from './page';
import type { SessionEntry } from '../core/sessions';
import { Back, Plus } from './icons';
import { text } from './text';
import { ago } from './time';

/** The user's conversations, the latest first. */
export function SessionList({ page }: { page: Page }) {
  const { next, state, partial } = page.sessions.value;
  const items = page.listed.value;
  const start = (): void => {
    void page.newChat();
    page.uncoverChat();
  };
  const open = (entry: SessionEntry): void => {
    void page.open(entry);
    page.uncoverChat();
  };
  return (
    <aside class="list" aria-label={text.sessions}>
      <div class="list-head">
        <button class="round list-close" type="button" aria-label={text.hideSessions} onClick={page.toggleList}>
          <Back />
        </button>
        <h2>{text.sessions}</h2>
        <button class="round" type="button" aria-label={text.newChat} title={text.newChat} onClick={start}>
          <Plus />
        </button>
      </div>
      {state === 'failed' && items.length === 0 && <p class="list-word">{text.sessionsFailed}</p>}
      {state === 'loading' && items.length === 0 && [0, 1, 2].map((i) => <div key={i} class="skeleton" />)}
      {state === 'ready' && items.length === 0 && !partial && <p class="list-word">{text.noSessions}</p>}
      <ul>
        {items.map((entry) => (
          <li key={entry.id}>
            <button class="list-row" type="button" aria-current={current(page, entry)} onClick={() => open(entry)}>
              <span class="list-name" dir="auto">
                {entry.name || text.newChat}
              </span>
              <span class="list-meta">
                {entry.active ? <span class="badge on">{text.current}</span> : ago(entry.lastActivity)}
                {' · '}
                {text.messageCount(entry.messageCount)}
                {entry.adminAssisted && <span class="badge admin">{text.assisted}</span>}
              </span>
            </button>
          </li>
        ))}
      </ul>
      {partial && <p class="list-word">{text.sessionsPartial}</p>}
      {next !== '' && (
        <button class="older" type="button" onClick={() => void page.moreSessions()}>
          {text.moreSessions}
        </button>
      )}
    </aside>
  );
}

function current(page: Page, entry: SessionEntry): boolean {
  return entry.id === (page.past.value?.id ?? page.state.value.sessionId);
}
