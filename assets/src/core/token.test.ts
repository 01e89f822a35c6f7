import fc from 'fast-check';
import { subject } from './token';

const jwt = (claims: unknown): string => {
  const bytes = new TextEncoder().encode(JSON.stringify(claims));
  const base64 = btoa(String.fromCharCode(...bytes));
  return `x.${base64.replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '')}.y`;
};

test('the subject comes out as it went in', () => {
  fc.assert(fc.property(fc.string({ unit: 'grapheme', minLength: 1 }), (sub) => expect(subject(jwt({ sub }))).toBe(sub)));
  expect(subject(jwt({ user_id: 'u7' }))).toBe('u7');
});

test('what is no token has no subject', () => {
  fc.assert(fc.property(fc.string(), (s) => expect(typeof subject(s)).toBe('string')));
  for (const bad of ['', 'a.b', 'a.%%%.c', jwt(null), jwt([]), jwt({ sub: 7 }), jwt('x')]) expect(subject(bad)).toBe('');
});
