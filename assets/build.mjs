// Builds dist/: index.html, the page's script and style under names that carry their hash, and manifest.json.
// The same sources give the same bytes, so that the committed dist/ can be checked by building it again.

import { build } from 'esbuild';
import { createHash } from 'node:crypto';
import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';

const root = dirname(fileURLToPath(import.meta.url));
const dist = join(root, 'dist');

/** Largest first load of the page, gzip, in bytes: script 45 kB and style 8 kB. */
const FIRST_LOAD = 53_000;

const bundle = await build({
  absWorkingDir: root,
  entryPoints: { app: 'src/widget/main.tsx', style: 'src/styles/widget.css' },
  outdir: 'dist',
  write: false,
  bundle: true,
  minify: true,
  format: 'esm',
  target: ['es2020', 'safari15', 'chrome90'],
  jsx: 'automatic',
  jsxImportSource: 'preact',
  charset: 'utf8',
  legalComments: 'none',
  logLevel: 'warning',
});

function output(ext) {
  const file = bundle.outputFiles.find((f) => f.path.endsWith(ext));
  if (!file) throw new Error(`no ${ext} came out of the build`);
  const hash = createHash('sha256').update(file.contents).digest('hex').slice(0, 10);
  return { name: `app-${hash}${ext}`, bytes: Buffer.from(file.contents) };
}

const js = output('.js');
const css = output('.css');
const html = (await readFile(join(root, 'src/index.html'), 'utf8')).replace('{{js}}', js.name).replace('{{css}}', css.name);
const manifest = { 'index.html': 'index.html', 'app.js': js.name, 'app.css': css.name };

await mkdir(dist, { recursive: true });
for (const old of await readdir(dist)) await rm(join(dist, old), { recursive: true });
await writeFile(join(dist, js.name), js.bytes);
await writeFile(join(dist, css.name), css.bytes);
await writeFile(join(dist, 'index.html'), html);
await writeFile(join(dist, 'manifest.json'), `${JSON.stringify(manifest, null, 2)}\n`);

const size = [js.bytes, css.bytes, Buffer.from(html)].map((b) => gzipSync(b, { level: 9 }).length);
const total = size.reduce((a, b) => a + b, 0);
console.log(`dist: script ${size[0]} B, style ${size[1]} B, page ${size[2]} B, first load ${total} B (gzip)`);
if (total > FIRST_LOAD) {
  console.error(`first load is ${total} B, the budget is ${FIRST_LOAD} B`);
  process.exitCode = 1;
}
