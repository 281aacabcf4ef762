// Text only ever becomes a text node: nothing here parses HTML.
const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'class') node.className = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

function svg(name, attributes = {}, text = null) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const thousands = (value) => String(value).replace(/\B(?=(\d{3})+(?!\d))/g, ',');
// A state goes into a class name only as far as it looks like one.
const stateClass = (state) => 'state-' + state.replace(/[^A-Za-z0-9_]/g, '');

function bytesText(count) {
  if (count < 1000) return count + ' B';
  const power = Math.min(3, Math.floor((String(count).length - 1) / 3));
  return (count / 1000 ** power).toFixed(1) + ' ' + ' kMG'[power] + 'B';
}

function durationText(ns) {
  if (ns < 1e3) return Math.round(ns) + ' ns';
  if (ns < 1e6) return Number((ns / 1e3).toPrecision(3)) + ' µs';
  if (ns < 1e9) return Number((ns / 1e6).toPrecision(3)) + ' ms';
  return (ns / 1e9).toFixed(ns < 1e10 ? 2 : 1) + ' s';
}

function timeText(ns, digits = 6) {
  return (ns < 0 ? '−' : '+') + (Math.abs(ns) / 1e9).toFixed(digits);
}

function readData() {
  const page = JSON.parse(byId('data').textContent);
  const text = page.strings;
  const columns = page.connections;
  const count = (columns.id || []).length;
  const indexOf = new Map();
  for (let row = 0; row < count; row++) indexOf.set(columns.id[row], row);
  const said = (name, row) => text[columns[name][row]];

  // One connection's events, times made absolute again.
  function timeline(id) {
    const kept = page.timelines[id];
    if (!kept) return [];
    const [deltas, durations, lanes, actors, names, texts, meanings, bits] = kept;
    let at = 0;
    return deltas.map((delta, index) => {
      at += delta;
      return {
        index, time: at, duration: durations[index], lane: lanes[index], actor: text[actors[index]],
        name: text[names[index]], text: text[texts[index]], words: text[meanings[index]],
        failed: (bits[index] & 1) > 0, evidence: (bits[index] & 2) > 0, primary: (bits[index] & 4) > 0,
        exact: (bits[index] & 8) > 0, mark: (bits[index] & 16) > 0,
      };
    });
  }
  const life = (id) => (page.lives[id] === undefined ? '' : text[page.lives[id]]);
  const hidden = page.total - count;
  return { ...page, columns, count, hidden, indexOf, said, timeline, life };
}
