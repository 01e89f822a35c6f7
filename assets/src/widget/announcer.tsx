import { useEffect, useRef, useState } from 'preact/hooks';
import type { DurableFrame } from '../core/protocol';
import type { Page } from './page';
import { failureWords, untilOf } from './answer';
import { text } from './text';

/** Longest answer that is read out in one go, in characters; the rest is in the transcript. */
const MAX_SPOKEN = 1_000;

/**
 * Tells people who do not see the page what has happened. The transcript itself is silent, because an answer that
 * grows word by word would be read word by word. What was there when the page opened is not news, and neither is
 * anything of a conversation that was left.
 */
export function Announcer({ page }: { page: Page }) {
  const [words, say] = useState('');
  const { items, answers, live, sessionId } = page.state.value;
  const last = items[items.length - 1];
  const m = useRef({ session: '', seen: 0 }).current;
  const answering = answers.length > 0;

  useEffect(() => say(''), [sessionId]);
  useEffect(() => {
    if (answering) say(text.answering);
  }, [answering]);
  const trying = page.trying.value;
  useEffect(() => {
    if (trying) say(trying);
  }, [trying]);
  useEffect(() => {
    if (!live) return;
    const seq = last?.seq ?? 0;
    const news = m.session === sessionId && seq > m.seen;
    m.session = sessionId;
    m.seen = seq;
    if (!news || !last) return;
    const spoken = announcement(last);
    if (spoken) say(spoken);
  }, [last, live, sessionId]);

  return (
    <p class="hidden" role="status">
      {words}
    </p>
  );
}

/** What is said about an event that has just happened; empty: nothing. */
export function announcement(event: DurableFrame): string {
  const name = event.metadata['name'] ?? '';
  const content = event.content.slice(0, MAX_SPOKEN);
  switch (event.type) {
    case 'ai_response': {
      const { stopped, interrupted, failed } = event.metadata;
      if (failed) return content ? text.brokenOff : failureWords(failed, untilOf(event));
      if (stopped) return text.stopped;
      if (interrupted) return text.interrupted;
      return `${text.answered}. ${content}`;
    }
    case 'admin_join':
      return text.joined(name);
    case 'admin_leave':
      return text.left(name);
    case 'session_ended':
      return text.ended;
    default:
      if (event.sender === 'admin') return `${text.support}: ${content}`;
      return event.sender === 'user' ? text.sent : '';
  }
}
