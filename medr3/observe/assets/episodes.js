"use strict";
// The episode browser: a list that is filtered, and cards that open. A served page asks for what it shows; a report holds a sample.

const LEVELS = ["unknown", "I", "II", "III", "IV", "V", "VI"];
const CHOICES = {
  verdict: [["", "right and wrong"], ["right", "right"], ["wrong", "wrong"]],
  outcome: [["", "any"], ["trained", "trained"], ["dropped", "dropped"], ["voided", "voided"], ["rolled_back", "rolled back"]],
};
const browser = { wanted: { phase: "", verdict: "", outcome: "", step: "", words: "" }, next: null, asked: 0 };

function episodeSection(live) {
  browser.live = live;
  browser.list = element("div", { id: "episodes-list" });
  browser.more = element("button", { type: "button", hidden: true }, "Show more");
  browser.more.addEventListener("click", () => listEpisodes(true));
  browser.count = element("p", { className: "soft", role: "status" });
  const filters = element("form", { className: "filters" });
  filters.addEventListener("submit", event => { event.preventDefault(); listEpisodes(); });
  browser.phase = select("phase", "phase", [["", "all phases"]]);
  filters.append(browser.phase.label, select("answer", "verdict", CHOICES.verdict).label);
  if (live) filters.append(select("group", "outcome", CHOICES.outcome).label, input("step", "step", "number", "any"));
  filters.append(input("id contains", "words", "search", "question, group or episode"));
  return [filters, browser.count, browser.list, browser.more];
}

function select(title, name, choices) {
  const field = element("select", { name }, choices.map(([value, text]) => element("option", { value }, text)));
  field.addEventListener("change", () => want(name, field.value));
  return { field, label: element("label", {}, title, field) };
}

function input(title, name, type, placeholder) {
  const field = element("input", { name, type, placeholder, autocomplete: "off" });
  if (type === "number") field.min = 1;
  field.addEventListener("change", () => want(name, field.value.trim()));
  browser[name] = field;
  return element("label", {}, title, field);
}

function want(name, value) {
  browser.wanted[name] = value;
  listEpisodes();
}

function phasesToChoose(names) {
  const field = browser.phase.field;
  if (field.options.length === names.length + 1) return;
  field.replaceChildren(...[["", "all phases"], ...names.map(name => [name, name])].map(([value, text]) => element("option", { value }, text)));
  field.value = browser.wanted.phase;
}

async function listEpisodes(more = false) {
  const turn = ++browser.asked;
  if (!more) browser.next = null;
  browser.more.disabled = true;
  let found;
  try {
    found = browser.live ? await asked(more) : chosen();
  } catch (error) {
    browser.count.textContent = `The episodes could not be read: ${error.message}`;
    browser.more.disabled = false;
    return;
  }
  if (turn !== browser.asked) return; // another question was asked meanwhile
  if (!more) {
    browser.list.replaceChildren();
    browser.group = null; // of the episode above: those of one question stand together
  }
  for (const one of found.episodes) {
    if (browser.live && one.group_id !== browser.group) browser.list.append(element("h3", { className: "group" }, one.question_id, element("span", { className: "unit" }, `group ${one.group_id}`)));
    browser.group = one.group_id;
    browser.list.append(card(one));
  }
  browser.next = found.next;
  browser.more.hidden = !found.next;
  browser.more.disabled = false;
  const shown = browser.list.querySelectorAll("details").length;
  const filtered = Object.values(browser.wanted).some(Boolean);
  if (shown) browser.count.textContent = browser.live ? `${shown} shown, newest first${found.next ? "; there are more" : ""}` : `${shown} of a sample from all over the run, newest first`;
  else if (found.next) browser.count.textContent = "None among the newest steps; show more looks further back.";
  else browser.count.textContent = filtered ? "No episode is like that." : "No episode has been stored yet: the first come with the first step.";
}

async function asked(more) {
  const query = new URLSearchParams(Object.entries(browser.wanted).filter(([, value]) => value));
  if (more && browser.next) query.set("after", browser.next);
  const answer = await fetch(`episodes?${query}`);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

function chosen() {
  const { phase, verdict, words } = browser.wanted;
  const fits = one => (!phase || one.phase === phase) && (!verdict || one.correct === (verdict === "right"))
    && (!words || [one.group_id, one.episode_id, one.question_id].some(id => id.includes(words)));
  return { episodes: run.episodes.filter(fits), next: null };
}

function card(one) {
  const verdict = one.correct ? "right" : "wrong";
  const ended = one.outcome === "trained" ? "" : ` · ${one.outcome.replace("_", " ")}`;
  const searches = one.searches === 1 ? "1 search" : `${one.searches} searches`;
  const body = element("div", { className: "body" });
  const made = element("details", { className: "episode" },
    element("summary", {},
      element("span", {}, element("span", { className: `pill ${verdict}` }, verdict)),
      element("span", { className: "what" }, element("b", {}, one.phase), ` · ${one.source} · ${one.kind}`),
      element("span", { className: "reward" }, one.reward.toFixed(2)),
      element("span", { className: "gist" }, `step ${one.step} · ${searches} · ended by ${one.finish || "?"}${ended}${browser.live ? "" : ` · ${one.question_id}`}`)),
    body);
  made.addEventListener("toggle", () => { if (made.open && !body.childElementCount) fill(body, one); });
  return made;
}

async function fill(body, one) {
  let whole = one.whole;
  if (!whole) {
    body.replaceChildren(element("p", { className: "soft" }, "reading …"));
    try {
      const answer = await fetch(`episode?place=${encodeURIComponent(one.place)}`);
      if (!answer.ok) throw new Error((await answer.text()).trim());
      whole = await answer.json();
    } catch (error) {
      body.replaceChildren(element("p", {}, `This episode could not be read: ${error.message}`));
      setTimeout(() => body.replaceChildren(), 3000); // opening it again tries again
      return;
    }
  }
  body.replaceChildren(question(whole), ...whole.turns.map((turn, i) => turnBlock(turn, i, whole.turns.length)), paid(one, whole), about(one, whole));
}

function question(whole) {
  const asked = whole.question;
  if (!asked) return element("div", { className: "asked soft" }, "What was asked is not known here: the run’s settings or its tokenizer are missing.");
  if (!asked.gold) return element("div", { className: "asked" }, element("b", {}, "Prompt "), asked.text);
  const options = Object.entries(asked.options).map(([letter, text]) => element("li", { className: letter === asked.gold ? "gold" : "" }, `${letter}: ${text}`));
  return element("div", { className: "asked" }, element("b", {}, "Question "), asked.text,
    options.length ? element("ol", {}, options) : element("div", {}, "right: ", element("span", { className: "gold" }, asked.gold)),
    asked.documents.map(([id, level, text]) => block({ kind: "document", text, document: id, level, note: "handed over with the question" })));
}

function turnBlock(turn, number, count) {
  const rewards = turn.rewards.map(([name, value]) => element("span", { className: `pill ${value < 0 ? "wrong" : "right"}` }, `${name} ${value < 0 ? "" : "+"}${value.toFixed(2)}`));
  const heading = count > 1 || rewards.length ? element("h4", {}, `Turn ${number + 1}`, rewards) : null;
  return element("section", { className: "turn" }, heading, turn.blocks.map(block));
}

function block(one) {
  const label = { plain: "", thinking: "thinking", search: "searched", call: "called", document: "document", answer: "answered" }[one.kind];
  const parts = [element("span", {}, one.document ? `${label} ${one.document}` : label)];
  if (one.document) parts.push(element("span", { className: `pill level${one.level}` }, `level ${LEVELS[one.level] ?? one.level}`));
  if (one.note) parts.push(element("span", { className: "note-of" }, one.note));
  return element("div", { className: `block ${one.kind}` }, label ? element("div", { className: "label" }, parts) : null, one.text);
}

function paid(one, whole) {
  const rows = whole.rewards.map(([name, value, weight]) => element("tr", {}, element("th", { scope: "row" }, name),
    ...[value.toFixed(3), `× ${weight}`, (value * weight).toFixed(3)].map(text => element("td", { className: "number" }, text))));
  const total = element("tr", {}, element("th", { scope: "row" }, "total"), element("td"), element("td"), element("td", { className: "number" }, element("b", {}, whole.total.toFixed(3))));
  return element("table", { className: "paid" }, element("tbody", {}, rows, total));
}

function about(one, whole) {
  const answered = whole.answer ? `answer “${whole.answer}” was ${one.correct ? "right" : "wrong"}; ` : "";
  const why = whole.reason ? `; ${one.outcome}: ${whole.reason}` : "";
  return element("p", { className: "soft" }, `${answered}episode ${one.episode_id} of group ${one.group_id}; weights ${whole.versions.join(", ") || "unknown"}; temperature ${whole.temperature}; ${whole.generate_s} s generating, ${whole.search_s} s searching${why}`);
}
