"use strict";
// Drawing with uPlot. Every chart has the same x axis of steps, so that crosshair and zoom are shared by all.

const SMALL = 760; // pixels below which charts are drawn for a phone, as in page.css
const PALETTE = 8;
const charts = new Map(); // key → Chart
const span = { last: 4, zoom: null, bands: [], marks: [] }; // what all charts share

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const narrow = () => window.innerWidth <= SMALL;

function readable(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return (value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return Number((value / 1e3).toPrecision(3)) + "k";
  if (size >= 1e3) return value.toFixed(0);
  if (size > 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
  return made;
}

// A trailing mean that starts anew with each phase, because each phase pays a reward of its own.
function smoothed(steps, values, window, starts) {
  let kept = [];
  return values.map((value, i) => {
    if (starts.has(steps[i] - 1)) kept = [];
    if (value !== null) kept.push(value);
    if (kept.length > window) kept.shift();
    return kept.length ? kept.reduce((sum, one) => sum + one, 0) / kept.length : null;
  });
}

class Chart {
  // spec: title, unit, x, series: [{name, values, colour, faint, dots, whiskers}], stacked, top, lanes, marked
  constructor(spec) {
    this.plot = element("div", { className: "plot", tabIndex: 0, role: "img" });
    this.legend = element("ul", { className: "legend" + (spec.stacked ? " filled" : "") });
    this.caption = element("figcaption", {}, element("h3", {}, spec.title), element("span", { className: "unit" }, spec.unit));
    this.figure = element("figure", { className: spec.whole ? "whole" : "" }, this.caption, this.legend, this.plot);
    this.plot.addEventListener("keydown", event => this.walk(event));
    this.spec = spec;
  }

  show(spec) {
    const shape = one => JSON.stringify([one.series.map(each => each.name), one.lanes && one.lanes.map(each => each.engine)]);
    const same = this.drawn && shape(spec) === shape(this.spec) && this.drawn.width === this.plot.clientWidth;
    this.spec = spec;
    if (same) this.drawn.setData(this.data());
    else this.draw();
    this.plot.setAttribute("aria-label", this.described());
    this.tell(null);
  }

  // Stacked values are added up, and drawn from the highest down: each area hides what lies behind it.
  data() {
    const { x, series, stacked } = this.spec;
    if (!stacked) return [x, ...series.map(each => each.values)];
    const sums = x.map(() => 0);
    const none = x.map((_, i) => series.every(each => (each.values[i] ?? null) === null));
    const heaps = series.map(each => each.values.map((value, i) => (none[i] ? null : (sums[i] += value ?? 0))));
    return [x, ...heaps.reverse()];
  }

  draw() {
    this.drawn?.destroy();
    const { series, stacked, lanes } = this.spec;
    const order = stacked ? [...series].reverse() : series;
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: colour("--soft"), font, ticks: { show: false }, grid: { stroke: colour("--grid"), width: 1 } };
    const height = this.spec.height ? this.spec.height() : narrow() ? 190 : this.spec.whole ? 250 : 210;
    const options = {
      width: Math.max(this.plot.clientWidth, 200), height, padding: [18, 16, 0, 0],
      legend: { show: false },
      scales: {
        x: { time: false, range: () => span.zoom ?? [0, span.last] },
        y: { range: (_, low, high) => this.limits(low, high) },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 26, gap: 4, space: 48, values: (_, ticks) => ticks.map(tick => (Number.isInteger(tick) ? readable(tick) : "")) },
        lanes
          ? { ...axis, size: narrow() ? 76 : 96, gap: 8, grid: { show: false }, splits: () => lanes.map((_, i) => i + 0.5), values: () => lanes.map(each => each.engine.replace("engine-", "engine ")).reverse() }
          : { ...axis, size: 46, gap: 6, space: 34, values: (_, ticks) => ticks.map(readable) },
      ],
      cursor: { sync: { key: "run", scales: ["x", null] }, y: false, points: { size: 6, width: 0, show: !stacked && !lanes }, drag: { x: true, y: false, setScale: false, dist: 8 } },
      select: { show: true },
      series: [{}, ...order.map(each => this.style(each, stacked))],
      hooks: {
        drawClear: [u => paintBands(u)],
        draw: [u => { if (lanes) paintLanes(u, this.spec.lanes); this.whiskers(u); if (this.spec.marked) paintMarks(u); }], // of the newest data, not of those drawn first
        setCursor: [u => this.tell(u.cursor.left >= 0 ? u.cursor.idx : null)],
        setSelect: [u => { if (u.select.width > 8) zoomTo([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]); u.setSelect({ width: 0, height: 0 }, false); }],
      },
    };
    this.plot.replaceChildren();
    this.drawn = new uPlot(options, this.data(), this.plot);
    this.drawn.over.addEventListener("dblclick", () => zoomTo(null));
  }

  limits(low, high) {
    const { lanes, top, stacked } = this.spec;
    if (lanes) return [0, lanes.length];
    if (low === null || high === null) return [0, 1];
    const tallest = Math.max(high, 0, ...this.spec.series.flatMap(each => (each.whiskers ?? []).map(one => one?.[1] ?? 0)));
    const ceiling = top ?? (stacked && tallest > 0.9 && tallest <= 1.0001 ? 1 : tallest * 1.06);
    return [Math.min(low, 0) * 1.06, ceiling > 0 ? ceiling : low < 0 ? 0 : 1];
  }

  style(each, stacked) {
    const known = each.values.filter(value => value !== null).length, few = known < 2;
    if (stacked) return { fill: colour(`--f${each.colour}`), stroke: colour("--card"), width: 0.5, points: { show: false } };
    return {
      stroke: colour(`--c${each.colour}`), width: each.faint ? 1 : 2, alpha: each.faint ? 0.4 : 1, spanGaps: true,
      points: { show: !each.faint && ((each.dots && known < 150) || few), size: each.faint ? 3 : 6, fill: colour(`--c${each.colour}`) },
    };
  }

  whiskers(u) {
    const { ctx } = u;
    ctx.save();
    ctx.lineWidth = 1.5 * devicePixelRatio;
    ctx.globalAlpha = 0.5;
    for (const each of this.spec.series) {
      if (!each.whiskers) continue;
      ctx.strokeStyle = colour(`--c${each.colour}`);
      this.spec.x.forEach((step, i) => {
        if (!each.whiskers[i]) return;
        const x = u.valToPos(step, "x", true);
        if (x < u.bbox.left || x > u.bbox.left + u.bbox.width) return;
        ctx.beginPath();
        ctx.moveTo(x, u.valToPos(each.whiskers[i][0], "y", true));
        ctx.lineTo(x, u.valToPos(each.whiskers[i][1], "y", true));
        ctx.stroke();
      });
    }
    ctx.restore();
  }

  // The figures at a step, or the last ones, beside the names of the curves.
  tell(index) {
    const { x, series, lanes, stacked } = this.spec;
    if (lanes) return this.tellLanes(index);
    const last = values => values.findLastIndex(value => value !== null);
    const end = Math.max(...series.map(each => last(each.values)));
    const items = series.map(each => {
      const at = index ?? (stacked ? end : last(each.values));
      const value = each.values[at] ?? (stacked ? 0 : null), whisker = each.whiskers?.[at];
      const known = value !== null && value !== undefined;
      const said = known && whisker ? `${readable(value)} (${readable(whisker[0])}–${readable(whisker[1])})` : readable(value);
      const kind = (this.spec.stacked ? "f" : "c") + each.colour + (each.faint ? " faint" : "");
      if (index !== null && !known && each.dots) return null;
      return element("li", { className: kind }, element("i"), each.name + " ", element("b", {}, said));
    }).filter(Boolean);
    if (index !== null && x[index] !== undefined) items.unshift(element("li", {}, "step ", element("b", {}, String(x[index]))));
    this.legend.replaceChildren(...items);
  }

  tellLanes(index) {
    const step = index === null ? span.last : this.spec.x[index];
    const serving = this.spec.lanes.filter(lane => lane.served.some(([first, last, ok]) => ok && first <= step && step <= last)).length;
    this.legend.replaceChildren(element("li", {}, index === null ? "at the last step " : `step ${step}: `, element("b", {}, `${serving} with its weights`)));
  }

  described() {
    const { title, unit, x, series, lanes } = this.spec;
    if (lanes) return `${title}: ${lanes.length} engines`;
    const parts = series.filter(each => !each.faint).map(each => {
      const known = each.values.filter(value => value !== null);
      return known.length ? `${each.name} from ${readable(known[0])} to ${readable(known[known.length - 1])}` : "";
    }).filter(Boolean);
    return `${title}, ${unit}, steps ${x[0] ?? 0} to ${x[x.length - 1] ?? 0}: ${parts.join("; ")}. Arrow keys read single steps.`;
  }

  // Arrow keys move the crosshair, and what it shows is spoken.
  walk(event) {
    const { x } = this.spec, now = this.drawn.cursor.idx ?? x.length - 1;
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: x.length - 1 }[event.key];
    if (event.key === "Escape") zoomTo(null);
    if (to === undefined || !x.length) return;
    event.preventDefault();
    const index = Math.min(Math.max(to, 0), x.length - 1);
    this.drawn.setCursor({ left: this.drawn.valToPos(x[index], "x"), top: 10 }, true, true);
    this.tell(index);
    document.getElementById("spoken").textContent = [...this.legend.children].map(item => item.textContent).join(", ");
  }
}

function paintBands(u) {
  const { ctx, bbox } = u, ratio = devicePixelRatio;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, 0, bbox.width, bbox.top + bbox.height);
  ctx.clip();
  ctx.font = `600 ${11 * ratio}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.textAlign = "left";
  span.bands.forEach((band, i) => {
    const left = u.valToPos(band.start, "x", true), right = u.valToPos(band.end, "x", true);
    ctx.fillStyle = colour(`--b${band.tone}`);
    ctx.fillRect(left, 0, right - left, bbox.top + bbox.height);
    const from = Math.max(left, bbox.left) + 5 * ratio, room = Math.min(right, bbox.left + bbox.width) - from - 4 * ratio;
    ctx.fillStyle = colour(`--t${band.tone}`);
    let label = band.name;
    while (label.length > 2 && ctx.measureText(label).width > room) label = label.slice(0, -2) + "…";
    if (label.length > 2) ctx.fillText(label, from, 9 * ratio);
  });
  ctx.restore();
}

// Numbered lines where a phase was left; the list below the chart gives the controller's reasons.
function paintMarks(u) {
  const { ctx, bbox } = u, ratio = devicePixelRatio, bottom = bbox.top + bbox.height;
  ctx.save();
  ctx.textAlign = "center";
  ctx.textBaseline = "middle";
  ctx.font = `700 ${10 * ratio}px system-ui, sans-serif`;
  for (const mark of span.marks) {
    const x = u.valToPos(mark.step, "x", true);
    if (x < bbox.left || x > bbox.left + bbox.width + 1) continue;
    ctx.strokeStyle = colour("--soft");
    ctx.lineWidth = ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bottom);
    ctx.stroke();
    ctx.setLineDash([]);
    ctx.fillStyle = colour("--ink");
    ctx.beginPath();
    ctx.arc(Math.min(x, bbox.left + bbox.width - 1), bottom - 11 * ratio, 8 * ratio, 0, 2 * Math.PI);
    ctx.fill();
    ctx.fillStyle = colour("--card");
    ctx.fillText(mark.label, Math.min(x, bbox.left + bbox.width - 1), bottom - 10.5 * ratio);
  }
  ctx.restore();
}

function paintLanes(u, lanes) {
  const { ctx, bbox } = u, ratio = devicePixelRatio, thick = Math.min(0.56 * (bbox.height / lanes.length), 14 * ratio);
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, 0, bbox.width, bbox.top + bbox.height);
  ctx.clip();
  lanes.forEach((lane, i) => {
    const y = u.valToPos(lanes.length - i - 0.5, "y", true);
    for (const [first, last, ok] of lane.served) {
      const left = u.valToPos(first, "x", true), right = u.valToPos(last + 1, "x", true);
      ctx.fillStyle = colour(ok ? "--c2" : "--wrong");
      ctx.beginPath();
      ctx.roundRect(left, y - thick / 2, Math.max(right - left, 3 * ratio), thick, Math.min(thick / 2, 3 * ratio));
      ctx.fill();
    }
  });
  ctx.restore();
}

function zoomTo(limits) {
  if (limits) limits = [Math.max(0, Math.floor(limits[0])), Math.ceil(limits[1])];
  span.zoom = limits && limits[1] > limits[0] ? limits : null;
  const [min, max] = span.zoom ?? [0, span.last];
  for (const chart of charts.values()) chart.drawn?.setScale("x", { min, max });
  document.getElementById("zoom").hidden = !span.zoom;
}

function redrawAll() {
  for (const chart of charts.values()) chart.draw(), chart.tell(null);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
let resizing = 0, drawnFor = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth === drawnFor) return; // a phone's address bar changes the height alone
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => { drawnFor = window.innerWidth; redrawAll(); });
});
