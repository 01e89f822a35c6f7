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
        ) : !page.leaving.value && (page.state.value.ended || ended(page)) ? (
          <Ended page={page} />
        ) : (
          <Composer page={page} />
        )}
      </main>
    </div>
  );
}

/**
 * After the end of a conversation. One that somebody ended, in another tab say, is mostly followed by another there;
 * one that ran out of time is not. A new chat that would end another one asks first.
 */
function Ended({ page }: { page: Page }) {
  if (page.goingOn.value) {
    return (
      <Closing
        label={text.goingOn}
        action={text.continueCurrent}
        onAction={page.continueCurrent}
        other={text.endAndStart}
        onOther={() => void page.endAndStart()}
      />
    );
  }
  const begin = (): void => void page.newChat();
  if (page.state.value.ended?.reason === 'expired') return <Closing label={text.ended} action={text.newChat} onAction={begin} />;
  return (
    <Closing label={text.ended} action={text.continueCurrent} onAction={page.continueCurrent} other={text.newChat} onOther={begin} />
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
function Closing(p: { label: string; action: string; onAction: () => void; other?: string; onOther?: () => void }) {
  return (
    <footer class="closing">
      <span>{p.label}</span>
      <span class="closing-buttons">
        {p.other && (
          <button class="button" type="button" onClick={() => p.onOther?.()}>
            {p.other}
          </button>
        )}
        <button class={p.other ? 'button primary' : 'button'} type="button" onClick={p.onAction}>
          {p.action}
        </button>
      </span>
    </footer>
  );
}
