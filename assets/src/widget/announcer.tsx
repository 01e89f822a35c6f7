import { useEffect, useRef, useState } from 'preact/hooks';
import type { Page } from './page';
import { text } from './text';

/** Longest answer that is read out in one go, in characters; the rest is in the transcript. */
const MAX_SPOKEN = 1_000;

/**
 * Tells people who do not see the page what has happened. The transcript itself is silent, because an answer that
 * grows word by word would be read word by word.
 */
export function Announcer({ page }: { page: Page }) {
  const [words, say] = useState('');
  const { items, answers, live } = page.state.value;
  const last = items[items.length - 1];
  const seen = useRef(last?.seq ?? 0);
  const answering = answers.length > 0;

  useEffect(() => {
    if (answering) say(text.answering);
  }, [answering]);
  useEffect(() => {
    if (!last || last.seq <= seen.current) return;
    const caughtUp = live && seen.current > 0;
    seen.current = last.seq;
    if (!caughtUp) return;
    if (last.type === 'ai_response') say(`${text.answered}. ${last.content.slice(0, MAX_SPOKEN)}`);
    else if (last.type === 'admin_join') say(text.joined(last.metadata['name'] ?? ''));
    else if (last.type === 'admin_leave') say(text.left(last.metadata['name'] ?? ''));
    else if (last.sender === 'admin') say(`${text.support}: ${last.content.slice(0, MAX_SPOKEN)}`);
    else if (last.sender === 'user') say(text.sent);
  }, [last, live]);

  return (
    <p class="hidden" role="status">
      {words}
    </p>
  );
}
