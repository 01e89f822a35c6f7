import { useEffect } from 'preact/hooks';
import { Composer } from './composer';
import { Header } from './header';
import { Messages } from './messages';
import { Notice } from './notice';
import type { Page } from './page';
import { SessionList } from './sessions';
import { ConnectionStrip } from './connection-strip';
import { text } from './text';

export function App({ page }: { page: Page }) {
  const notice = <Notice page={page} />;
  const past = page.past.value;
  const listOpen = page.listOpen.value;

  useEffect(() => {
    const close = (e: KeyboardEvent): void => {
      if (e.key === 'Escape') page.uncoverChat();
    };
    document.addEventListener('keydown', close);
    return () => document.removeEventListener('keydown', close);
  }, [page]);

  if (page.waitingForHost.value || blocking(page)) return <main class="app">{notice}</main>;
  return (
    <div class="app" data-list={listOpen ? 'open' : 'closed'} data-owner={page.state.value.owner}>
      {listOpen && <SessionList page={page} />}
      <main class="chat">
        <Header page={page} />
        <ConnectionStrip page={page} />
        <Messages key={past?.id ?? 'current'} page={page} />
        {page.note.value && (
          <p class="note" role="alert">
            {page.note.value}
          </p>
        )}
        {past ? (
          <Closing label={text.readOnly} action={text.backToChat} onAction={page.closePast} />
        ) : page.state.value.ended || ended(page) ? (
          <Closing label={text.ended} action={text.newChat} onAction={() => void page.newChat()} />
        ) : (
          <Composer page={page} />
        )}
      </main>
    </div>
  );
}

function ended(page: Page): boolean {
  const s = page.status.value;
  return s.kind === 'stopped' && s.why === 'ended';
}

/** Whether there is nothing to show but a notice. */
function blocking(page: Page): boolean {
  const s = page.status.value;
  return s.kind === 'stopped' && s.why !== 'ended';
}

/** What stands in the place of the composer when nothing can be written. */
function Closing(p: { label: string; action: string; onAction: () => void }) {
  return (
    <footer class="closing">
      <span>{p.label}</span>
      <button class="button" type="button" onClick={p.onAction}>
        {p.action}
      </button>
    </footer>
  );
}
