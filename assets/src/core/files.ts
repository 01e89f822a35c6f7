/** Files that a model has made, as the metadata of its answer tells of them. Whatever is not well-formed is left out. */

import type { Metadata } from './protocol';

/** A file that stays where it is. Nobody has checked what is there. */
export interface Link {
  /** The file's name, else the host's. */
  readonly name: string;
  readonly host: string;
  readonly url: string;
}

export interface Files {
  /** Ids of files that the server has. */
  readonly ids: readonly string[];
  readonly links: readonly Link[];
  /** Names of those that could not be kept; empty strings where a name is not known. */
  readonly lost: readonly string[];
}

export function filesOf(m: Metadata): Files {
  return {
    ids: (m['file_ids'] ?? '').split(' ').filter(Boolean),
    links: linksOf(m['links'] ?? ''),
    lost: (m['files_lost'] ?? '').split('\n').filter(Boolean).map((line) => /^\[file ?(.*)\]$/.exec(line)?.[1] ?? ''),
  };
}

function linksOf(json: string): Link[] {
  try {
    const list: unknown = json ? JSON.parse(json) : [];
    return Array.isArray(list) ? list.flatMap(linkOf) : [];
  } catch {
    return [];
  }
}

function linkOf(value: unknown): Link[] {
  if (typeof value !== 'object' || value === null) return [];
  const o: { name?: unknown; url?: unknown } = value;
  const url = typeof o.url === 'string' ? parse(o.url) : null;
  if (url?.protocol !== 'https:' || url.username || url.password) return [];
  return [{ name: (typeof o.name === 'string' && o.name.trim()) || url.host, host: url.host, url: url.href }];
}

function parse(address: string): URL | null {
  try {
    return new URL(address);
  } catch {
    return null;
  }
}
