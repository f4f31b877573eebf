// Shows what the run is now, about once a second, until it has ended.
'use strict';
const main = document.querySelector('main');
const note = document.getElementById('live');
let seen = main.dataset.version;
let failed = 0;

const all = (selector) => [...main.querySelectorAll(selector)];

// New content; what was opened, scrolled or focused stays so.
function show(html) {
  const focusable = 'summary, [tabindex]';
  const opened = all('details').map((element) => element.open);
  const scrolled = all('.wide, pre').map((element) => element.scrollLeft);
  const focused = all(focusable).indexOf(document.activeElement);
  main.innerHTML = html;
  all('details').forEach((element, i) => { element.open = opened[i] ?? false; });
  all('.wide, pre').forEach((element, i) => { element.scrollLeft = scrolled[i] ?? 0; });
  all(focusable)[focused]?.focus({ preventScroll: true });
}

async function look() {
  try {
    const answer = await fetch('content?seen=' + encodeURIComponent(seen), { cache: 'no-store' });
    if (!answer.ok) throw new Error(answer.statusText);
    if (answer.status === 200) {
      show(await answer.text());
      seen = answer.headers.get('X-Version');
    }
    failed = 0;
    note.textContent = 'Live: as of ' + new Date().toLocaleTimeString();
    if (answer.headers.get('X-Ended')) {
      note.textContent = 'The run has ended.';
      return;
    }
  } catch {
    failed += 1;
    if (failed === 3) {
      note.textContent = 'The run does not answer any more: its process has ended. Its report is in its folder.';
      note.classList.add('lost');
      return;
    }
  }
  setTimeout(look, 1000);
}
setTimeout(look, 500);
