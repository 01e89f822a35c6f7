import type { Page } from './page';
import { Bubble } from './icons';
import { text } from './text';

/** A whole panel that says why there is no chat, with at most one button. */
export function Notice({ page }: { page: Page }) {
  if (page.waitingForHost.value) return <Panel title={text.waitingForHost} hint={text.waitingForHostHint} busy />;
  const s = page.status.value;
  if (s.kind !== 'stopped') return null;
  switch (s.why) {
    case 'unauthorized':
      return <SignedOut page={page} />;
    case 'forbidden':
      return <Panel title={text.forbidden} hint={text.forbiddenHint} />;
    case 'too_many':
      return <Panel title={text.tooManyOpen} hint={text.tooManyOpenHint} action={text.tryAgain} onAction={page.reconnect} />;
    case 'ended':
      return null;
    default:
      return <Panel title={text.broken} hint={text.brokenHint} action={text.reload} onAction={() => location.reload()} />;
  }
}

/** Only who has been in can have been signed out. */
function SignedOut({ page }: { page: Page }) {
  if (page.state.value.user.id !== '') {
    return <Panel title={text.expired} hint={text.expiredHint} action={text.tryAgain} onAction={page.reconnect} />;
  }
  if (page.byLink) return <Panel title={text.linkInvalid} hint={text.linkInvalidHint} />;
  return <Panel title={text.notSignedIn} hint={text.notSignedInHint} action={text.tryAgain} onAction={page.reconnect} />;
}

interface PanelProps {
  title: string;
  hint: string;
  busy?: boolean;
  action?: string;
  onAction?: () => void;
}

function Panel(p: PanelProps) {
  return (
    <section class="notice" role="status" aria-busy={p.busy ?? false}>
      <span class="notice-mark">
        <Bubble />
      </span>
      <h1>{p.title}</h1>
      <p>{p.hint}</p>
      {p.action && (
        <button class="button primary" type="button" onClick={() => p.onAction?.()}>
          {p.action}
        </button>
      )}
    </section>
  );
}
