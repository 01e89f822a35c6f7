import { render } from 'preact';
import { App } from './app';
import { devTokens, hasFragment } from './host';
import { createPage } from './page';

const base = new URL('.', location.href);
const page = createPage(base, devTokens());

window.addEventListener('online', () => {
  page.online.value = true;
  page.nudge();
});
window.addEventListener('offline', () => {
  page.online.value = false;
  page.doubt(); // asks the socket whether it lives instead of believing the browser
});
window.addEventListener('pageshow', () => page.nudge());
page.wide.addEventListener('change', page.fitList);
document.addEventListener('visibilitychange', () => {
  if (document.visibilityState === 'visible') page.nudge();
});
window.addEventListener('hashchange', () => {
  if (hasFragment()) location.reload();
});

// Safari does not shrink the layout for the on-screen keyboard: the height follows what can be seen.
const view = window.visualViewport;
const fit = (): void => {
  if (view) document.documentElement.style.setProperty('--cb-vh', `${view.height}px`);
};
view?.addEventListener('resize', fit);
fit();

const root = document.getElementById('app');
if (root) render(<App page={page} />, root);
void page.start();
