import fc from 'fast-check';
import { backoff } from './backoff';

const caps = [1, 2, 4, 8, 16, 30].map((s) => s * 1_000);

test('a wait is at least half its cap and never more than it, and the cap ends at 30 s', () => {
  fc.assert(
    fc.property(fc.integer({ min: -3, max: 1_000_000 }), fc.double({ min: 0, max: 0.9999999, noNaN: true }), (attempt, r) => {
      const cap = caps[Math.min(Math.max(attempt, 0), 5)] ?? 0;
      const wait = backoff(attempt, () => r);
      expect(wait).toBeGreaterThanOrEqual(cap / 2);
      expect(wait).toBeLessThanOrEqual(cap);
    }),
  );
});

test('chance spreads the clients of a dead server over half of the wait', () => {
  expect(backoff(5, () => 0)).toBe(15_000);
  expect(backoff(5, () => 0.5)).toBe(22_500);
});
