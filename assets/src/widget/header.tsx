import { nameOf } from '../core/transcript';
import type { Entry } from '../core/outbox';
import type { Model } from '../core/protocol';
import type { Page } from './page';
import { Back, Down, Menu, Plus } from './icons';
import { text } from './text';

export function Header({ page }: { page: Page }) {
  const listOpen = page.listOpen.value;
  const past = page.past.value;
  return (
    <header class="header">
      {past ? (
        <button class="round" type="button" aria-label={text.backToChat} title={text.backToChat} onClick={page.closePast}>
          <Back />
        </button>
      ) : (
        <button
          class="round"
          type="button"
          aria-expanded={listOpen}
          aria-label={listOpen ? text.hideSessions : text.showSessions}
          title={listOpen ? text.hideSessions : text.showSessions}
          onClick={page.toggleList}
        >
          <Menu />
        </button>
      )}
      <div class="header-words">
        <h1 dir="auto">{past ? past.name || text.title : nameOf(page.state.value) || text.newChat}</h1>
        <p class="header-state">
          <span class="dot" data-state={past ? 'past' : dot(page)} />
          {past ? text.readOnly : line(page)}
        </p>
      </div>
      {!past && <ModelPicker page={page} />}
      {!past && (
        <button class="round new" type="button" aria-label={text.newChat} title={text.newChat} onClick={() => void page.newChat()}>
          <Plus />
        </button>
      )}
    </header>
  );
}

function dot(page: Page): string {
  const { kind } = page.status.value;
  return kind === 'live' && !page.connected.value ? 'doubted' : kind;
}

function line(page: Page): string {
  const s = page.state.value;
  const { kind } = page.status.value;
  if (kind === 'connecting' || kind === 'opening' || kind === 'waiting') {
    if (!page.online.value) return text.disconnected;
    return s.sessionId ? text.reconnecting : text.connecting;
  }
  if (kind === 'live' && !page.connected.value) return page.online.value ? text.checking : text.disconnected;
  if (s.ended) return text.ended;
  if (s.owner === 'human') return text.assistedBy(s.assistedBy || text.support);
  if (s.owner === 'waiting') return text.waitingForHuman;
  const model = s.models.find((m) => m.id === s.modelId);
  return model ? text.aiModel(model.name) : text.ai;
}

function ModelPicker({ page }: { page: Page }) {
  const s = page.state.value;
  if (s.models.length < 2 || s.owner === 'human' || s.ended) return null;
  // What the server has taken is in s; what an earlier session was to be asked with says nothing about this one.
  const mine = (e: Entry): boolean => (e.state === 'queued' || e.state === 'sent') && (!e.sessionId || e.sessionId === s.sessionId);
  const chosen = [...s.outbox].reverse().find((e) => e.type === 'model_select' && mine(e))?.modelId;
  const now = s.models.find((m) => m.id === (chosen ?? s.modelId));
  return (
    <label class="picker" title={now && reads(now)}>
      <span class="hidden">{text.model}</span>
      <select value={chosen ?? s.modelId} onChange={(e) => void page.selectModel(e.currentTarget.value)}>
        {s.models.map((m) => (
          <option key={m.id} value={m.id} title={reads(m)}>
            {m.name}
          </option>
        ))}
      </select>
      <Down />
    </label>
  );
}

/** What a model can read beside text, in a few words. */
export function reads(m: Model): string {
  return text.reads([...(m.vision ? [text.images] : []), ...(m.audio ? [text.recordings] : []), ...m.files.map((f) => f.replace(/^\./, ''))]);
}
