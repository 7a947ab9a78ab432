// The page of a server. Everything shown is put in as text, never as markup.

const $ = (id) => document.getElementById(id);
const TOP = 10;
const state = { scenarios: [], user: null, scenario: 0, chosen: -1, asked: 0 };

function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function svg(tag, properties) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
  return made;
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

async function ask(address, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = body ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "content-type": "application/json" } } : { headers };
  const answer = await fetch(address, options);
  if (answer.status === 401) {
    $("login").hidden = false;
    throw new Error(token ? "the token is not the server's" : "a token is needed");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error.message);
  return content;
}

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    say(`That did not work: ${error.message}`, true);
  }
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const day = (text) => text.slice(0, 10);
const signed = (value, digits = 2) => (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(digits);

// Scenarios

async function showScenarios() {
  const answer = await ask("/v1/scenarios");
  $("login").hidden = true;
  state.scenarios = answer.scenarios;
  $("name").textContent = answer.name;
  document.title = `${answer.name} · llm4msr`;
  $("about").textContent = `What a model predicts for a user in each scenario, and why. Bundle ${answer.bundle}.`;
  $("scenarios").replaceChildren(...answer.scenarios.map((scenario) =>
    el("article", { class: "card" },
      el("h3", {}, scenario.title),
      scenario.description ? el("p", {}, scenario.description) : null,
      scenario.notes ? el("p", { class: "quiet" }, `Notes: ${scenario.notes}`) : null,
      el("dl", { class: "facts" },
        el("dt", {}, "training rows"), el("dd", {}, scenario.rows.toLocaleString("en")),
        el("dt", {}, "click rate"), el("dd", {}, scenario.click_rate === null ? "–" : percent(scenario.click_rate)),
        el("dt", {}, "test AUC"), el("dd", {}, scenario.auc === null ? "–" : scenario.auc.toFixed(4))),
      scenario.text ? el("details", {}, el("summary", {}, "What the LLM wrote of it"), el("p", { class: "text" }, scenario.text)) : null)));
  showMap(answer.scenarios);
}

function showMap(scenarios) {
  if (scenarios.length < 2 || scenarios[0].similarity === null) return;
  const head = el("tr", {}, el("td"), ...scenarios.map((s) => el("th", { scope: "col" }, s.title)));
  const lines = scenarios.map((row) => el("tr", {}, el("th", { scope: "row" }, row.title),
    ...row.similarity.map((value) => {
      const cell = el("td", {}, signed(value));
      const strength = Math.round(Math.min(1, Math.abs(value)) * 60);
      cell.style.background = `color-mix(in srgb, var(${value >= 0 ? "--up" : "--down"}) ${strength}%, transparent)`;
      return cell;
    })));
  $("map").replaceChildren(
    el("h3", {}, "How alike the LLM finds them"),
    el("p", { class: "quiet" }, "Cosine of the scenarios' vectors, each against the mean of all: +1 the same, −1 opposed. Few scenarios are mostly opposed, since the mean lies between them."),
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...lines)));
}

// One user

async function showUser(user) {
  const turn = ++state.asked;
  say(`Looking up ${user} …`);
  const address = `/v1/users/${encodeURIComponent(user)}`;
  const history = await ask(`${address}/history?limit=5`);
  const knowledge = await ask(`${address}/knowledge`).catch(() => null);
  if (turn !== state.asked) return;
  state.user = user;
  $("person").hidden = $("ranking").hidden = false;
  $("person-title").textContent = `User ${user}`;
  $("history").replaceChildren(...history.scenarios.map((part) => historyCard(part, true)));
  $("knowledge").replaceChildren(...knowledgeCards(knowledge));
  location.hash = `user=${encodeURIComponent(user)}`;
  showTabs();
  await showRanking();
  if (turn === state.asked) say("");
}

const titleOf = (value) => (state.scenarios.find((s) => s.value === value) ?? { title: value }).title;

function historyCard(part, open) {
  const lines = part.latest.map((line) => el("li", {},
    el("span", {}, line.title, line.since_export ? el("b", { class: "up" }, " new") : null),
    el("time", { datetime: line.time }, `${day(line.time)} · ${line.behaviour}`)));
  return el("details", { open: open && part.count > 0 },
    el("summary", {}, `${titleOf(part.scenario)}: ${part.count.toLocaleString("en")}`),
    el("ul", { class: "lines" }, ...(lines.length ? lines : [el("li", {}, "nothing yet")])));
}

function knowledgeCards(knowledge) {
  if (knowledge === null || knowledge.snapshot === null) {
    return [el("p", { class: "card" }, knowledge === null ? "Nothing was known of this user when the bundle was made." : knowledge.note)];
  }
  const cards = [];
  if (knowledge.common.length) cards.push(sideCard("In common to all scenarios", knowledge.common));
  for (const [scenario, lines] of Object.entries(knowledge.distinct)) cards.push(sideCard(`Only in ${scenario}`, lines));
  const text = knowledge.text || "The vector of this user needed no text. `llm4msr explain` has the LLM write one; the next export takes it up.";
  cards.push(el("div", { class: "card" },
    el("p", { class: "text" }, text),
    el("p", { class: "quiet" }, `Snapshot of ${day(knowledge.snapshot)}${knowledge.finish_reason ? `, ended by ${knowledge.finish_reason}` : ""}. Written by a language model; it can be wrong.`)));
  cards.push(el("details", {}, el("summary", {}, "The history it was made from"),
    ...knowledge.history.map((part) => historyCard(part, true))));
  return cards;
}

const sideCard = (title, lines) => el("div", { class: "card" }, el("h3", {}, title), el("ul", {}, ...lines.map((line) => el("li", {}, line))));

// Rankings

function showTabs() {
  $("tabs").replaceChildren(...state.scenarios.map((scenario, place) => el("button", {
    role: "tab", type: "button", "aria-selected": String(place === state.scenario), "aria-controls": "lists",
    tabindex: place === state.scenario ? "0" : "-1",
    onclick: () => chooseTab(place),
    onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) chooseTab((place + step + state.scenarios.length) % state.scenarios.length);
    },
  }, scenario.title)));
}

function chooseTab(place) {
  state.scenario = place;
  showTabs();
  $("tabs").children[place].focus();
  attempt(showRanking);
}

async function showRanking() {
  const scenario = state.scenarios[state.scenario];
  const [user, place] = [state.user, state.scenario];
  const body = { user, scenario: scenario.value, features: scenario.context, top: 2000 };
  const own = await ask("/v1/rank", body);
  const mean = await ask("/v1/rank", { ...body, knowledge: "mean" });
  if (user !== state.user || place !== state.scenario) return;
  const places = (ranking) => new Map(ranking.items.map((item, rank) => [item.item, rank]));
  const [inOwn, inMean] = [places(own), places(mean)];
  $("why").hidden = true;
  $("ranking-note").textContent = `The ${own.items.length} items shown most in ${scenario.title}, ranked for this user` +
    (own.knowledge_known ? ", and as they would be with the mean of all users' knowledge instead. Choose one to see why." : ". The model knows nothing of this user beside id and features. Choose an item to see why.");
  const lists = own.knowledge_known
    ? [rankedList("With this user's knowledge", own, inMean), rankedList("With the mean knowledge", mean, inOwn, true)]
    : [rankedList("Ranked for this user", own)];
  $("lists").replaceChildren(...lists);
}

function rankedList(title, ranking, other, reversed = false) {
  const lines = ranking.items.slice(0, TOP).map((item, rank) => {
    const moved = other ? (other.get(item.item) - rank) * (reversed ? -1 : 1) : 0;
    const sign = !other ? "" : moved === 0 ? "=" : `${moved > 0 ? "▲" : "▼"} ${Math.abs(moved)}`;
    return el("li", {}, el("button", { type: "button", "aria-pressed": "false", onclick: (event) => attempt(() => showWhy(item, event.currentTarget)) },
      el("span", { class: "rank" }, String(rank + 1)),
      el("span", {}, item.title === item.item ? item.title : `${item.title} (${item.item})`),
      el("span", { class: "score" }, percent(item.score)),
      el("span", { class: `moved ${moved > 0 ? "up" : moved < 0 ? "down" : ""}`, title: "places won (▲) or lost (▼) by this user's knowledge" }, sign)));
  });
  return el("div", { class: "card" }, el("h3", {}, title), el("ol", { class: "ranked" }, ...lines));
}

async function showWhy(item, button) {
  for (const other of document.querySelectorAll("ol.ranked button")) other.setAttribute("aria-pressed", String(other === button));
  const scenario = state.scenarios[state.scenario];
  const body = { user: state.user, scenario: scenario.value, item: item.item, features: scenario.context };
  const why = await ask("/v1/explain", body);
  if (!button.isConnected || button.getAttribute("aria-pressed") !== "true") return;
  const lines = [...why.contributions];
  if (Math.abs(why.remainder) >= 0.005) lines.push({ name: "remainder", kind: "of the integral", contribution: why.remainder });
  const most = Math.max(...lines.map((line) => Math.abs(line.contribution)), 1e-9);
  const rows = lines.map((line) => el("tr", {},
    el("th", { scope: "row" }, line.name, " ", el("span", { class: "quiet" }, line.kind === "field" ? "" : line.kind)),
    el("td", { class: "bar" }, bar(line.contribution / most)),
    el("td", { class: "number" }, signed(line.contribution))));
  const facts = [el("dt", {}, "probability"), el("dd", {}, percent(why.score))];
  if (why.score_with_mean_user !== null) facts.push(el("dt", {}, "with the mean user's knowledge"), el("dd", {}, percent(why.score_with_mean_user)));
  if (why.score_with_mean_scenario !== null) facts.push(el("dt", {}, "with the mean scenario's knowledge"), el("dd", {}, percent(why.score_with_mean_scenario)));
  if (why.branches !== null) facts.push(el("dt", {}, `meta layers beside (alpha ${why.branches.alpha.toFixed(2)})`), el("dd", {}, `${signed(why.branches.beside)} of the logit, backbone ${signed(why.branches.backbone)}`));
  $("why").hidden = false;
  $("why").replaceChildren(el("div", { class: "card" },
    el("h3", {}, `Why: ${item.title}`),
    el("dl", { class: "facts" }, ...facts),
    el("p", { class: "quiet" }, `Logits: the mean row has ${signed(why.mean_logit)}; what follows is added to it and gives ${signed(why.logit)}.`),
    el("table", {}, el("tbody", {}, ...rows))));
  $("why").scrollIntoView({ block: "nearest" });
}

function bar(share) {
  const drawing = svg("svg", { viewBox: "-100 0 200 16", preserveAspectRatio: "none", role: "presentation" });
  const width = Math.abs(share) * 100;
  drawing.append(svg("line", { x1: 0, x2: 0, y1: 0, y2: 16 }));
  drawing.append(svg("rect", { x: share < 0 ? -width : 0, y: 3, width, height: 10, class: share < 0 ? "down" : "up" }));
  return drawing;
}

// Finding a user: a combobox by the keyboard too

function close() {
  $("found").hidden = true;
  $("user").setAttribute("aria-expanded", "false");
  $("user").removeAttribute("aria-activedescendant");
  state.chosen = -1;
}

function mark(place) {
  const options = [...$("found").children];
  state.chosen = options.length ? (place + options.length) % options.length : -1;
  options.forEach((option, i) => option.setAttribute("aria-selected", String(i === state.chosen)));
  if (state.chosen >= 0) {
    $("user").setAttribute("aria-activedescendant", options[state.chosen].id);
    options[state.chosen].scrollIntoView({ block: "nearest" });
  }
}

function choose(user) {
  $("user").value = user;
  close();
  attempt(() => showUser(user));
}

let waiting = 0;
$("user").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => attempt(async () => {
    const typed = $("user").value;
    const { users } = await ask(`/v1/users?prefix=${encodeURIComponent(typed)}`);
    if (typed !== $("user").value) return;
    $("found").replaceChildren(...users.map((user, place) => el("li", {
      role: "option", id: `option-${place}`, "aria-selected": "false", onmousedown: (event) => { event.preventDefault(); choose(user); },
    }, user)));
    $("found").hidden = !users.length;
    $("user").setAttribute("aria-expanded", String(users.length > 0));
    state.chosen = -1;
    say(users.length ? `${users.length} users start so` : "no user starts so");
  }), 120);
});
$("user").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    mark(state.chosen + (event.key === "ArrowDown" ? 1 : state.chosen < 0 ? 0 : -1));
  } else if (event.key === "Escape") close();
});
$("user").addEventListener("blur", close);
$("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const option = $("found").children[state.chosen];
  const user = option && !$("found").hidden ? option.textContent : $("user").value.trim();
  if (user) choose(user);
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  attempt(start);
});

async function start() {
  await showScenarios();
  say("");
  const asked = new URLSearchParams(location.hash.slice(1)).get("user");
  const user = asked ?? (await ask("/v1/users?limit=1")).users[0];
  if (user) choose(user);
}

attempt(start);
