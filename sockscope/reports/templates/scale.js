// From time to place and back. Places run from 0 to 1 over the whole timeline.
// Squeezed, a gap takes room by the logarithm of its length, so that a request's microseconds and the
// seconds of silence after it fit on one screen; true, by its length.
// `until`: how long the connection was seen, which may be after its last event.
function createScale(events, squeezed, until) {
  const all = events.flatMap((e) => [e.time, e.time + Math.max(0, e.duration)]);
  const last = Math.max(...all, until);
  const times = [...new Set([...all, last])].sort((a, b) => a - b);
  if (times.length === 1) times.push(times[0] + 1);
  const places = [0];
  for (let i = 1; i < times.length; i++) {
    const gap = times[i] - times[i - 1];
    places.push(places[i - 1] + (squeezed ? 0.5 + Math.log10(1 + gap / 1000) : gap));
  }
  const total = places[places.length - 1] || 1;
  for (let i = 0; i < places.length; i++) places[i] /= total;

  function between(from, to, value) {
    let low = 0;
    let high = from.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (from[middle] <= value) low = middle;
      else high = middle;
    }
    return to[low] + ((value - from[low]) / (from[high] - from[low])) * (to[high] - to[low]);
  }

  return {
    squeezed,
    times,
    place: (time) => between(times, places, time),
    time: (place) => between(places, times, place),
  };
}

// Where the axis is labelled: at round times when true, at what happened when squeezed.
function ticksOf(scale, from, to, count) {
  const start = scale.time(from);
  const end = scale.time(to);
  if (scale.squeezed) {
    const ticks = [];
    let last = -Infinity;
    for (const time of scale.times) {
      const place = scale.place(time);
      if (place < from || place > to || place - last < (to - from) / count) continue;
      ticks.push(time);
      last = place;
    }
    return { ticks, digits: 6 };
  }
  const rough = (end - start) / count;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) || power;
  const ticks = [];
  for (let at = Math.ceil(start / step) * step; at <= end; at += step) ticks.push(at);
  return { ticks, digits: clamp(Math.ceil(9 - Math.log10(step)), 1, 9) };
}
