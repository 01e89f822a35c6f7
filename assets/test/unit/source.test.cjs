const { readdirSync, readFileSync } = require('node:fs');
const { join } = require('node:path');

/** Ways to turn text into markup or code. The policy of the page forbids them too; this says so earlier. */
const forbidden = /innerHTML|outerHTML|dangerouslySetInnerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|srcdoc/;

function files(dir) {
  return readdirSync(dir, { withFileTypes: true }).flatMap((f) => {
    const path = join(dir, f.name);
    return f.isDirectory() ? files(path) : /\.tsx?$/.test(path) && !path.includes('.test.') ? [path] : [];
  });
}

const sources = files(join(__dirname, '../../src'));

// Promise 42: nothing stored can run in a browser.
test('no source turns text into markup or code', () => {
  expect(sources.length).toBeGreaterThan(20);
  expect(sources.filter((f) => forbidden.test(readFileSync(f, 'utf8')))).toEqual([]);
});

test('the core knows no page and no framework', () => {
  const core = sources.filter((f) => f.includes('/core/') && !f.endsWith('testing.ts'));
  expect(core.filter((f) => /\b(document|window|navigator|preact)\b/.test(code(readFileSync(f, 'utf8'))))).toEqual([]);
});

test('no source is longer than 500 lines', () => {
  expect(sources.filter((f) => readFileSync(f, 'utf8').split('\n').length > 500)).toEqual([]);
});

/** A source without its comments. */
function code(text) {
  return text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/\/\/.*/g, '');
}
