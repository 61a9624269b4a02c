"use strict";
// The explorer: choose a histogram, see it with its laws, zoom, and read values, by mouse, touch
// or keyboard. Its data is the JSON in the page that reports/explorer.py describes.

const LEAST_COUNT = 0.5; // where the log scale starts: below half an entry a law expects none
const LEAST_BINS = 4; // that a view shows
const MARGIN = { left: 60, right: 10, top: 10, bottom: 44 };
const SVG = "http://www.w3.org/2000/svg";

// Numbers ---------------------------------------------------------------------------------------

function unpack(text, rows) {
  const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  let at = 0;
  const next = () => {
    let value = 0;
    for (let place = 1; ; place *= 128) { // no shifts: counts exceed 32 bits
      const byte = bytes[at++];
      value += (byte & 0x7f) * place;
      if (byte < 0x80) return value;
    }
  };
  const read = (bins) => {
    const counts = new Array(bins).fill(0);
    for (let bin = 0; bin < bins; bin++) {
      const count = next();
      if (count) counts[bin] = count;
      else bin += next(); // more zeros
    }
    return counts;
  };
  for (const row of rows) { // its grid, then finer ones, each of half the width of that before
    row.grids = Array.from({ length: 1 + row.finer }, (_, level) => ({
      bins: row.bins, first: row.first / 2 ** level, width: row.width / 2 ** level, counts: read(row.bins),
    }));
    row.total = row.grids[0].counts.reduce((sum, one) => sum + one, 0);
  }
}

function logGamma(z) { // Lanczos' approximation, 15 digits
  const terms = [676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059,
    12.507343278686905, -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7];
  let sum = 0.99999999999980993;
  terms.forEach((term, i) => { sum += term / (z + i); });
  const t = z + 6.5;
  return 0.9189385332046727 + (z - 0.5) * Math.log(t) - t + Math.log(sum);
}

function upperGamma(a, x) { // regularised: a series for small x, a continued fraction for large
  if (x <= 0) return 1;
  if (x > 1000) return 0;
  const front = Math.exp(a * Math.log(x) - x - logGamma(a));
  if (x < a + 1) {
    let term = 1 / a, sum = term;
    for (let n = 1; term > sum * 1e-16; n++) sum += term *= x / (a + n);
    return 1 - front * sum;
  }
  let b = x + 1 - a, c = 1e300, d = 1 / b, fraction = d;
  for (let n = 1, change = 0; n < 500 && Math.abs(change - 1) > 1e-15; n++) {
    const factor = n * (a - n);
    b += 2;
    d = 1 / (factor * d + b);
    c = b + factor / c;
    change = c * d;
    fraction *= change;
  }
  return front * fraction;
}

function probability([location, scale, shape], lo, hi) { // of a value from lo to hi
  const beyond = (x) => upperGamma(1 / shape, (Math.abs(x - location) / scale) ** shape) / 2;
  if (lo < location && location < hi) return 1 - beyond(lo) - beyond(hi);
  return Math.abs(beyond(lo) - beyond(hi));
}

function density([location, scale, shape], x) {
  const power = (Math.abs(x - location) / scale) ** shape;
  return shape / (2 * scale) * Math.exp(-logGamma(1 / shape) - power);
}

function shown(number, digits = 4) {
  if (number === null || !Number.isFinite(number)) return "–";
  const size = Math.abs(number);
  const text = size !== 0 && (size < 1e-4 || (size >= 1e7 && !Number.isInteger(number)))
    ? number.toExponential(digits - 2)
    : number.toLocaleString("en", Number.isInteger(number) ? {} : { maximumSignificantDigits: digits });
  return text.replaceAll("-", "−");
}

function ticks(lo, hi, most) { // round numbers from lo to hi
  const rough = (hi - lo) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((one) => one * power >= rough * 0.999);
  const first = Math.ceil(lo / step - 1e-9), last = Math.floor(hi / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function decades(top, most) {
  const last = Math.floor(Math.log10(top)), step = Math.ceil((last + 1) / most);
  const powers = [];
  for (let power = 0; power <= last; power += step) powers.push(10 ** power);
  return powers;
}

// A histogram -------------------------------------------------------------------------------------

const edge = (grid, bin) => grid.first + bin * grid.width;
const binOf = (grid, x) => Math.min(Math.max(Math.floor((x - grid.first) / grid.width), 0), grid.bins - 1);

function wholeRange(row) { // the occupied bins and one at either side
  const [grid] = row.grids;
  const occupied = grid.counts.findIndex((one) => one > 0);
  if (occupied < 0) return [edge(grid, 0), edge(grid, grid.bins)];
  const last = grid.counts.findLastIndex((one) => one > 0);
  const middle = (occupied + last + 1) / 2;
  const half = Math.max((last + 1 - occupied) / 2 + 1, LEAST_BINS / 2);
  return [edge(grid, middle - half), edge(grid, middle + half)];
}

function gridFor(row, [lo, hi]) { // the finest that reaches across a view
  const reaching = row.grids.filter((grid) => edge(grid, 0) <= lo && hi <= edge(grid, grid.bins));
  return reaching.at(-1) ?? row.grids[0];
}

const leastSpan = (row, centre) => LEAST_BINS * gridFor(row, [centre, centre]).width;

function within(row, [lo, hi]) { // the nearest view of the whole range that is not too narrow
  const whole = wholeRange(row);
  const most = whole[1] - whole[0];
  const span = Math.min(Math.max(hi - lo, leastSpan(row, (lo + hi) / 2)), most);
  const start = Math.min(Math.max((lo + hi - span) / 2, whole[0]), whole[1] - span);
  return [start, start + span];
}

function visibleBins(grid, [lo, hi]) {
  const first = Math.max(0, Math.floor((lo - grid.first) / grid.width));
  const last = Math.min(grid.bins - 1, Math.ceil((hi - grid.first) / grid.width) - 1);
  return [first, last];
}

// Drawing -----------------------------------------------------------------------------------------

function element(name, attributes = {}, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function curves(state, points) { // what each law expects in a bin around every point
  const { row } = state, half = state.grid.width / 2;
  const names = Object.keys(row.laws).filter((name) => row.laws[name] && state.laws.has(name));
  return names.map((name) => [
    name, points.map((x) => row.total * probability(row.laws[name], x - half, x + half)),
  ]);
}

function draw(plot, state) {
  const { grid, view } = state;
  const width = plot.clientWidth, height = width < 480 ? 280 : 360;
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  const x = (value) => MARGIN.left + (value - view[0]) / (view[1] - view[0]) * (right - MARGIN.left);
  const points = [];
  for (let at = MARGIN.left; at <= right; at += 2) points.push(state.valueAt(at));
  const expected = curves(state, points);
  const [first, last] = visibleBins(grid, view);
  const counts = grid.counts.slice(first, last + 1);
  const most = Math.max(...counts, ...expected.flatMap(([, values]) => values));
  const top = state.log ? 1.6 * Math.max(10, most) : 1.06 * Math.max(1, most);
  const share = (count) => state.log
    ? Math.log(Math.max(count, LEAST_COUNT) / LEAST_COUNT) / Math.log(top / LEAST_COUNT)
    : count / top;
  const y = (count) => bottom - share(count) * (bottom - MARGIN.top);

  const svg = element("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  const inside = element("svg", { // what is in it ends at its edges
    x: MARGIN.left, y: 0, width: right - MARGIN.left, height: bottom,
    viewBox: `${MARGIN.left} 0 ${right - MARGIN.left} ${bottom}`,
  });
  const steps = counts.map((count, i) => `V${y(count)}H${x(edge(grid, first + i + 1))}`).join("");
  inside.append(element("path", { class: "entries", d: `M${x(edge(grid, first))} ${y(0)}${steps}V${y(0)}Z` }));
  if (state.cursor !== null) {
    const from = x(edge(grid, state.bin)), to = x(edge(grid, state.bin + 1));
    inside.append(element("rect", { class: "cursor-band", x: from, y: MARGIN.top, width: to - from, height: bottom - MARGIN.top }));
    const at = y(grid.counts[state.bin]);
    inside.append(element("rect", { class: "cursor", x: from, y: at, width: to - from, height: bottom - at }));
  }
  for (const [name, values] of expected) {
    let d = "";
    values.forEach((value, i) => {
      const seen = !state.log || value >= LEAST_COUNT;
      if (seen) d += `${d && !d.endsWith(" ") ? "L" : "M"}${x(points[i]).toFixed(2)},${y(value).toFixed(2)}`;
      else if (d && !d.endsWith(" ")) d += " ";
    });
    inside.append(element("path", { class: "law", "data-law": name, d: d.trim() }));
  }
  if (state.selection) {
    const [from, to] = [...state.selection].sort((a, b) => a - b);
    inside.append(element("rect", { class: "selection", x: from, y: MARGIN.top, width: to - from, height: bottom - MARGIN.top }));
  }
  svg.append(inside);
  for (const value of ticks(...view, width < 480 ? 5 : 9)) {
    svg.append(element("path", { class: "tick", d: `M${x(value)} ${bottom}v5` }));
    svg.append(element("text", { x: x(value), y: bottom + 18, "text-anchor": "middle" }, shown(value)));
  }
  for (const value of state.log ? decades(top, 6) : ticks(0, top, 5)) {
    svg.append(element("path", { class: "grid", d: `M${MARGIN.left} ${y(value)}H${right}` }));
    svg.append(element("text", { x: MARGIN.left - 7, y: y(value) + 4, "text-anchor": "end" }, short(value)));
  }
  svg.append(element("path", { class: "axis", d: `M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}` }));
  const { symbol, unit } = state.quantity;
  const label = width < 480 ? `entry of ${symbol}` : `entry of ${symbol} (${unit})`;
  svg.append(element("text", { x: (MARGIN.left + right) / 2, y: height - 6, "text-anchor": "middle" }, label));
  plot.replaceChildren(svg);
}

function short(count) { // of an axis
  for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (count >= size) return `${shown(count / size, 3)} ${letter}`;
  }
  return shown(count);
}

// Words -------------------------------------------------------------------------------------------

function bounds(grid, bin) {
  return `${shown(edge(grid, bin))} to ${shown(edge(grid, bin + 1))}`;
}

function valuesOf(name, { row, grid, bin }) { // [in this bin, density] of the entries or of a law
  if (bin === null) return [null, null];
  const count = grid.counts[bin], lo = edge(grid, bin);
  if (name === "entries") return [count, count / row.total / grid.width];
  const law = row.laws[name];
  if (!law) return [null, null];
  return [row.total * probability(law, lo, lo + grid.width), density(law, lo + grid.width / 2)];
}

function spoken(state, names) {
  const { row, grid, bin } = state;
  const laws = Object.keys(names).filter((name) => row.laws[name] && state.laws.has(name));
  const expected = laws.map((name) => `${names[name]} ${shown(valuesOf(name, state)[0], 3)}`);
  const more = expected.length ? `; expected: ${expected.join(", ")}` : "";
  return `${bounds(grid, bin)}: ${shown(grid.counts[bin])} entries${more}`;
}

// One explorer ------------------------------------------------------------------------------------

function explore(root) {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  unpack(data.counts, data.rows);
  const find = (selector) => root.querySelector(selector);
  const plot = find(".plot"), live = find("[aria-live]");
  const state = {
    row: null, grid: null, view: null, quantity: null, selection: null, log: true,
    cursor: null, // the value in the middle of the bin that is read
    laws: new Set(Object.keys(data.laws)),
    get bin() { return this.cursor === null ? null : binOf(this.grid, this.cursor); },
    valueAt(at) { // of a point of the plot, in pixels
      const share = (at - MARGIN.left) / (plot.clientWidth - MARGIN.left - MARGIN.right);
      return this.view[0] + share * (this.view[1] - this.view[0]);
    },
  };
  root.state = state;

  const redraw = () => {
    draw(plot, state);
    writeValues();
    find(".range").textContent = `${shown(state.view[0], 3)} to ${shown(state.view[1], 3)}, ` +
      `bins of ${shown(state.grid.width)}`;
    const whole = wholeRange(state.row), span = state.view[1] - state.view[0];
    find("[data-zoom=in]").disabled = span <= leastSpan(state.row, state.view[0] + span / 2) * 1.001;
    find("[data-zoom=out]").disabled = find("[data-zoom=reset]").disabled = span >= (whole[1] - whole[0]) * 0.999;
  };
  const setView = (view) => {
    state.view = within(state.row, view);
    state.grid = gridFor(state.row, state.view);
    redraw();
  };
  const zoom = (factor, centre = (state.view[0] + state.view[1]) / 2) =>
    setView(state.view.map((end) => centre + (end - centre) * factor));
  const pan = (share) => {
    const shift = share * (state.view[1] - state.view[0]);
    setView(state.view.map((end) => end + shift));
  };
  const read = (value) => { // the bin around a value, inside of what there is
    const { row, grid } = state, [widest] = row.grids, whole = wholeRange(row);
    const lo = Math.max(whole[0], edge(widest, 0)), hi = Math.min(whole[1], edge(widest, widest.bins));
    const inside = Math.min(Math.max(value, lo + grid.width / 2), hi - grid.width / 2);
    state.cursor = edge(grid, Math.floor((inside - grid.first) / grid.width) + 0.5);
  };
  const say = () => { live.textContent = spoken(state, data.laws); };
  const pointAt = (value) => {
    read(Math.min(Math.max(value, state.view[0]), state.view[1]));
    redraw();
    say();
  };
  const moveTo = (value) => { // the view follows
    read(value);
    const lo = state.cursor - state.grid.width / 2, hi = lo + state.grid.width;
    const shift = Math.min(0, lo - state.view[0]) + Math.max(0, hi - state.view[1]);
    setView(state.view.map((end) => end + shift));
    read(state.cursor); // whose bin may be another on another grid
    redraw();
    say();
  };
  const fullest = () => {
    const { counts } = state.grid;
    return edge(state.grid, counts.indexOf(Math.max(...counts)) + 0.5);
  };

  function writeValues() {
    for (const line of root.querySelectorAll("[data-values]")) {
      const values = valuesOf(line.dataset.values, state);
      values.forEach((value, i) => { line.cells[i + 1].textContent = shown(value, 4 - i); });
      const missing = line.dataset.values !== "entries" && !state.row.laws[line.dataset.values];
      line.classList.toggle("missing", missing);
    }
    find(".bin").textContent = state.cursor === null
      ? "Point at a bin" : `Bin ${bounds(state.grid, state.bin)}`;
  }

  function writeStatistics() {
    const { row } = state, body = find(".statistics tbody");
    body.replaceChildren(...data.statistics.flatMap(([, label], i) => {
      if (row.values[i] === null) return [];
      const line = document.createElement("tr");
      const heading = document.createElement("th");
      heading.scope = "row";
      heading.textContent = label;
      line.append(heading);
      const ends = row.intervals ? row.intervals[i] : null;
      const [low, high] = ends ? ends.map((end) => end === null ? "∞" : shown(end, 3)) : [];
      const texts = [shown(row.values[i]), ends ? `${ends[0] === null ? "−" : ""}${low} to ${high}` : ""];
      for (const text of row.intervals ? texts : texts.slice(0, 1)) {
        line.insertCell().textContent = text;
      }
      return [line];
    }));
    find(".statistics .interval").hidden = !row.intervals;
  }

  // What is chosen: each list offers what the choices before it leave.
  const chosen = {};
  const select = (name) => find(`select[name=${name}]`);
  const LISTS = ["model", "block", "quantity", "head"];
  const texts = {
    model: (i) => data.models[i],
    block: String,
    quantity: (name) => data.quantities[name].symbol,
    head: (head) => (head === data.whole ? "all together" : head),
  };
  function choose() {
    let rows = data.rows;
    for (const name of LISTS) {
      const values = [...new Set(rows.map((row) => row[name]))];
      if (name === "quantity") values.sort((a, b) => order(a) - order(b));
      if (!values.includes(chosen[name])) chosen[name] = values[0];
      select(name).replaceChildren(...values.map((value) => new Option(texts[name](value), value)));
      select(name).selectedIndex = values.indexOf(chosen[name]);
      select(name).disabled = values.length < 2;
      rows = rows.filter((row) => row[name] === chosen[name]);
      select(name).values = values;
    }
    state.row = rows[0];
    state.quantity = data.quantities[state.row.quantity];
    state.cursor = state.selection = null;
    writeStatistics();
    const head = chosen.head === data.whole ? "" : `, head ${chosen.head}`;
    const title = `${data.models[chosen.model]}, block ${chosen.block}${head}: ${state.quantity.symbol}`;
    find(".statistics caption span").textContent = title;
    plot.setAttribute("aria-label", `Histogram of ${title}, ${shown(state.row.total)} entries`);
    setView(wholeRange(state.row));
  }
  const order = (quantity) => Object.keys(data.quantities).indexOf(quantity);

  for (const name of LISTS) {
    select(name).addEventListener("change", (event) => {
      chosen[name] = event.target.values[event.target.selectedIndex];
      choose();
      live.textContent = plot.getAttribute("aria-label");
    });
  }
  for (const radio of root.querySelectorAll("[name=scale]")) {
    radio.addEventListener("change", () => { state.log = radio.value === "log"; redraw(); });
  }
  for (const box of root.querySelectorAll("[name=law]")) {
    box.addEventListener("change", () => {
      state.laws[box.checked ? "add" : "delete"](box.value);
      redraw();
    });
  }
  const buttons = { in: () => zoom(0.5), out: () => zoom(2), reset: () => setView(wholeRange(state.row)) };
  for (const [name, act] of Object.entries(buttons)) find(`[data-zoom=${name}]`).addEventListener("click", act);

  listenToKeys(plot, state, { moveTo, zoom, fullest, reset: buttons.reset });
  listenToPointers(plot, state, { pointAt, zoom, pan, setView, redraw, reset: buttons.reset });

  Object.assign(chosen, burstiest(data));
  root.hidden = false;
  document.documentElement.classList.add("explores");
  choose();
  let drawn = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth && plot.clientWidth !== drawn) { drawn = plot.clientWidth; redraw(); }
  }).observe(plot);
}

function burstiest(data) { // of the first model, where the page opens: its heaviest-tailed response
  const at = data.statistics.findIndex(([name]) => name === "excess_kurtosis");
  const whole = data.rows.filter((row) => row.model === 0 && row.head === data.whole);
  const names = ["qkx", "qk", "x"].filter((name) => whole.some((row) => row.quantity === name));
  const rows = whole.filter((row) => row.quantity === names[0]);
  const first = rows.reduce((best, row) => (row.values[at] > best.values[at] ? row : best), rows[0]);
  return { model: 0, block: first.block, quantity: first.quantity, head: data.whole };
}

function listenToKeys(plot, state, { moveTo, zoom, fullest, reset }) {
  const step = (bins) => moveTo(state.cursor === null ? fullest() : state.cursor + bins * state.grid.width);
  const centre = () => state.cursor ?? undefined;
  const keys = {
    ArrowLeft: () => step(-1), ArrowRight: () => step(1),
    PageDown: () => step(-10), PageUp: () => step(10),
    Home: () => moveTo(-Infinity), End: () => moveTo(Infinity),
    "+": () => zoom(0.5, centre()), "=": () => zoom(0.5, centre()), "-": () => zoom(2, centre()), 0: reset,
  };
  plot.addEventListener("keydown", (event) => {
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    keys[event.key]();
  });
  plot.addEventListener("focus", () => {
    if (state.cursor === null && plot.matches(":focus-visible")) moveTo(fullest());
  });
}

function listenToPointers(plot, state, { pointAt, zoom, pan, setView, redraw, reset }) {
  const at = (event) => event.clientX - plot.getBoundingClientRect().left;
  const down = new Map(); // pointers that are, with where they were last
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    down.set(event.pointerId, at(event));
    plot.setPointerCapture(event.pointerId);
    pointAt(state.valueAt(at(event)));
    state.selection = event.pointerType === "mouse" ? [at(event), at(event)] : null;
  });
  plot.addEventListener("pointermove", (event) => {
    const here = at(event);
    if (down.has(event.pointerId) && down.size === 2) pinch(event.pointerId, here);
    else {
      if (state.selection) state.selection[1] = here;
      pointAt(state.valueAt(here));
    }
  });
  function pinch(pointer, here) { // what was under each of two fingers stays there
    const before = [...down.values()];
    const values = before.map((one) => state.valueAt(one));
    down.set(pointer, here);
    const after = [...down.values()];
    if (Math.abs(after[1] - after[0]) < 10 || (values[1] - values[0]) * (after[1] - after[0]) <= 0) return;
    const scale = (values[1] - values[0]) / (after[1] - after[0]);
    const width = plot.clientWidth - MARGIN.left - MARGIN.right;
    const lo = values[0] - scale * (after[0] - MARGIN.left);
    setView([lo, lo + scale * width]);
  }
  const release = (event) => {
    down.delete(event.pointerId);
    if (!state.selection) return;
    const [from, to] = [...state.selection].sort((a, b) => a - b);
    state.selection = null;
    if (event.type === "pointerup" && to - from > 6) setView([state.valueAt(from), state.valueAt(to)]);
    else redraw();
  };
  plot.addEventListener("pointerup", release);
  plot.addEventListener("pointercancel", release);
  plot.addEventListener("dblclick", reset);
  plot.addEventListener("wheel", (event) => { // the page scrolls until the plot was clicked
    if (!event.ctrlKey && document.activeElement !== plot) return;
    const before = state.view.join();
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan(event.deltaX / plot.clientWidth);
    else zoom(Math.exp(Math.max(-0.5, Math.min(0.5, 0.002 * event.deltaY))), state.valueAt(at(event)));
    if (event.ctrlKey || state.view.join() !== before) event.preventDefault();
  }, { passive: false });
}

for (const root of document.querySelectorAll(".explorer")) explore(root);
