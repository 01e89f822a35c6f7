import { useEffect, useLayoutEffect, useRef } from 'preact/hooks';
import type { Page } from './page';
import { Square, Up } from './icons';
import { text } from './text';

/** The field grows with its text up to this height in pixels, then scrolls. */
const MAX_HEIGHT = 160;
/** What browsers report for a key that belongs to an input method (UI Events, 7.3.1). */
const IME_KEY = 229;

export function Composer({ page }: { page: Page }) {
  const field = useRef<HTMLTextAreaElement>(null);
  const draft = page.draft.value;
  const empty = draft.trim() === '';
  const stoppable = page.answering.value && page.state.value.live;

  const begun = page.begun.value;

  useEffect(() => field.current?.focus({ preventScroll: true }), [begun]);
  useLayoutEffect(() => {
    const f = field.current;
    if (!f) return;
    f.style.height = 'auto';
    f.style.height = `${Math.min(f.scrollHeight, MAX_HEIGHT)}px`;
  }, [draft]);

  const send = (): void => {
    if (page.send()) field.current?.focus({ preventScroll: true });
  };
  /** The button goes away with the answer; whoever pressed it by key goes on in the field. */
  const stop = (e: MouseEvent): void => {
    const here = document.activeElement === e.currentTarget;
    page.stopAnswer();
    if (here) field.current?.focus({ preventScroll: true });
  };
  const onKeyDown = (e: KeyboardEvent): void => {
    if (e.isComposing || e.keyCode === IME_KEY) return;
    if (e.key === 'Enter' && !e.shiftKey && !e.altKey) {
      e.preventDefault();
      send();
    } else if (e.key === 'Escape' && page.answering.value) {
      page.stopAnswer();
    }
  };

  return (
    <form
      class="composer"
      onSubmit={(e) => {
        e.preventDefault();
        send();
      }}
    >
      <div class="composer-field">
        <textarea
          ref={field}
          rows={1}
          dir="auto"
          aria-label={text.placeholder}
          placeholder={text.placeholder}
          enterkeyhint="send"
          value={draft}
          onInput={(e) => page.write(e.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {stoppable && (
          <button
            key="stop"
            class="send stop"
            type="button"
            aria-label={text.stop}
            title={text.stop}
            onMouseDown={(e) => e.preventDefault() /* the focus stays where it is */}
            onClick={stop}
          >
            <Square />
          </button>
        )}
        {(!stoppable || !empty) && (
          <button key="send" class="send" type="submit" aria-label={text.send} title={text.send} disabled={empty}>
            <Up />
          </button>
        )}
      </div>
    </form>
  );
}
