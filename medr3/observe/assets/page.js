"use strict";
// Puts the run's document onto the page, and keeps it up to date where the page is served.

const SECTIONS = [
  ["learning", "Learning"], ["accuracy", "Held-out accuracy"], ["rewards", "Rewards"], ["episodes", "Episodes"], ["rollouts", "Rollouts"], ["speed", "Speed and age"],
  ["retrieval", "Retrieval"], ["learner", "Learner"], ["pool", "Engines"], ["groups", "Groups and time"], ["diary", "Diary"], ["figures", "Figures"],
];
const DRAWN_IN = { learning: "rewards", episodes: "rollouts" }; // charts' own sections, where the page's have another name
const run = JSON.parse(document.getElementById("data").textContent);
const parts = new Map(); // section → {whole, body}

function build() {
  const main = document.getElementById("main");
  main.replaceChildren(element("dl", { className: "tiles", id: "tiles" }));
  for (const [name, title] of SECTIONS) {
    const body = element("div", { className: ["rewards", "rollouts", "speed", "retrieval", "learner", "pool"].includes(name) ? "grid" : "" });
    const whole = element("section", { id: name, "aria-labelledby": `${name}-title`, hidden: true }, element("h2", { id: `${name}-title` }, title), body);
    parts.set(name, { whole, body, title });
    main.append(whole);
  }
  const zoom = element("button", { id: "zoom", type: "button", hidden: true }, "Whole run");
  zoom.addEventListener("click", () => zoomTo(null));
  const pick = element("button", { id: "pick", type: "button", hidden: true });
  pick.addEventListener("click", () => showStep(Number(pick.value)));
  main.append(element("div", { id: "afloat" }, pick, zoom));
  parts.get("learning").body.append(element("div", { className: "grid", id: "main-charts" }), element("ol", { className: "reasons", id: "reasons" }));
  parts.get("episodes").body.append(...episodeSection(run.live));
}

function show() {
  const last = Math.max(run.last, 4); // the axis of a run that has just begun
  const tones = [...new Set(run.phases.map(phase => phase.name))];
  span.last = last;
  span.bands = run.phases.map(phase => ({ name: phase.name, start: phase.start, end: phase.left_by ? phase.end : last, tone: tones.indexOf(phase.name) % 3 }));
  const left = run.phases.filter(phase => phase.left_by);
  span.marks = left.map((phase, i) => ({ step: phase.end, label: String(i + 1) }));
  showHead();
  showReasons(left);
  drawCharts(tones);
  showAccuracy();
  showGroups();
  showDiary();
  showFigures();
  phasesToChoose(tones);
  parts.get("episodes").whole.hidden = false;
  showNavigation();
}

function showHead() {
  const { word, tone, text } = run.state;
  document.getElementById("state").replaceChildren(element("span", { className: `pill ${tone}` }, word), ` ${text}`);
  document.getElementById("tiles").replaceChildren(...run.tiles.map(([label, value]) => element("div", {}, element("dt", {}, label), element("dd", {}, value))));
  document.title = `${run.name} · ${run.state.word} · medr3`;
  const when = new Date(run.written * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  document.getElementById("written").textContent = run.live
    ? "Served by medr3 from the run’s folder. Nothing on this page is loaded from elsewhere."
    : `Written by medr3 on ${when}. The page holds all it shows; nothing is loaded from elsewhere.`;
}

function showReasons(left) {
  document.getElementById("reasons").replaceChildren(...left.map(phase => element("li", {}, element("span", {},
    element("b", {}, phase.name), ` left at step ${phase.end} by ${phase.left_by}${phase.reason ? `: ${phase.reason}` : ""}`))));
}

const toDraw = []; // charts are drawn once all have their place: how wide one is depends on its neighbours

function chart(key, host, spec) {
  if (!charts.has(key)) {
    const made = new Chart(spec);
    charts.set(key, made);
    host.append(made.figure);
  }
  toDraw.push([charts.get(key), spec]);
}

// A live run's charts come as their figures do; they stand in the order in which the page names them.
function drawAll() {
  const figures = toDraw.map(([one]) => one.figure);
  if (figures.some(figure => !figure.querySelector("canvas"))) for (const figure of figures) figure.parentElement.append(figure);
  for (const [one, spec] of toDraw.splice(0)) one.show(spec);
}

function drawCharts(tones) {
  const host = document.getElementById("main-charts");
  for (const [name] of SECTIONS) if (parts.get(name).body.classList.contains("grid")) parts.get(name).whole.hidden = true;
  const steps = run.columns.step, reward = run.columns["reward/mean"];
  const known = Boolean(reward) || run.probes.length > 0;
  parts.get("learning").whole.hidden = false;
  document.getElementById("nothing")?.remove();
  if (!known) host.before(element("p", { className: "note", id: "nothing" }, "No step has been made yet: curves begin with the first."));
  if (reward) {
    const window = Math.max(5, Math.round(steps.length / 60)); // a sixtieth of the width: noise goes, a dip of a few per cent of the run stays
    const mean = smoothed(steps, reward, window, new Set(run.phases.map(phase => phase.start)));
    chart("reward", host, { title: "Training reward", unit: "mean per episode", whole: true, x: steps, marked: true, series: [
      { name: "each step", values: reward, colour: 0, faint: true }, { name: `mean of ${window} steps`, values: mean, colour: 0 }] });
  }
  if (run.probes.length) heldoutChart(host, tones);
  for (const drawn of run.charts) {
    const { whole, body } = parts.get(DRAWN_IN[drawn.section] ?? drawn.section);
    whole.hidden = false;
    const series = drawn.series.map((each, i) => ({ name: each.name, values: run.columns[each.metric], colour: i % PALETTE }));
    chart(drawn.title, body, { ...drawn, x: steps, series });
  }
  lanesChart();
  drawAll();
}

// One curve per stay in a phase: each phase is probed with questions of its own.
function heldoutChart(host, tones) {
  const x = [...new Set(run.probes.map(probe => probe.step))].sort((a, b) => a - b), at = new Map(x.map((step, i) => [step, i]));
  const series = run.phases.map(phase => {
    const values = x.map(() => null), whiskers = x.map(() => null);
    for (const probe of run.probes) {
      if (probe.phase !== phase.name || probe.step < phase.start || probe.step > phase.end) continue;
      values[at.get(probe.step)] = probe.score;
      whiskers[at.get(probe.step)] = [probe.low, probe.high];
    }
    return { name: phase.name, values, whiskers, colour: tones.indexOf(phase.name) % 3, dots: true };
  }).filter(each => each.values.some(value => value !== null));
  chart("heldout", host, { title: "Held-out accuracy", unit: "greedy probes, with 95 % intervals", whole: true, marked: true, top: 1.02, x, series });
}

function lanesChart() {
  const { lanes, left_out } = run.engines;
  if (!lanes.length) return;
  const { whole, body } = parts.get("pool");
  whole.hidden = false;
  const steps = Array.from({ length: span.last + 1 }, (_, i) => i);
  const unit = "for which steps each had the newest weights; red where it refused them" + (left_out ? `; ${left_out} older engines are not shown` : "");
  chart("lanes", body, { title: "Engines over time", unit, whole: true, x: steps, lanes, series: [{ name: "", values: steps.map(() => null), colour: 2 }],
    height: () => 44 + Math.max(lanes.length, 2) * (lanes.length > 24 ? 12 : 24) });
}

function table(head, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, head.map(text => element("th", { scope: "col" }, text)))), element("tbody", {}, rows));
}

function showAccuracy() {
  const { whole, body } = parts.get("accuracy"), { columns, rows } = run.accuracy;
  whole.hidden = !rows.length;
  const cell = one => one === null ? element("td", {}, "–") : element("td", {}, element("b", {}, one.accuracy.toFixed(3)),
    one.n ? element("span", { className: "unit" }, `${one.low.toFixed(2)}–${one.high.toFixed(2)}`) : "",
    one.without === null ? "" : element("div", {}, element("small", {}, `${one.without.toFixed(3)} without retrieval`)));
  const lines = rows.map(row => element("tr", {}, element("th", { scope: "row" }, row.stage),
    element("td", {}, element("b", {}, row.all === null || row.all === undefined ? "–" : row.all.toFixed(3))), row.cells.map(cell)));
  body.replaceChildren(element("div", { className: "card", tabIndex: 0, role: "group", "aria-label": "Held-out accuracy by stage and phase" }, table(["after", "all questions", ...columns], lines)),
    element("p", { className: "soft" }, "Each stage is asked the questions of every phase, greedily; small figures are 95 % intervals."));
}

function showGroups() {
  const { whole, body } = parts.get("groups"), { admitted, counts, open, why } = run.endings;
  const all = { ...counts, ...(open ? { open } : {}) }, total = Object.values(all).reduce((sum, n) => sum + n, 0);
  whole.hidden = !total && !run.stages.length;
  const groups = element("div", {}, element("h3", {}, "What became of the groups"), admitted ? element("p", {}, `${admitted.toLocaleString()} groups were admitted.`) : "",
    element("div", { className: "bar", "aria-hidden": "true" }, Object.entries(all).filter(([, n]) => n).map(([name, n]) => {
      const piece = element("div", { className: name });
      piece.style.flexGrow = n;
      return piece;
    })),
    element("ul", { className: "legend filled" }, Object.entries(all).map(([name, n]) => element("li", { className: name }, element("i"), element("b", {}, n.toLocaleString()), ` ${name}`))),
    why.length ? table(["ending", "reason", "times"], why.map(([kind, reason, n]) => element("tr", {}, element("td", { className: "kind" }, kind), element("td", {}, reason), element("td", { className: "number" }, n.toLocaleString())))) : "");
  const longest = Math.max(...run.stages.map(([, seconds]) => seconds), 1e-9);
  const time = element("div", {}, element("h3", {}, "Where the time went"), table(["stage", "seconds", ""], run.stages.map(([stage, seconds]) => {
    const bar = element("div");
    bar.style.width = `${(100 * seconds) / longest}%`;
    return element("tr", {}, element("th", { scope: "row" }, stage.replaceAll("_", " ")), element("td", { className: "number" }, readable(seconds)), element("td", { className: "meter", "aria-hidden": "true" }, bar));
  })));
  body.className = "two";
  body.replaceChildren(...[total ? groups : null, run.stages.length ? time : null].filter(Boolean).map(one => { one.className = "card"; return one; }));
}

function showDiary() {
  const { whole, body } = parts.get("diary");
  whole.hidden = !run.diary.length;
  const when = seconds => new Date(seconds * 1000).toLocaleString([], { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  body.replaceChildren(element("div", { className: "card diary", tabIndex: 0, role: "group", "aria-label": "What happened to the run" },
    table(["when", "step", "what", ""], [...run.diary].reverse().map(line => element("tr", {}, element("td", {}, when(line.time)), element("td", {}, String(line.step)), element("td", {}, line.kind), element("td", {}, line.text))))));
}

// The same figures as a table, for those who cannot see curves, or want a number.
function showFigures() {
  const { whole, body } = parts.get("figures"), steps = run.columns.step;
  whole.hidden = !steps.length;
  const open = body.querySelector("details")?.open ?? false;
  const stays = run.phases.map(phase => steps.flatMap((step, i) => (step > phase.start && step <= phase.end ? [i] : [])).slice(-5)).map((rows, i) => [run.phases[i].name, rows]).filter(([, rows]) => rows.length);
  const lines = [...(run.columns["reward/mean"] ? [["Training reward", "reward/mean"]] : []), ...run.charts.flatMap(drawn => drawn.series.map(each => [drawn.series.length > 1 ? `${drawn.title}: ${each.name}` : drawn.title, each.metric]))];
  const mean = (values, rows) => {
    const known = rows.map(i => values[i]).filter(value => value !== null);
    return known.length ? readable(known.reduce((sum, one) => sum + one, 0) / known.length) : "–";
  };
  const rows = lines.map(([title, metric]) => element("tr", {}, element("th", { scope: "row" }, title), stays.map(([, at]) => element("td", { className: "number" }, mean(run.columns[metric], at)))));
  body.replaceChildren(element("details", { className: "figures", open }, element("summary", {}, "Every curve as a number: the mean of each phase’s last five steps"),
    element("div", { className: "card", tabIndex: 0, role: "group", "aria-label": "Every curve as a number" }, table(["curve", ...stays.map(([name]) => name)], rows))));
}

function showNavigation() {
  const links = SECTIONS.filter(([name]) => !parts.get(name).whole.hidden).map(([name, title]) => element("a", { href: `#${name}` }, title));
  const nav = document.getElementById("nav");
  if (nav.childElementCount !== links.length) nav.replaceChildren(...links);
}

// What the server sends: everything but the columns, and the columns from one row on.
function take(update) {
  const { columns, from, ...rest } = update, before = run.columns.step.length;
  const merged = {};
  for (const [name, values] of Object.entries(columns)) {
    const old = from ? (run.columns[name] ?? Array(before).fill(null)).slice(0, from) : [];
    merged[name] = [...old, ...values];
  }
  Object.assign(run, rest, { columns: merged });
  show();
  if (!browser.list.children.length) listEpisodes();
}

function follow() {
  const link = document.getElementById("link");
  link.hidden = false;
  link.textContent = "live";
  let updated = Date.now(), lost = false;
  const source = new EventSource(`live?from=${encodeURIComponent(run.revision)}`);
  source.addEventListener("run", event => { take(JSON.parse(event.data)); updated = Date.now(); });
  source.onopen = () => { lost = false; };
  source.onerror = () => { lost = true; };
  setInterval(() => {
    const seconds = Math.round((Date.now() - updated) / 1000);
    const ago = seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
    link.textContent = lost ? "The server does not answer; trying again …" : `live · last change ${ago} ago`;
  }, 1000);
}

// A click, or Enter, on a chart offers the episodes of its step; going there at once would surprise whoever only wanted the figures.
function offerStep(plot) {
  const pick = document.getElementById("pick"), clicked = [...charts.values()].find(one => one.plot === plot);
  const step = clicked?.spec.x[clicked.drawn.cursor.idx];
  if (!step) return;
  pick.hidden = false;
  pick.value = step;
  pick.textContent = `Episodes of step ${step}`;
}

function showStep(step) {
  document.getElementById("pick").hidden = true;
  browser.step.value = step;
  want("step", String(step));
  document.getElementById("episodes").scrollIntoView();
}

build();
show();
listEpisodes();
if (run.live) {
  const main = document.getElementById("main");
  main.addEventListener("click", event => offerStep(event.target.closest(".plot")));
  main.addEventListener("keydown", event => { if (event.key === "Enter") offerStep(event.target.closest(".plot")); });
  follow();
}
