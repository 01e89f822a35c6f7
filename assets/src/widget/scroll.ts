import { useLayoutEffect, useRef, useState } from 'preact/hooks';
import type { Row } from '../core/transcript';

/** Within this distance of the end, in pixels, the reader counts as being there. */
const NEAR = 48;

/**
 * Keeps a list at its end while the reader is there, and lets them read in peace when they are not.
 *
 * Leaving is the reader's own scrolling up, not the text growing away below. Sending a message returns to the end.
 * `keep` is called before older rows are put in front, and what was in view stays there.
 */
export function useFollow(rows: readonly Row[]) {
  const ref = useRef<HTMLDivElement>(null);
  const m = useRef({ following: true, top: 0, height: 0, anchor: 0, count: 0, mine: '' }).current;
  const [away, setAway] = useState(false);
  const [unseen, setUnseen] = useState(0);

  const toLatest = (): void => {
    m.following = true;
    setAway(false);
    setUnseen(0);
    if (ref.current) ref.current.scrollTop = ref.current.scrollHeight;
  };

  const onScroll = (): void => {
    const el = ref.current;
    if (!el) return;
    const near = el.scrollHeight - el.scrollTop - el.clientHeight < NEAR;
    if (near) {
      m.following = true;
      setUnseen(0);
    } else if (el.scrollTop < m.top && el.scrollHeight === m.height) {
      m.following = false;
    }
    m.top = el.scrollTop;
    m.height = el.scrollHeight;
    setAway(!m.following);
  };

  const keep = (): void => {
    const el = ref.current;
    m.anchor = el ? el.scrollHeight - el.scrollTop : 0;
  };

  // The strip above, the composer below, the keyboard and what is in no row change the heights too.
  useLayoutEffect(() => {
    const el = ref.current;
    if (!el) return;
    const observer = new ResizeObserver(() => {
      if (m.following) el.scrollTop = el.scrollHeight;
    });
    observer.observe(el);
    if (el.lastElementChild) observer.observe(el.lastElementChild);
    return () => observer.disconnect();
  }, []);

  const lastOwn = [...rows].reverse().find((r) => r.kind === 'own')?.key ?? '';
  const tail = rows[rows.length - 1];
  const running = tail?.kind === 'answer' ? tail.answer : tail?.kind === 'said' ? tail.again?.answer : null;
  const grown = running?.text.length ?? 0;
  const head = rows[0]?.key;

  useLayoutEffect(() => {
    const el = ref.current;
    if (!el || m.anchor === 0) return;
    el.scrollTop = el.scrollHeight - m.anchor;
    m.anchor = 0;
    m.count = rows.length;
  }, [head]);

  useLayoutEffect(() => {
    const el = ref.current;
    if (!el) return;
    if (lastOwn !== '' && lastOwn !== m.mine) m.following = true;
    m.mine = lastOwn;
    if (m.following) toLatest();
    else if (rows.length > m.count) setUnseen((n) => n + rows.length - m.count);
    m.count = rows.length;
  }, [rows.length, grown, lastOwn, tail?.key, tail?.kind]);

  return { ref, onScroll, away, unseen, toLatest, keep };
}
