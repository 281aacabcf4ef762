// Puts the page together: filters, keys, theme, and the connection named in the address (#c12).
const data = readData();
const table = createTable(data, (id) => { location.hash = 'c' + id; });
const detail = createDetail(data, table);
const search = byId('search');
const choice = byId('by-finding');
const help = byId('help');

// `12`, or `12 of 4,000` where the others are not in this page.
const part = (shown, all) => (data.hidden && all > shown ? `${thousands(shown)} of ${thousands(all)}` : thousands(shown));

function chooseGroup(button) {
  const on = button.getAttribute('aria-pressed') !== 'true';
  for (const other of document.querySelectorAll('[data-group]')) other.setAttribute('aria-pressed', other === button && on);
  table.filterGroup(on ? Number(button.dataset.group) : -1);
  if (on) byId('one-by-one').scrollIntoView();
}

function fillFilters() {
  const counts = new Map();
  for (let row = 0; row < data.count; row++) {
    const state = data.said('state', row);
    counts.set(state, (counts.get(state) || 0) + 1);
  }
  const chips = [...counts].sort((a, b) => b[1] - a[1]).map(([state, count]) => element(
    'button', { type: 'button', class: 'chip', 'aria-pressed': false, 'data-state': state }, `${state} ${part(count, data.states[state])}`));
  byId('states').replaceChildren(...chips);
  byId('states').addEventListener('click', (event) => {
    const chip = event.target.closest('.chip');
    if (!chip) return;
    const on = chip.getAttribute('aria-pressed') !== 'true';
    for (const other of chips) other.setAttribute('aria-pressed', other === chip && on);
    table.filterState(on ? chip.dataset.state : '');
  });
  const marked = new Array(data.rules.length).fill(0);
  for (const indexes of data.findings) for (const index of indexes) marked[index]++;
  choice.append(element('option', { value: '' }, data.hidden ? `All ${thousands(data.count)} shown` : 'All connections'));
  if (data.rules.length) choice.append(element('option', { value: 'any' }, 'With any finding'));
  data.rules.forEach((rule, index) => choice.append(element('option', { value: index }, `${rule} (${part(marked[index], data.marked[index])})`)));
  choice.addEventListener('change', () => table.filterFinding(choice.value));
}

function openFromAddress() {
  const match = /^#c(\d+)$/.exec(location.hash);
  if (!match) {
    if (detail.isOpen()) detail.close();
    return;
  }
  const id = Number(match[1]);
  table.select(id);
  detail.show(id);
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  // Some browsers keep no storage for files.
  try { localStorage.setItem('sockscope-theme', name); } catch { return; }
}

function toggleTheme() {
  const now = document.documentElement.dataset.theme || (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light');
  setTheme(now === 'dark' ? 'light' : 'dark');
}

function storedTheme() {
  try { return localStorage.getItem('sockscope-theme'); } catch { return null; }
}

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches('input, select');
  if (event.target === search && event.key === 'Escape') {
    search.value = '';
    table.search('');
    byId('grid').focus();
    return;
  }
  if (event.target === search && (event.key === 'ArrowDown' || event.key === 'Enter')) {
    event.preventDefault();
    byId('grid').focus();
    table.step(1);
    return;
  }
  if (typing) return;
  if (event.key === '?') {
    event.preventDefault();
    if (help.open) help.close(); else help.showModal();
  } else if (event.key === 't') toggleTheme();
  if (help.open || detail.isOpen()) return;
  if (event.key === '/') {
    event.preventDefault();
    search.focus();
    search.select();
  } else if (event.key === 'j' || event.key === 'k' || (event.target === byId('grid') && /^Arrow(Down|Up)$/.test(event.key))) {
    event.preventDefault();
    byId('grid').focus({ preventScroll: event.target === byId('grid') });
    table.step(event.key === 'j' || event.key === 'ArrowDown' ? 1 : -1);
  } else if (event.key === 'Enter' && event.target === document.body) table.openActive();
});

document.addEventListener('click', (event) => {
  const chip = event.target.closest('[data-connection], [data-finding], [data-group]');
  if (!chip) return;
  if (chip.dataset.group) chooseGroup(chip);
  else if (chip.dataset.connection) location.hash = 'c' + chip.dataset.connection;
  else {
    choice.value = chip.dataset.finding;
    table.filterFinding(choice.value);
    byId(data.hidden ? 'one-by-one' : 'connections').scrollIntoView();
  }
});

search.addEventListener('input', () => table.search(search.value));
byId('theme').addEventListener('click', toggleTheme);
byId('help-button').addEventListener('click', () => help.showModal());
addEventListener('hashchange', openFromAddress);
const kept = storedTheme();
if (kept === 'dark' || kept === 'light') document.documentElement.dataset.theme = kept;
fillFilters();
table.apply();
openFromAddress();
document.documentElement.dataset.ready = 'yes';
