// One connection, opened: its facts, its picture, the chosen event, and all events as a table.
const WHERE = ['wire', 'kernel', 'call'];

// Names of arguments as section 2 of the manual gives them.
const ARGUMENTS = {
  socket: 'domain type protocol', socketpair: 'domain type protocol sv', bind: 'sockfd addr addrlen', listen: 'sockfd backlog',
  accept: 'sockfd addr addrlen', accept4: 'sockfd addr addrlen flags', connect: 'sockfd addr addrlen', shutdown: 'sockfd how',
  getsockopt: 'sockfd level optname optval optlen', setsockopt: 'sockfd level optname optval optlen',
  getsockname: 'sockfd addr addrlen', getpeername: 'sockfd addr addrlen', sendto: 'sockfd buf len flags dest_addr addrlen',
  recvfrom: 'sockfd buf len flags src_addr addrlen', sendmsg: 'sockfd msg flags', recvmsg: 'sockfd msg flags',
  sendmmsg: 'sockfd msgvec vlen flags', recvmmsg: 'sockfd msgvec vlen flags timeout', read: 'fd buf count', write: 'fd buf count',
  readv: 'fd iov iovcnt', writev: 'fd iov iovcnt', pread64: 'fd buf count offset', pwrite64: 'fd buf count offset',
  sendfile: 'out_fd in_fd offset count', splice: 'fd_in off_in fd_out off_out len flags', close: 'fd', close_range: 'first last flags',
  dup: 'oldfd', dup2: 'oldfd newfd', dup3: 'oldfd newfd flags', fcntl: 'fd cmd arg', ioctl: 'fd request argp',
  poll: 'fds nfds timeout', ppoll: 'fds nfds tmo_p sigmask', select: 'nfds readfds writefds exceptfds timeout',
  pselect6: 'nfds readfds writefds exceptfds timeout sigmask', epoll_ctl: 'epfd op fd event',
  epoll_wait: 'epfd events maxevents timeout', epoll_pwait: 'epfd events maxevents timeout sigmask',
};

// `name(a, "b, c", {d}) = result` → its parts; commas inside quotes and brackets do not part.
function callParts(text) {
  const open = text.indexOf('(');
  if (open < 1 || !/^[a-z_0-9]+$/.test(text.slice(0, open))) return null;
  const args = [];
  let depth = 0;
  let quoted = false;
  let from = open + 1;
  for (let at = open; at < text.length; at++) {
    const sign = text[at];
    if (quoted) {
      if (sign === '\\') at++;
      else if (sign === '"') quoted = false;
    } else if (sign === '"') quoted = true;
    else if ('([{'.includes(sign)) depth++;
    else if (')]}'.includes(sign)) {
      depth--;
      if (depth === 0) {
        if (at > from) args.push(text.slice(from, at).trim());
        const rest = text.slice(at + 1).trim();
        return { args, result: rest.startsWith('=') ? rest.slice(1).trim() : rest };
      }
    } else if (sign === ',' && depth === 1) {
      args.push(text.slice(from, at).trim());
      from = at + 1;
    }
  }
  return null;
}

function createDetail(data, table) {
  const dialog = byId('detail');
  const list = byId('events');
  const lanes = createLanes(byId('lanes'), select);
  let events = [];
  let selected = -1;
  let current = null;

  function show(id) {
    const row = data.indexOf.get(id);
    if (row === undefined) return absent(id);
    current = id;
    byId('absent').hidden = true;
    const c = data.columns;
    const arrows = { server: '←', client: '→' };
    byId('detail-title').textContent = `#${id} ${data.said('local', row)} ${arrows[data.said('role', row)] || '–'} ${data.said('peer', row)}`;
    const facts = [
      element('strong', { class: stateClass(data.said('state', row)) }, data.said('state', row)),
      ` · ${data.said('protocol', row)} ${data.said('role', row)} · read ${bytesText(c.read[row])}, written ${bytesText(c.written[row])}`,
      ` · queues ${c.recv_q[row]} in, ${c.send_q[row]} out · ${timeText(c.first[row], 3)} to ${timeText(c.last[row], 3)} s`,
      data.said('held', row) ? ` · held by ${data.said('held', row)}` : '',
    ];
    byId('detail-facts').replaceChildren(...facts);
    byId('detail-summary').textContent = data.said('summary', row);
    byId('detail-wire').textContent = data.said('wire', row) && `On the wire: ${data.said('wire', row)}`;
    byId('detail-life').textContent = data.life(id);
    byId('detail-findings').replaceChildren(...data.findings[row].map((index) => element(
      'span', { class: 'severity severity-' + data.severities[index] }, `${data.rules[index]}: ${data.titles[index]}`)));
    events = data.timeline(id);
    selected = -1;
    byId('story').hidden = events.length === 0;
    byId('no-story').hidden = events.length > 0;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    if (!events.length) return;
    list.replaceChildren(...events.map(eventRow));
    lanes.show(events, c.last[row]);
    const primary = events.findIndex((e) => e.primary);
    const telling = primary >= 0 ? primary : events.findIndex((e) => e.evidence);
    select(Math.max(0, telling));
    lanes.focus();
  }

  // An address may name a connection that this page only sums, or none at all.
  function absent(id) {
    current = null;
    events = [];
    byId('detail-title').textContent = `#${id}`;
    for (const name of ['detail-facts', 'detail-summary', 'detail-wire', 'detail-life', 'detail-findings']) byId(name).replaceChildren();
    byId('story').hidden = byId('no-story').hidden = true;
    byId('absent').hidden = false;
    byId('absent').textContent = data.hidden
      ? `This page shows ${thousands(data.count)} of ${thousands(data.total)} connections one by one, and #${id} is not among them. The recording has it: sockscope report FOLDER --connection ${id}`
      : `There is no connection #${id}.`;
    if (!dialog.open) dialog.showModal();
  }

  function eventRow(event, index) {
    const before = index ? durationText(event.time - events[index - 1].time) : '';
    const where = event.lane === 2 ? event.actor : WHERE[event.lane] + ({ '->': ' →', '<-': ' ←' }[event.actor] || '');
    const text = element('td', {}, element('span', { class: event.failed ? 'failed-text' : '' }, event.text));
    if (event.words) text.append(element('span', { class: 'meaning' }, event.words));
    return element('tr', { 'data-event': index, class: event.evidence ? 'evidence-row' : '', 'aria-selected': false },
      element('td', {}, timeText(event.time)), element('td', {}, before),
      element('td', { class: 'where-' + WHERE[event.lane] }, where), text);
  }

  function select(index, scrollPane = false) {
    if (!events[index]) return;
    if (list.rows[selected]) list.rows[selected].setAttribute('aria-selected', false);
    selected = index;
    list.rows[index].setAttribute('aria-selected', true);
    lanes.select(index);
    describe(events[index]);
    if (scrollPane) lanes.focus();
  }

  function describe(event) {
    const took = event.duration < 0 ? 'still going at the end' : event.duration ? `took ${durationText(event.duration)}` : '';
    const where = event.lane === 2 ? event.actor : event.lane === 1 ? 'kernel state'
      : { '->': 'wire, sent by the target', '<-': 'wire, sent by the peer' }[event.actor] || 'wire';
    const parts = event.lane === 2 ? callParts(event.text) : null;
    const rows = element('dl');
    const add = (name, value) => rows.append(element('div', {}, element('dt', {}, name), element('dd', {}, element('code', {}, value))));
    if (parts) {
      const names = (ARGUMENTS[event.name] || '').split(' ');
      parts.args.forEach((value, at) => add(names[at] || `argument ${at + 1}`, value));
      if (parts.result) add('result', parts.result);
    } else add('what', event.text);
    const proof = event.primary ? 'primary evidence' : event.evidence ? 'evidence' : '';
    byId('event').replaceChildren(
      element('h3', { class: event.failed ? 'failed-text' : '' }, event.name || event.text),
      element('p', { class: 'meta' }, [timeText(event.time) + ' s', where, took, event.failed ? 'failed' : '', proof].filter(Boolean).join(' · ')),
      element('p', { class: 'words' }, event.words), rows);
  }

  function step(by) {
    select(clamp(selected + by, 0, events.length - 1));
    lanes.focus();
  }

  function beside(by) {
    const id = table.beside(current, by);
    if (id !== null) location.hash = 'c' + id;
  }

  list.addEventListener('click', (event) => {
    const row = event.target.closest('tr');
    if (row) select(Number(row.dataset.event));
  });
  byId('zoom-in').addEventListener('click', () => lanes.zoom(1.6));
  byId('zoom-out').addEventListener('click', () => lanes.zoom(1 / 1.6));
  byId('zoom-reset').addEventListener('click', () => lanes.reset());
  byId('squeeze').addEventListener('click', (event) => {
    const on = event.currentTarget.getAttribute('aria-pressed') !== 'true';
    event.currentTarget.setAttribute('aria-pressed', on);
    lanes.squeeze(on);
  });
  byId('previous').addEventListener('click', () => beside(-1));
  byId('next').addEventListener('click', () => beside(1));
  byId('close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => {
    if (location.hash.startsWith('#c')) location.hash = '';
    // The browser tells of a close a little later: somebody may be typing into the search already.
    if (!document.activeElement.matches('input, select')) byId('grid').focus({ preventScroll: true });
  });
  dialog.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {
      '+': () => lanes.zoom(1.6), '=': () => lanes.zoom(1.6), '-': () => lanes.zoom(1 / 1.6), 0: () => lanes.reset(),
      j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
      ArrowRight: () => (event.shiftKey ? lanes.pan(0.25) : step(1)), ArrowLeft: () => (event.shiftKey ? lanes.pan(-0.25) : step(-1)),
      '[': () => beside(-1), ']': () => beside(1),
    };
    if (!(event.key in keys) || !events.length && !'[]'.includes(event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  return { show, close: () => dialog.close(), isOpen: () => dialog.open };
}
