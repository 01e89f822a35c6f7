/** Times as people say them, in the language of the page. Unreadable times give an empty string. */

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: 'numeric', minute: '2-digit' });
const dayFormat = new Intl.DateTimeFormat(undefined, { weekday: 'long', day: 'numeric', month: 'long' });
const relative = new Intl.RelativeTimeFormat(undefined, { numeric: 'auto', style: 'short' });

export function time(timestamp: string): string {
  const t = Date.parse(timestamp);
  return Number.isNaN(t) ? '' : clockFormat.format(t);
}

export function day(timestamp: string): string {
  const t = Date.parse(timestamp);
  return Number.isNaN(t) ? '' : dayFormat.format(t);
}

export function ago(timestamp: string): string {
  const t = Date.parse(timestamp);
  if (Number.isNaN(t)) return '';
  const minutes = Math.round((t - Date.now()) / 60_000);
  if (minutes > -60) return relative.format(Math.min(0, minutes), 'minute');
  if (minutes > -60 * 24) return relative.format(Math.round(minutes / 60), 'hour');
  return relative.format(Math.round(minutes / 60 / 24), 'day');
}
