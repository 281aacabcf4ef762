// The connection table: sorted, filtered and searched by row numbers; only what is in view is in the DOM.
const ROW_PX = 30;
const SPARE_ROWS = 8;
const PRINT_ROWS = 500;

const TABLE_COLUMNS = [
  { key: 'id', title: '#', number: true },
  { key: 'local', title: 'local', text: true },
  { key: 'peer', title: 'peer', text: true },
  { key: 'state', title: 'state', text: true },
  { key: 'held', title: 'held by', text: true },
  { key: 'read', title: 'read', number: true, show: bytesText },
  { key: 'written', title: 'written', number: true, show: bytesText },
  { key: 'events', title: 'calls', number: true, show: thousands },
  { key: 'packets', title: 'packets', number: true, show: thousands },
  { key: 'first', title: 'first', number: true, show: (ns) => timeText(ns, 3) },
  { key: 'lasted', title: 'lasted', number: true, show: durationText },
  { key: 'summary', title: 'finding, or what it did', text: true },
];

function createTable(data, onOpen) {
  const grid = byId('grid');
  const head = byId('grid-head');
  const body = byId('grid-body');
  const compare = new Intl.Collator('en', { numeric: true }).compare;
  let rows = [];
  let active = -1;
  let sorted = { key: '', down: false };
  let needles = [];
  let state = '';
  let finding = '';
  let group = -1;
  let printing = false;
  let haystacks = null;

  const rulesOf = (row) => data.findings[row].map((index) => data.rules[index]).join(' ');

  function value(column, row) {
    if (column.key === 'lasted') return data.columns.last[row] - data.columns.first[row];
    if (column.key === 'summary') return rulesOf(row) + data.said('summary', row);
    return column.text ? data.said(column.key, row) : data.columns[column.key][row];
  }

  function haystack(row) {
    haystacks ||= new Array(data.count);
    haystacks[row] ||= [
      '#' + data.columns.id[row], rulesOf(row), ...['local', 'peer', 'state', 'held', 'processes', 'summary', 'wire', 'protocol', 'role']
        .map((key) => data.said(key, row)),
    ].join(' ').toLowerCase();
    return haystacks[row];
  }

  function wanted(row) {
    if (state && data.said('state', row) !== state) return false;
    if (finding === 'any' && !data.findings[row].length) return false;
    if (finding !== '' && finding !== 'any' && !data.findings[row].includes(Number(finding))) return false;
    if (group >= 0 && data.groups[row] !== group) return false;
    return needles.every((needle) => haystack(row).includes(needle));
  }

  function apply() {
    const chosen = rows[active];
    rows = [];
    for (let row = 0; row < data.count; row++) if (wanted(row)) rows.push(row);
    const column = TABLE_COLUMNS.find((c) => c.key === sorted.key);
    if (column) {
      const keys = new Map(rows.map((row) => [row, value(column, row)]));
      const order = column.text ? compare : (a, b) => a - b;
      const sign = sorted.down ? -1 : 1;
      rows.sort((a, b) => sign * order(keys.get(a), keys.get(b)) || a - b);
    } else {
      rows.sort((a, b) => (data.findings[b].length > 0) - (data.findings[a].length > 0) || a - b);
    }
    active = rows.indexOf(chosen);
    grid.setAttribute('aria-rowcount', rows.length + 1);
    byId('shown').textContent = rows.length === data.count
      ? `All ${thousands(data.count)} shown`
      : `${thousands(rows.length)} of ${thousands(data.count)} shown`;
    if (data.hidden) byId('shown').textContent += `; ${thousands(data.hidden)} others are only summed above, and not searched`;
    grid.scrollTop = 0;
    draw();
  }

  function cell(column, row) {
    const node = element('div', { class: `c-${column.key}${column.number ? ' c-number' : ''}`, role: 'gridcell' });
    if (column.key === 'summary') {
      for (const index of data.findings[row]) {
        node.append(element('span', { class: 'tag tag-' + data.severities[index] }, data.rules[index]));
      }
      node.append(data.said('summary', row));
    } else {
      const raw = value(column, row);
      node.textContent = column.show ? column.show(raw) : raw;
      if (column.key === 'state') node.classList.add(stateClass(raw));
    }
    if (column.text) node.title = node.textContent;
    return node;
  }

  function draw() {
    const first = printing ? 0 : Math.max(0, Math.floor(grid.scrollTop / ROW_PX) - SPARE_ROWS);
    const height = printing ? 0 : Math.ceil(grid.clientHeight / ROW_PX) + 2 * SPARE_ROWS;
    const end = Math.min(rows.length, printing ? PRINT_ROWS : first + height);
    body.style.height = rows.length * ROW_PX + 'px';
    const made = [];
    for (let index = first; index < end; index++) {
      const row = rows[index];
      const node = element('div', {
        class: 'grid-row', role: 'row', id: 'row-' + data.columns.id[row], 'aria-rowindex': index + 2,
        'aria-selected': index === active, 'data-index': index,
      }, ...TABLE_COLUMNS.map((column) => cell(column, row)));
      node.style.transform = `translateY(${index * ROW_PX}px)`;
      made.push(node);
    }
    if (!rows.length) made.push(element('p', { class: 'nothing' }, data.count ? 'No connection matches.' : 'No connection was seen.'));
    if (!rows.length) body.style.height = 'auto';
    if (printing && rows.length > end) made.push(element('p', {}, `and ${thousands(rows.length - end)} more`));
    body.replaceChildren(...made);
    if (rows[active] === undefined) grid.removeAttribute('aria-activedescendant');
    else grid.setAttribute('aria-activedescendant', 'row-' + data.columns.id[rows[active]]);
  }

  function move(to) {
    if (!rows.length) return;
    active = clamp(to, 0, rows.length - 1);
    const top = active * ROW_PX;
    const room = grid.clientHeight - head.offsetHeight - ROW_PX;
    if (top < grid.scrollTop) grid.scrollTop = top;
    else if (top > grid.scrollTop + room) grid.scrollTop = top - room;
    draw();
  }

  function open(index) {
    move(index);
    if (rows[active] !== undefined) onOpen(data.columns.id[rows[active]]);
  }

  for (const column of TABLE_COLUMNS) {
    const button = element('button', { type: 'button', title: 'Sort by ' + column.title }, column.title);
    const node = element('div', { class: `c-${column.key}${column.number ? ' c-number' : ''}`, role: 'columnheader', 'aria-sort': 'none' }, button);
    button.addEventListener('click', () => {
      const down = sorted.key === column.key ? !sorted.down : Boolean(column.number && column.key !== 'id');
      sorted = { key: column.key, down };
      for (const other of head.children) other.setAttribute('aria-sort', 'none');
      node.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      apply();
    });
    head.append(node);
  }
  // A socketpair has no address: it does not make the column worth its room.
  const locals = new Set((data.columns.local || []).filter((_, row) => data.said('local', row) !== '*'));
  grid.classList.toggle('many-local', locals.size > 1);
  let waiting = false;
  grid.addEventListener('scroll', () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }, { passive: true });
  new ResizeObserver(() => draw()).observe(grid);
  body.addEventListener('click', (event) => {
    const row = event.target.closest('.grid-row');
    if (row) open(Number(row.dataset.index));
  });
  grid.addEventListener('keydown', (event) => {
    const page = Math.floor(grid.clientHeight / ROW_PX) - 2;
    const steps = { PageDown: active + page, PageUp: active - page, Home: 0, End: rows.length - 1 };
    if (event.key in steps) move(steps[event.key]);
    else if (event.key === 'Enter' && event.target === grid) open(active);
    else return;
    event.preventDefault();
  });
  addEventListener('beforeprint', () => { printing = true; draw(); });
  addEventListener('afterprint', () => { printing = false; draw(); });

  return {
    step: (by) => move(active + by),
    openActive: () => open(active),
    search(text) { needles = text.toLowerCase().split(/\s+/).filter(Boolean); apply(); },
    filterState(name) { state = name; apply(); },
    filterGroup(index) { group = index; apply(); },
    filterFinding(index) { finding = index; apply(); },
    // The connection after or before the one that is open, in the table's order.
    beside(id, by) {
      const at = rows.indexOf(data.indexOf.get(id));
      const row = rows[at + by];
      return at < 0 || row === undefined ? null : data.columns.id[row];
    },
    select(id) {
      const at = rows.indexOf(data.indexOf.get(id));
      if (at >= 0) move(at);
    },
    apply,
  };
}
