import type { ComponentChildren } from 'preact';
import { useState } from 'preact/hooks';
import type { Again, Offers, Said } from '../core/answers';
import { filesOf } from '../core/files';
import type { DurableFrame, Metadata } from '../core/protocol';
import type { Answer } from '../core/state';
import { useRemaining } from './countdown';
import { Document, Redo, Spark } from './icons';
import type { Page } from './page';
import { useStill } from './still';
import { text } from './text';
import { time } from './time';

/** An answer that begins, in a place of its own. */
export function Running({ answer, page }: { answer: Answer; page: Page }) {
  const still = useStill(progressOf(answer), page.connected.value);
  return <Ai content={answer.text} running word={page.trying.value || still} />;
}

/** What the assistant has said in one place, and what can be asked for about it. */
export function Final({ said, again, page }: { said: Said; again: Again | null; page: Page }) {
  if (again) return <Anew said={said} again={again} page={page} />;
  const { metadata } = said.last;
  const by = [...said.parts].reverse().find((p) => p.metadata['answered_by'])?.metadata['answered_by'] ?? '';
  const offers = page.past.value ? null : page.offersFor(said);
  const word = metadata['failed'] ? '' : mark(metadata);
  return (
    <Ai content={said.text} stamp={said.last.timestamp} earlier={said.earlier}>
      <Files parts={said.parts} />
      {metadata['paused'] && <Paused metadata={metadata} offers={offers} page={page} />}
      {metadata['failed'] && <Failure key={said.last.messageId} said={said} offers={offers} page={page} />}
      {(word || by || offers?.regenerate) && (
        <p class="foot">
          {offers?.regenerate && (
            <Ask label={text.regenerate} icon onAsk={() => page.ask('regenerate', offers.regenerate)}>
              <Redo />
            </Ask>
          )}
          {word && <span>{word}</span>}
          {word && offers?.goOn && <Ask label={text.goOn} onAsk={() => page.ask('continue', offers.goOn)} />}
          {by && <span>{text.answeredBy(by)}</span>}
        </p>
      )}
    </Ai>
  );
}

/** The same while another answer is on its way into its place. */
function Anew({ said, again, page }: { said: Said; again: Again; page: Page }) {
  const { entry, answer, how } = again;
  const still = useStill(answer ? progressOf(answer) : '', page.connected.value && entry === null);
  const before = how === 'continue' ? said.text : '';
  const earlier = how === 'continue' || !said.text ? said.earlier : [...said.earlier, said.text];
  if (entry?.state === 'failed') {
    return (
      <Ai content={said.text} stamp={said.last.timestamp} earlier={said.earlier}>
        <p class="card danger" role="alert">
          {`${text.notSent}. ${failureWords(entry.reason, entry.until)}`}
          <span class="asks">
            <Ask label={text.retry} onAsk={() => page.resend(entry.id)} />
            <Ask label={text.discard} onAsk={() => page.discard(entry.id)} />
          </span>
        </p>
      </Ai>
    );
  }
  const waiting = entry && !page.connected.value ? text.queued : '';
  return (
    <Ai content={before + (answer?.text ?? '')} earlier={earlier} running={answer?.text ? true : 'silent'} word={waiting || page.trying.value || still} />
  );
}

function progressOf(a: Answer): string {
  return `${a.attempt} ${a.chunk} ${a.text.length}`;
}

function mark({ stopped, interrupted, length }: Metadata): string {
  if (stopped) return text.stopped;
  if (interrupted) return text.interrupted;
  return length ? text.cut : '';
}

/** One sentence about an answer that failed, and what can be done about it while it is the last thing that happened. */
function Failure({ said, offers, page }: { said: Said; offers: Offers | null; page: Page }) {
  const { metadata, content } = said.last;
  const [until] = useState(() => untilOf(said.last));
  const seconds = useRemaining(until);
  const budget = metadata['failed'] === 'BUDGET_EXCEEDED';
  return (
    <div class="card danger">
      <span>{content && said.parts.includes(said.last) ? text.brokenOff : failureWords(metadata['failed'] ?? '', until)}</span>
      {offers && (
        <span class="asks">
          {offers.goOn && seconds === 0 && <Ask label={text.goOn} onAsk={() => page.ask('continue', offers.goOn)} />}
          {offers.retry && !(budget && seconds > 0) && (
            <Ask label={seconds > 0 ? text.retryIn(seconds) : text.retry} disabled={seconds > 0} onAsk={() => page.ask('retry', offers.retry)} />
          )}
          {metadata['help'] === 'offered' && <Help page={page} />}
        </span>
      )}
    </div>
  );
}

/** An answer that waits for a person, who can be asked for while it is the last thing that happened. */
function Paused({ metadata, offers, page }: { metadata: Metadata; offers: Offers | null; page: Page }) {
  return (
    <div class="card">
      <span>{text.paused}</span>
      {offers && metadata['help'] === 'offered' && (
        <span class="asks">
          <Help page={page} />
        </span>
      )}
    </div>
  );
}

/** A person in place of a model that cannot be had, or for one that waits for a person. */
function Help({ page }: { page: Page }) {
  switch (page.help.value) {
    case 'possible':
      return <Ask label={text.askPerson} onAsk={page.askPerson} />;
    case 'asked':
      return <span class="quiet">{text.askingPerson}</span>;
    case 'refused':
      return <span class="quiet">{text.noPerson}</span>;
    case 'none':
      return null;
  }
}

/** Why something failed, in a sentence. `until`: when another try may work, milliseconds since 1970; 0: not known. */
export function failureWords(code: string, until: number): string {
  if (code !== 'BUDGET_EXCEEDED' || until === 0) return text.reasons[code] ?? text.failed;
  return until > Date.now() ? text.budgetUntil(time(new Date(until).toISOString())) : text.budgetOver;
}

/**
 * When another try may work, milliseconds since 1970; 0: not known. No longer from now than the server said, whatever
 * the clocks of the two say.
 */
export function untilOf(answer: DurableFrame): number {
  const wait = Number(answer.metadata['retry_after'] ?? 0);
  const at = Date.parse(answer.timestamp);
  return wait > 0 ? Math.min(Number.isNaN(at) ? Infinity : at + wait, Date.now() + wait) : 0;
}

interface AskProps {
  label: string;
  /** The label is not shown: the children are. */
  icon?: boolean;
  disabled?: boolean;
  onAsk: () => void;
  children?: ComponentChildren;
}

/** A button that goes away when it is pressed; whoever pressed it by key goes on in the transcript. */
function Ask({ label, icon = false, disabled = false, onAsk, children }: AskProps) {
  const press = (e: MouseEvent & { readonly currentTarget: HTMLElement }): void => {
    const here = document.activeElement === e.currentTarget;
    const list = e.currentTarget.closest<HTMLElement>('.messages');
    onAsk();
    if (here) list?.focus({ preventScroll: true });
  };
  return (
    <button class={icon ? 'small-round' : 'link'} type="button" disabled={disabled} aria-label={icon ? label : undefined} title={icon ? label : undefined} onClick={press}>
      {icon ? children : label}
    </button>
  );
}

function Files({ parts }: { parts: readonly DurableFrame[] }) {
  const files = parts.map((p) => filesOf(p.metadata));
  const links = files.flatMap((f) => f.links);
  const ids = files.flatMap((f) => f.ids);
  const lost = files.flatMap((f) => f.lost);
  return (
    <>
      {links.length + ids.length > 0 && (
        <ul class="files">
          {links.map((l, i) => (
            <li key={i}>
              <Document />
              <a href={l.url} target="_blank" rel="noopener noreferrer nofollow" dir="auto">
                {l.name}
              </a>
              {l.name !== l.host && <span class="host">{l.host}</span>}
            </li>
          ))}
          {ids.map((id) => (
            <li key={id}>
              <Document />
              {text.file}
            </li>
          ))}
        </ul>
      )}
      {lost.length > 0 && <p class="mark">{text.filesLost(lost)}</p>}
    </>
  );
}

interface AiProps {
  content: string;
  stamp?: string;
  /** `silent`: it has not begun to speak, so there are dots below what stands there. */
  running?: boolean | 'silent';
  /** Said below the text, or beside the dots while there are some. */
  word?: string;
  /** Texts that stood here before. */
  earlier?: readonly string[];
  children?: ComponentChildren;
}

function Ai({ content, stamp = '', running = false, word = '', earlier = [], children }: AiProps) {
  const dots = running === 'silent' || (running && content === '');
  return (
    <div class="row ai" aria-busy={running !== false}>
      <span class="avatar" aria-hidden="true">
        <Spark />
      </span>
      <div class="body" title={time(stamp)}>
        <span class="hidden">{`${text.ai}: `}</span>
        {earlier.length > 0 && <Earlier texts={earlier} />}
        {content !== '' && (
          <div class="text" dir="auto" data-running={running === true}>
            {content}
          </div>
        )}
        {dots && (
          <p class="waiting">
            <span class="dots" role="img" aria-label={text.thinking}>
              <i />
              <i />
              <i />
            </span>
            {word && <span class="word">{word}</span>}
          </p>
        )}
        {!dots && word && <p class="mark">{word}</p>}
        {children}
      </div>
    </div>
  );
}

function Earlier({ texts }: { texts: readonly string[] }) {
  return (
    <details class="earlier">
      <summary>{text.earlier(texts.length)}</summary>
      {texts.map((t, i) => (
        <div key={i} class="text" dir="auto">
          {t}
        </div>
      ))}
    </details>
  );
}
