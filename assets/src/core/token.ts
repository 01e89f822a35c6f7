/**
 * Reads the user id that a JWT names, to find that user's unsent messages before the server has spoken. It proves
 * nothing: the server checks the token. Empty when there is none to be read.
 */
export function subject(jwt: string): string {
  const part = jwt.split('.')[1];
  if (!part) return '';
  try {
    const bytes = atob(part.replace(/-/g, '+').replace(/_/g, '/'));
    const text = decodeURIComponent([...bytes].map((c) => `%${c.charCodeAt(0).toString(16).padStart(2, '0')}`).join(''));
    const claims: unknown = JSON.parse(text);
    if (typeof claims !== 'object' || claims === null) return '';
    const { sub, user_id: userId }: { sub?: unknown; user_id?: unknown } = claims;
    if (typeof sub === 'string' && sub) return sub;
    return typeof userId === 'string' ? userId : '';
  } catch {
    return '';
  }
}
