// The picture of one connection: the wire, the kernel's state, and a lane a process.
const GUTTER_PX = 150;
const NARROW_GUTTER_PX = 84;
const AXIS_PX = 26;
const WIRE_PX = 96;
const STATE_PX = 40;
const CALL_PX = 62;
const THREAD_PX = 50; // each further thread of a process
const THREADS = 6; // those beyond share the last line
const GLYPH_PX = 7.1; // one character of the label's font

function createLanes(host, onSelect) {
  let events = [];
  let lanes = [];
  let scale = null;
  let until = 0;
  let view = { from: 0, to: 1 };
  let selected = -1;
  let squeezed = true;
  let queued = false;

  const processOf = (actor) => actor.replace(/\/\d+\]$/, ']');
  const gutter = () => (host.clientWidth < 640 ? NARROW_GUTTER_PX : GUTTER_PX);
  const plot = () => Math.max(100, host.clientWidth - gutter() - 12);
  const x = (time) => gutter() + ((scale.place(time) - view.from) / (view.to - view.from)) * plot();

  function show(list, seenUntil) {
    events = list;
    until = seenUntil;
    const calls = [...new Set(list.filter((e) => e.lane === 2).map((e) => processOf(e.actor)))];
    lanes = [{ kind: 'wire', name: 'wire', height: WIRE_PX }, { kind: 'state', name: 'kernel state', height: STATE_PX },
      ...calls.map((name) => {
        const actors = [...new Set(list.filter((e) => e.lane === 2 && processOf(e.actor) === name).map((e) => e.actor))];
        const threads = actors.length > 1 ? actors.slice(0, THREADS) : [];
        return { kind: 'call', name, actors, threads, height: CALL_PX + THREAD_PX * Math.max(0, threads.length - 1) };
      })];
    let top = AXIS_PX;
    for (const lane of lanes) { lane.top = top; top += lane.height + 2; }
    scale = createScale(list, squeezed, until);
    view = { from: 0, to: 1 };
    selected = -1;
    draw();
  }

  const laneOf = (event) => lanes[event.lane < 2 ? event.lane : lanes.findIndex((l) => l.kind === 'call' && l.name === processOf(event.actor))];

  // A label goes on the first line where it does not touch the one before.
  function labelPlace(taken, left, text, lines) {
    for (const line of lines) {
      if ((taken.get(line) ?? -Infinity) + 8 <= left) {
        taken.set(line, left + text.length * GLYPH_PX);
        return line;
      }
    }
    return null;
  }

  function draw() {
    if (!scale || !host.clientWidth) return;
    const height = lanes[lanes.length - 1].top + lanes[lanes.length - 1].height + 12;
    const width = host.clientWidth;
    const left = gutter();
    const root = svg('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'group', 'aria-label': 'Timeline' });
    for (const lane of lanes) root.append(svg('rect', { class: 'lane', x: 0, y: lane.top, width, height: lane.height }));
    const { ticks, digits } = ticksOf(scale, view.from, view.to, Math.max(2, Math.floor(plot() / 110)));
    for (const tick of ticks) {
      root.append(svg('line', { class: 'tick', x1: x(tick), x2: x(tick), y1: AXIS_PX - 6, y2: height - 10 }));
      root.append(svg('text', { class: 'tick-name', x: x(tick) + 3, y: 16 }, timeText(tick, digits)));
    }
    if (events[selected]) {
      const at = x(events[selected].time);
      root.append(svg('line', { class: 'cursor', x1: at, x2: at, y1: AXIS_PX, y2: height - 10 }));
    }
    const taken = new Map();
    const states = events.filter((e) => e.lane === 1 && !e.mark);
    // Marks lie on the bars.
    for (const event of [...events.filter((e) => !e.mark), ...events.filter((e) => e.mark)]) {
      const next = event.lane === 1 ? states[states.indexOf(event) + 1] : undefined;
      const node = drawEvent(event, left, width, taken, next);
      if (node) root.append(node);
    }
    root.append(svg('rect', { class: 'gutter', x: 0, y: 0, width: left - 6, height: height - 10 }));
    for (const lane of lanes) {
      const room = Math.floor((left - 18) / GLYPH_PX);
      const name = lane.kind === 'state' && room < lane.name.length ? 'state' : lane.name.length > room ? lane.name.slice(0, room - 1) + '…' : lane.name;
      const many = lane.threads?.length > 1;
      const label = svg('text', { class: 'lane-name', x: 10, y: lane.top + (many ? 20 : lane.height / 2 + 4) }, name);
      label.append(svg('title', {}, lane.name));
      root.append(label);
      if (!many) continue;
      lane.threads.forEach((actor, line) => {
        const thread = /\/(\d+)\]$/.exec(actor);
        root.append(svg('text', { class: 'label', x: 18, y: lane.top + 35 + line * THREAD_PX }, thread ? `thread ${thread[1]}` : 'main thread'));
      });
    }
    root.append(svg('rect', { class: 'window', x: left + view.from * plot(), y: height - 6, width: Math.max(3, (view.to - view.from) * plot()), height: 4, rx: 2 }));
    const focused = host.contains(document.activeElement);
    host.replaceChildren(root);
    if (focused) host.querySelector('.event[tabindex="0"]')?.focus({ preventScroll: true });
    byId('window').textContent = `${timeText(scale.time(view.from))} to ${timeText(scale.time(view.to))} s`;
  }

  function drawEvent(event, left, width, taken, next) {
    const lane = laneOf(event);
    const start = x(event.time);
    let end = event.duration < 0 ? x(scale.times[scale.times.length - 1]) : x(event.time + event.duration);
    if (event.lane === 1 && !event.mark) end = x(next ? next.time : scale.times[scale.times.length - 1]);
    if (Math.max(end, start + 12) < left || start > width) return null;
    const kinds = ['event', event.lane === 0 ? (event.actor === '->' ? 'out' : 'in') : event.mark ? 'happened' : event.lane === 1 ? `state ${event.exact ? 'exact' : 'sampled'} ${stateClass(event.name)}` : 'call'];
    if (event.failed) kinds.push('failed');
    if (event.index === selected) kinds.push('selected');
    if (event.lane === 2 && event.duration > 1e6) kinds.push('waits');
    const group = svg('g', {
      class: kinds.join(' '), role: 'button', 'data-event': event.index,
      tabindex: event.index === (selected < 0 ? 0 : selected) ? 0 : -1,
      'aria-label': `${timeText(event.time)} ${event.actor} ${event.text}`,
    });
    group.append(svg('title', {}, `${timeText(event.time)} s  ${event.text}${event.words ? '\n' + event.words : ''}`));
    const seen = Math.max(start, left);
    if (event.lane === 0) {
      const out = event.actor === '->';
      const y = lane.top + (out ? 25 : 70);
      const shape = out ? `M${start} ${y - 6} L${start + 11} ${y} L${start} ${y + 6} Z` : `M${start + 11} ${y - 6} L${start} ${y} L${start + 11} ${y + 6} Z`;
      group.append(svg('path', { class: 'mark', d: shape }));
      if (event.evidence) group.append(svg('circle', { class: 'evidence', cx: start + 5.5, cy: y, r: 11 }));
      label(group, taken, start, event.name, [y - 10, y + 17]);
    } else if (event.mark) {
      const middle = lane.top + lane.height / 2;
      group.append(svg('path', { class: 'mark', d: `M${start} ${lane.top + 2} L${start + 6} ${middle} L${start} ${lane.top + lane.height - 2} L${start - 6} ${middle} Z` }));
      if (event.evidence) group.append(svg('circle', { class: 'evidence', cx: start, cy: middle, r: 13 }));
    } else if (event.lane === 1) {
      // What the kernel told begins where it is drawn; what a snapshot showed began some time before.
      if (event.exact && start >= left) group.append(svg('line', { class: 'edge', x1: start, x2: start, y1: lane.top + 2, y2: lane.top + lane.height - 2 }));
      group.append(svg('rect', { class: 'mark', x: seen, y: lane.top + 7, width: Math.max(4, end - seen), height: lane.height - 14, rx: 4 }));
      if (event.evidence) group.append(svg('rect', { class: 'evidence', x: seen, y: lane.top + 5, width: Math.max(4, end - seen), height: lane.height - 10, rx: 5 }));
      if (end - seen > event.name.length * GLYPH_PX + 10) group.append(svg('text', { class: 'label', x: seen + 7, y: lane.top + lane.height / 2 + 4 }, event.name));
    } else {
      const line = clamp(lane.actors.indexOf(event.actor), 0, THREADS - 1);
      const y = lane.top + 24 + line * THREAD_PX;
      const bar = Math.max(8, end - seen);
      group.append(svg('rect', { class: 'mark', x: seen, y, width: bar, height: 14, rx: 3 }));
      if (event.evidence) group.append(svg('rect', { class: 'evidence', x: seen - 3, y: y - 3, width: bar + 6, height: 20, rx: 5 }));
      label(group, taken, seen, event.name, [y - 8, y + 29]);
    }
    return group;
  }

  function label(group, taken, left, text, lines) {
    // At the right edge the label moves left, so that it is read whole.
    const start = Math.min(left, host.clientWidth - text.length * GLYPH_PX - 6);
    const line = labelPlace(taken, start, text, lines);
    if (line !== null) group.append(svg('text', { class: 'label', x: start, y: line }, text));
  }

  function redraw() {
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => { queued = false; draw(); });
  }

  function setView(from, span) {
    const width = clamp(span, 1e-9, 1);
    const start = clamp(from, 0, 1 - width);
    view = { from: start, to: start + width };
    redraw();
  }

  // Keeps what is at `centre` (0 to 1 of the picture) where it is.
  function zoom(factor, centre = null) {
    const span = view.to - view.from;
    let at = centre;
    if (at === null) {
      const chosen = events[selected] ? (scale.place(events[selected].time) - view.from) / span : 0.5;
      at = chosen >= 0 && chosen <= 1 ? chosen : 0.5;
    }
    const wider = clamp(span / factor, 1e-9, 1);
    setView(view.from + at * (span - wider), wider);
  }

  const pan = (share) => setView(view.from + share * (view.to - view.from), view.to - view.from);

  function select(index) {
    selected = index;
    const place = scale.place(events[index].time);
    if (place < view.from || place > view.to) setView(place - (view.to - view.from) / 2, view.to - view.from);
    draw();
  }

  host.addEventListener('wheel', (event) => {
    event.preventDefault();
    const share = (event.clientX - host.getBoundingClientRect().left - gutter()) / plot();
    if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((event.deltaX || event.deltaY) / plot());
    else zoom(Math.exp(-event.deltaY / 300), clamp(share, 0, 1));
  }, { passive: false });
  let grabbed = null;
  host.addEventListener('pointerdown', (event) => {
    if (event.button === 0) grabbed = { x: event.clientX, from: view.from, moved: false };
  });
  addEventListener('pointermove', (event) => {
    if (!grabbed) return;
    const by = event.clientX - grabbed.x;
    if (Math.abs(by) > 4) { grabbed.moved = true; host.classList.add('dragging'); }
    if (grabbed.moved) setView(grabbed.from - (by / plot()) * (view.to - view.from), view.to - view.from);
  });
  addEventListener('pointerup', () => {
    if (!grabbed) return;
    host.classList.remove('dragging');
    // A drag that ends on an event is no click on it.
    if (grabbed.moved) setTimeout(() => { grabbed = null; }); else grabbed = null;
  });
  host.addEventListener('click', (event) => {
    const node = event.target.closest('.event');
    if (node && !grabbed?.moved) onSelect(Number(node.dataset.event), true);
  });
  new ResizeObserver(redraw).observe(host);

  return {
    show, select, zoom, pan,
    reset: () => setView(0, 1),
    squeeze(on) { squeezed = on; const kept = selected; show(events, until); if (kept >= 0) select(kept); },
    focus: () => host.querySelector('.event[tabindex="0"]')?.focus({ preventScroll: true }),
  };
}
