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
        <h1 dir="auto">{past ? past.name || text.title : title(page)}</h1>
        <p class="header-state">
          <span class="dot" data-state={past ? 'past' : page.status.value.kind} />
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

/** The session's name; until the server has one, what the user asked first, as the server will name it. */
function title(page: Page): string {
  const s = page.state.value;
  const first = s.items.find((m) => m.type === 'user_message' && m.sender === 'user')?.content ?? '';
  return s.name || first.split('\n', 1)[0]?.slice(0, 80) || text.newChat;
}

function line(page: Page): string {
  const s = page.state.value;
  const { kind } = page.status.value;
  if (kind === 'connecting' || kind === 'opening' || kind === 'waiting') {
    return s.sessionId ? text.reconnecting : text.connecting;
  }
  if (s.ended) return text.ended;
  if (s.owner === 'human') return text.assistedBy(s.assistedBy || text.support);
  if (s.owner === 'waiting') return text.waitingForHuman;
  const model = s.models.find((m) => m.id === s.modelId);
  return model ? text.aiModel(model.name) : text.ai;
}

function ModelPicker({ page }: { page: Page }) {
  const s = page.state.value;
  if (s.models.length < 2 || s.owner === 'human') return null;
  const chosen = [...s.outbox].reverse().find((e) => e.type === 'model_select' && e.state !== 'failed')?.modelId;
  return (
    <label class="picker">
      <span class="hidden">{text.model}</span>
      <select value={chosen ?? s.modelId} onChange={(e) => void page.selectModel(e.currentTarget.value)}>
        {s.models.map((m) => (
          <option key={m.id} value={m.id}>
            {m.name}
          </option>
        ))}
      </select>
      <Down />
    </label>
  );
}
