import type { TokenReason } from '../core/connection';
import { sessionStore } from './browser';

/** Where tokens come from. */
export interface TokenSource {
  /** Whether they come from the link that the page was opened by; else from the page that holds it. */
  readonly link: boolean;
  /** null: there is none to be had now. */
  get(reason: TokenReason): Promise<string | null>;
  /** The last one given out; empty before. */
  current(): string;
}

const KEY = 'chatbox.dev.token';

/**
 * The token of a page that nobody embeds: in development mode the launcher prints links that carry one in the URL
 * fragment. It is taken out of the address bar at once, and kept for this tab so that a reload works. Outside
 * development mode nothing is ever taken from the URL or from storage.
 */
export function devTokens(): TokenSource {
  const token = developing() ? takeFragment() || recall() : '';
  return {
    link: token !== '',
    get: () => Promise.resolve(token || null),
    current: () => token,
  };
}

/** Whether the server said, in the page itself, that it runs in development mode. */
export function developing(): boolean {
  return document.querySelector('meta[name="chatbox-dev"]')?.getAttribute('content') === '1';
}

/** Whether the address carries a token, for a link that was opened in a tab that has the page already. */
export function hasFragment(): boolean {
  return developing() && new URLSearchParams(location.hash.slice(1)).has('token');
}

function takeFragment(): string {
  const token = new URLSearchParams(location.hash.slice(1)).get('token') ?? '';
  if (!token) return '';
  history.replaceState(history.state, '', location.pathname + location.search);
  try {
    sessionStore()?.setItem(KEY, token);
  } catch {
    // Then a reload will ask for the link again.
  }
  return token;
}

function recall(): string {
  try {
    return sessionStore()?.getItem(KEY) ?? '';
  } catch {
    return '';
  }
}
