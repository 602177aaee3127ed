"use strict";
const DATA = /*DATA*/null;
const WORDS = /*WORDS*/null;  // language -> key -> text, with {places}; KEY.one is said of one thing
const $ = id => document.getElementById(id);
const models = DATA.models, rows = DATA.rows, many = models.length;
const color = i => `var(--m${i % 6})`;
const letter = i => "ABCDEF"[i];
const key = "lorafold:" + DATA.digest;  // of models, questions and answers: votes are for these and no others

// Control characters and bidirectional marks are shown, as they are in the terminal.
const visible = text => text.replace(/[\u0000-\u0008\u000b-\u001f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replace(/[\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\u061c\ufff9-\ufffb]/g,
    c => "<U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + ">");

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "style") node.style.cssText = value;
    else if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter(child => child !== null && child !== undefined));
  return node;
}
function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
// Everything that the page itself says is in WORDS; what models, files and servers said stays as it is.
let language = "en";
try { language = localStorage.getItem("lorafold:language") || navigator.language.slice(0, 2); } catch { language = navigator.language.slice(0, 2); }
if (!Object.hasOwn(WORDS, language)) language = "en";
function say(key, values = {}) {
  const words = WORDS[language], text = (values.count === 1 && words[key + ".one"]) || words[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
const mean = list => list.length ? list.reduce((a, b) => a + b, 0) / list.length : NaN;
const shown = (value, digits = 1) => Number.isFinite(value) ? value.toFixed(digits) : "–";
const percent = value => Number.isFinite(value) ? Math.round(100 * value) + "%" : "–";
// Chinese and Japanese are written without blanks: each character is a word.
const words = text => (text.match(/[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+/gu) || []).length;
const finite = list => list.filter(Number.isFinite);
const asked = answer => answer.reason !== "not asked";
const answered = row => row.answers.filter(a => asked(a) && !a.error);
const votable = row => row.answers.filter(asked).length > 1;
const agreement = row => many > 1 ? mean(finite(row.agreement.slice(1))) : 1;  // NaN where nothing can be compared
const divergence = row => Math.max(-1, ...row.answers.map(a => a.kl ?? -1));
const alike = list => list.every(a => a.text.trim() === list[0].text.trim());
const same = row => answered(row).length > 1 && alike(answered(row));
const different = row => answered(row).length > 1 && !alike(answered(row));

// row -> model index, "tie", or null: a vote taken back, which must also outlast one that came with the page.
let votes = {};
try { votes = JSON.parse(localStorage.getItem(key)) || {}; } catch { votes = {}; }
rows.forEach((row, i) => { row.index = i; if (!(i in votes)) votes[i] = row.vote ?? null; });
function keep() {
  try {
    localStorage.setItem(key, JSON.stringify(votes));
    localStorage.setItem(key + ":others", JSON.stringify(others));
  } catch { /* from some disks nothing is kept */ }
}

// Votes of other people, by the names of the files they came in. A file belongs to one comparison: its digest says which.
let others = {};
try { others = JSON.parse(localStorage.getItem(key + ":others")) || {}; } catch { others = {}; }
const valid = value => value === "tie" || (Number.isInteger(value) && value >= 0 && value < many);
const cast = () => [votes, ...Object.values(others)].flatMap(one => Object.values(one)).filter(valid);
function saveVotes() {
  const own = Object.fromEntries(Object.entries(votes).filter(([, value]) => valid(value)));
  const file = new Blob([JSON.stringify({ format: "lorafold-votes-1", digest: DATA.digest, votes: own }, null, 1)], { type: "application/json" });
  const link = el("a", { download: `votes-${DATA.digest.slice(0, 8)}.json`, href: URL.createObjectURL(file) });
  link.click();
  URL.revokeObjectURL(link.href);
}
async function loadVotes(files) {
  const told = [];
  for (const file of files) {
    let data = null;
    try { data = JSON.parse(await file.text()); } catch { /* told below */ }
    if (!data || data.format !== "lorafold-votes-1" || typeof data.votes !== "object" || !data.votes) told.push(say("votes.no_file", { name: file.name }));
    else if (data.digest !== DATA.digest) told.push(say("votes.other", { name: file.name }));
    else others[file.name] = Object.fromEntries(Object.entries(data.votes).filter(([index, value]) => rows[index] && valid(value)));
  }
  keep();
  voteChart();
  $("vote-note").textContent = visible(told.join("; "));
}

// Wilson's score interval at 95%, a tie as half a vote.
function interval(share, n) {
  if (!n) return [0, 1];
  const z = 1.959963984540054, centre = (share + z * z / (2 * n)) / (1 + z * z / n);
  const half = z / (1 + z * z / n) * Math.sqrt(share * (1 - share) / n + z * z / (4 * n * n));
  return [Math.max(0, centre - half), Math.min(1, centre + half)];
}

function origin({ made, checks, passed }) {
  const proof = !checks ? "proof.none" : passed === checks ? "proof.passed" : "proof.some";
  return say("origin", { made: visible(made), proof: say(proof, { passed, checks }) });
}
function heading() {
  const title = $("title");
  for (const id of ["title", "models"]) $(id).replaceChildren();
  models.forEach((model, i) => {
    if (i) title.append(el("span", { class: "vs" }, many === 2 ? say("against") : " · "));
    title.append(el("span", { style: `color:${color(i)}` }, visible(model.name)));
  });
  document.title = models.map(m => visible(m.name)).join(say("against"));
  const s = DATA.settings, drawn = s.temperature === 0 ? say("greedy") : `temperature ${s.temperature}, top_p ${s.top_p}, top_k ${s.top_k}, min_p ${s.min_p}`;
  $("subtitle").textContent = say("subtitle", { count: rows.length, prompts: visible(DATA.prompts), drawn, seed: s.seed ?? say("seed.new"), most: s.max_tokens }) +
    (DATA.day ? ` · ${visible(DATA.day)}, lorafold ${visible(DATA.lorafold)}` : "");
  models.forEach((model, i) => $("models").append(el("div", { class: "model", style: `--c:${color(i)}` },
    el("b", {}, `${letter(i)}  ${visible(model.name)}`),
    el("p", { class: "soft small" }, [model.kind, model.quantization].filter(Boolean).join(" · ")),
    model.origin ? el("p", { class: "soft small" }, origin(model.origin)) : null,
    model.sha256 ? el("p", { class: "mono soft", title: say("weights") }, "sha256 " + model.sha256.split("+").map(d => d.slice(0, 16)).join(" + ")) : null)));
}

function tiles() {
  const box = $("tiles");
  box.replaceChildren();
  $("nats")?.remove();
  const put = (value, label) => box.append(el("div", { class: "panel tile" }, el("b", {}, value), el("span", { class: "soft small" }, label)));
  put(String(rows.length), say("tile.questions"));
  if (many > 1) {
    put(percent(mean(finite(rows.map(agreement)))), say("tile.agreement"));
    put(String(rows.filter(same).length), say("tile.same"));
    const kl = finite(rows.flatMap(r => r.answers.slice(1).map(a => a.kl)));
    if (kl.length) {
      put(shown(mean(kl), 2), say(many === 2 ? "tile.kl.b" : "tile.kl"));
      box.after(el("p", { class: "soft small note", id: "nats" }, say("nats")));
    }
  }
  const failed = rows.filter(r => r.answers.some(a => a.error)).length;
  if (failed) put(String(failed), say("tile.failed"));
}

function panel(title, note) {
  const box = el("div", { class: "panel" }, el("h2", {}, title));
  $("charts").append(box);
  return chart => { box.append(chart); if (note) box.append(el("p", { class: "small soft" }, note)); };
}

// One horizontal bar per model: the mean, and a dot for every question.
function strip(title, unit, value, digits, note) {
  const lists = models.map((_, i) => rows.map(r => value(r.answers[i])).filter(v => Number.isFinite(v) && v > 0));
  const top = Math.max(...lists.flat(), 0);
  if (!top) return;
  const h = 34, g = svg("svg", { viewBox: `0 0 320 ${many * h + 4}`, role: "img", "aria-label": title });
  lists.forEach((list, i) => {
    const y = i * h, x = v => 24 + 188 * v / top;
    g.append(svg("text", { x: 0, y: y + 20 }, letter(i)));
    g.append(svg("rect", { x: 24, y: y + 6, width: Math.max(1, x(mean(list)) - 24), height: 20, rx: 4, fill: color(i), opacity: .28 }));
    for (const v of list) g.append(svg("circle", { cx: x(v), cy: y + 16, r: 2.6, fill: color(i), opacity: .8 }));
    g.append(svg("text", { x: 320, y: y + 20, "text-anchor": "end" }, `${shown(mean(list), digits)} ${unit}`));
  });
  panel(title, note)(g);
}

function agreementChart() {
  if (many < 2) return;
  const n = rows.length, w = 320, h = 92, step = Math.min(48, (w - 38) / n);
  const g = svg("svg", { viewBox: `0 0 ${w} ${h + 16}`, role: "img", "aria-label": say("chart.agreement") });
  for (const [share, y] of [[0, h], [.5, h - (h - 8) / 2], [1, 8]]) {
    g.append(svg("line", { x1: 0, x2: w - 34, y1: y, y2: y, stroke: "var(--line)" }));
    g.append(svg("text", { x: w, y: y + 4, "text-anchor": "end" }, percent(share)));
  }
  rows.forEach((row, i) => {
    const a = agreement(row), known = Number.isFinite(a), tall = known ? Math.max(2, a * (h - 8)) : 2;
    const bar = svg("rect", { class: "bar", x: i * step + step * .1, y: h - tall, width: step * .8, height: tall, rx: 2, fill: known ? "var(--soft)" : "var(--line)", opacity: known ? .35 + .5 * (1 - a) : 1 });
    bar.append(svg("title", {}, `${i + 1}. ${visible(row.question.slice(0, 80))}: ${known ? percent(a) : say("chart.agreement.none")}`));
    // At once: on the way there rows take their real heights, and a slow scroll would end elsewhere.
    bar.addEventListener("click", () => { const node = $("q" + i); if (node) node.scrollIntoView(); });
    g.append(bar);
  });
  g.append(svg("text", { x: 0, y: h + 14 }, say("chart.first")), svg("text", { x: n * step, y: h + 14, "text-anchor": "end" }, String(n)));
  panel(say("chart.agreement"))(g);
}

let voteBox = null;
function voteChart() {
  if (many < 2) return;
  if (!voteBox?.isConnected) { voteBox = el("div", { class: "panel", id: "vote-chart" }); $("charts").append(voteBox); }
  const all = cast(), n = all.length, ties = all.filter(v => v === "tie").length, people = Object.keys(others).length;
  const pick = el("input", { type: "file", accept: ".json", multiple: true, hidden: true, id: "vote-files" });
  pick.addEventListener("change", () => loadVotes(Array.from(pick.files)));
  const button = (text, onclick) => el("button", { type: "button", onclick }, text);
  const tools = el("div", { class: "vote-tools" }, button(say("votes.save"), saveVotes), button(say("votes.add"), () => pick.click()), pick,
    people ? button(say("votes.remove", { count: people }), () => { others = {}; keep(); voteChart(); }) : null,
    el("span", { class: "failed small", id: "vote-note" }));
  voteBox.replaceChildren(el("h2", {}, people ? say("votes.people", { count: people + 1 }) : say("votes")));
  if (!n) { voteBox.append(el("p", { class: "soft small" }, say("votes.none")), tools); return; }
  const h = 38, g = svg("svg", { viewBox: `0 0 320 ${many * h + 4}`, role: "img", "aria-label": say("votes") });
  models.forEach((_, i) => {
    const wins = all.filter(v => v === i).length, share = (wins + ties / 2) / n, [low, high] = interval(share, n);
    const y = i * h, x = v => 24 + 190 * v;
    g.append(svg("text", { x: 0, y: y + 20 }, letter(i)));
    g.append(svg("rect", { x: 24, y: y + 6, width: 190, height: 20, rx: 4, fill: "var(--faint)" }));
    g.append(svg("rect", { x: 24, y: y + 6, width: Math.max(1, x(share) - 24), height: 20, rx: 4, fill: color(i), opacity: .45 }));
    g.append(svg("line", { x1: x(low), x2: x(high), y1: y + 16, y2: y + 16, stroke: "var(--ink)", "stroke-width": 1.6 }));
    for (const v of [low, high]) g.append(svg("line", { x1: x(v), x2: x(v), y1: y + 11, y2: y + 21, stroke: "var(--ink)", "stroke-width": 1.6 }));
    g.append(svg("text", { x: 320, y: y + 20, "text-anchor": "end" }, say("votes.won", { count: wins, share: percent(share) })));
  });
  voteBox.append(g, el("p", { class: "small soft" }, say("votes.sum", { count: n, ties: say("votes.ties", { count: ties }) })), tools);
}

// Where a query stands in a text, in pairs of begin and end.
function places(text, query) {
  if (!query) return [];
  const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&"), "giu");
  return Array.from(text.matchAll(pattern), found => [found.index, found.index + found[0].length]);
}

// A part of a text that begins at `at`, what is found in the whole marked.
function piece(text, at, found) {
  const out = [];
  let done = 0;
  for (const [begin, end] of found) {
    if (begin >= at + text.length) break;
    const from = Math.max(begin - at, done), to = Math.min(end - at, text.length);
    if (from >= to) continue;
    out.push(text.slice(done, from), el("mark", {}, text.slice(from, to)));
    done = to;
  }
  out.push(text.slice(done));
  return out.filter(part => part !== "");
}
const marked = (text, query) => piece(text, 0, places(text, query));

function answerText(answer, query) {
  if (!answer.lens) return marked(visible(answer.text), query);
  // Made visible token by token; what is searched for may begin in one and end in another.
  const texts = answer.lens.map(token => visible(token[0])), found = places(texts.join(""), query), out = [];
  let at = 0;
  answer.lens.forEach(([, own, other], i) => {
    const text = texts[i], word = text.trimStart() || text;  // blanks before it are not coloured: they may stand at a line's end
    const blank = text.slice(0, text.length - word.length);
    const ratio = own - other, share = Math.min(85, Math.abs(ratio) * (ratio > 0 ? 17 : 14));
    while (found.length && found[0][1] <= at) found.shift();
    const span = el("span", { class: "t", "data-own": own, "data-other": other }, ...piece(word, at + blank.length, found));
    if (share > 4) span.style.cssText = `--tone:var(--${ratio > 0 ? "hot" : "cold"});--share:${share.toFixed(0)}%`;
    out.push(...piece(blank, at, found), span);
    at += text.length;
  });
  return out;
}

// Markdown of an answer as elements, never as HTML text: what it does not know stays as it was written.
const INLINE = /(`+)([^`]|[^`][^]*?[^`])\1(?!`)|\*\*(?=\S)([^]*?\S)\*\*|(?<![\w*])\*(?=[^\s*])([^*]*[^\s*])\*(?![\w*])/g;
function inline(text, query) {
  const out = [];
  let done = 0;
  for (const found of text.matchAll(INLINE)) {
    out.push(...marked(text.slice(done, found.index), query));
    if (found[2] !== undefined) out.push(el("code", {}, ...marked(found[2], query)));
    else out.push(el(found[3] !== undefined ? "strong" : "em", {}, ...marked(found[3] ?? found[4], query)));
    done = found.index + found[0].length;
  }
  return [...out, ...marked(text.slice(done), query)];
}
function markdown(text, query) {
  const out = [], lines = text.split("\n");
  let list = null, open = [];
  const flush = () => { if (open.length) out.push(el("p", {}, ...inline(open.join("\n"), query))); open = []; };
  for (let i = 0; i < lines.length; i++) {
    const line = lines[i], fence = line.match(/^ {0,3}(`{3,}|~{3,})/), head = line.match(/^ {0,3}#{1,6} +(.*)$/);
    const item = line.match(/^ {0,3}(?:[-*+]|(\d{1,9})[.)]) +(.*)$/);
    if (fence) {
      flush(); list = null;
      const code = [];
      while (++i < lines.length && !lines[i].trim().startsWith(fence[1])) code.push(lines[i]);
      out.push(el("pre", {}, el("code", {}, ...marked(code.join("\n"), query))));
    } else if (head) {
      flush(); list = null;
      out.push(el("h4", {}, ...inline(head[1], query)));
    } else if (item) {
      flush();
      const tag = item[1] === undefined ? "ul" : "ol";
      if (!list || list.localName !== tag) { list = el(tag, { start: item[1] }); out.push(list); }
      list.append(el("li", {}, ...inline(item[2], query)));
    } else if (!line.trim()) { flush(); list = null; }
    else { list = null; open.push(line); }
  }
  flush();
  return out;
}

const ENDINGS = { length: "end.length", context: "end.context", cancelled: "end.cancelled", failed: "end.failed" };
function told(call) {
  const { name, arguments: given } = call.function;
  return visible(`→ ${name}(${typeof given === "string" ? given : JSON.stringify(given)})`);
}

function facts(answer) {
  const parts = [say("facts.tokens", { count: answer.tokens }), say("facts.words", { count: words(answer.text) })];
  if (answer.tokens_per_second) parts.push(`${shown(answer.tokens_per_second)} ${say("unit.speed")}`);
  if (Number.isFinite(answer.kl)) parts.push(say("facts.kl", { value: shown(answer.kl, 2) }));
  if (answer.reason !== "stop" && answer.reason) parts.push(ENDINGS[answer.reason] ? say(ENDINGS[answer.reason]) : say("end.other", { reason: visible(answer.reason) }));
  if (answer.dropped) parts.push(say("facts.dropped", { count: answer.dropped }));
  return parts.join(" · ");
}

function vote(row, value, button) {
  votes[row.index] = votes[row.index] === value ? null : value;
  keep(); voteChart(); showVote(row, $("q" + row.index));
  if (FILTERS[$("filter").value](row)) return;
  // The row no longer fits the filter and goes; a keyboard goes on at the next one.
  const node = $("q" + row.index), next = node.nextElementSibling || node.previousElementSibling;
  const place = Array.from(button.parentNode.querySelectorAll("button")).indexOf(button);
  draw();
  const following = next && next.querySelectorAll(".votes button")[place];
  if (following) following.focus();
}

// Only what a vote changes: the row stays as it is, with what is open or focused in it.
function showVote(row, node) {
  const won = votes[row.index];
  node.querySelectorAll(".answer").forEach((answer, i) => answer.classList.toggle("won", won === i));
  node.querySelectorAll(".votes button").forEach(button => button.setAttribute("aria-pressed", String(String(won) === button.dataset.vote)));
}

// A row with its texts plain, as the browser's own search finds them; `dress` adds lens and marks.
function rowNode(row) {
  const node = el("article", { class: "row", id: "q" + row.index });
  node.append(el("h3", {}, el("span", { class: "n" }, String(row.index + 1)), el("span", { class: "asked" }, visible(row.question))));
  const before = row.messages.slice(0, -1);
  if (before.length) node.append(el("details", {}, el("summary", {}, say("row.before", { count: before.length })),
    el("div", { class: "context" }, before.map(m => `${m.role}: ${visible(String(m.content))}`).join("\n"))));
  const grid = el("div", { class: "answers", style: `--count:${many}` });
  row.answers.forEach((answer, i) => grid.append(el("div", { class: asked(answer) ? "answer" : "answer unasked", style: `--c:${color(i)}` },
    el("div", { class: "who" }, `${letter(i)}  ${visible(models[i].name)}`),
    answer.error ? el("p", { class: "failed" }, visible(answer.error)) : null,
    answer.reasoning ? el("details", {}, el("summary", {}, say("row.reasoning")), el("div", { class: "context" }, visible(answer.reasoning))) : null,
    asked(answer) ? el("div", { class: "text" }, visible(answer.text)) : el("p", { class: "soft small" }, say("row.not_asked")),
    answer.calls ? el("div", { class: "context" }, answer.calls.map(told).join("\n")) : null,
    asked(answer) ? el("div", { class: "facts" }, facts(answer)) : null)));
  node.append(grid);
  if (row.expected) node.append(el("details", {}, el("summary", {}, say("row.expected")), el("div", { class: "expected" }, visible(row.expected))));
  if (votable(row)) {
    const bar = el("div", { class: "votes" }, el("span", { class: "soft" }, say("vote")));
    const button = (value, text) => bar.append(el("button", { type: "button", "data-vote": String(value), onclick: event => vote(row, value, event.currentTarget) }, text));
    models.forEach((_, i) => { if (asked(row.answers[i])) button(i, letter(i)); });
    button("tie", say("vote.tie"));
    bar.append(el("span", { class: "soft" }, say("row.agreement", { share: percent(agreement(row)) })));
    node.append(bar);
  }
  showVote(row, node);
  return node;
}

// Rows are made once, plain. Colours and marks come to those near the screen: of 400 questions all would take seconds.
let query = "", look = "text";  // or "markdown": the lens colours the text as it was written, so it is one or the other
const made = new Map(), dressed = new Map(), near = new Set();
function dress(row) {
  const wanted = `${look} ${query}`;
  if (dressed.get(row) === wanted) return;
  dressed.set(row, wanted);
  const node = made.get(row), expected = node.querySelector(".expected"), boxes = node.querySelectorAll(".text");
  node.querySelector(".asked").replaceChildren(...marked(visible(row.question), query));
  if (expected) expected.replaceChildren(...marked(visible(row.expected), query));
  row.answers.filter(asked).forEach((answer, i) => {
    boxes[i].classList.toggle("written", look === "markdown");
    boxes[i].replaceChildren(...(look === "markdown" ? markdown(visible(answer.text), query) : answerText(answer, query)));
  });
}
const watch = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const row = rows[+entry.target.id.slice(1)];
    if (entry.isIntersecting) { near.add(row); dress(row); } else near.delete(row);
  }
}, { rootMargin: "1000px" });
addEventListener("beforeprint", () => { for (const row of made.keys()) dress(row); });

const FILTERS = {
  all: () => true, different, same, voted: row => votes[row.index] !== null, open: row => votable(row) && votes[row.index] === null,
  cut: row => row.answers.some(a => asked(a) && a.reason !== "stop"),
};
const SORTS = {
  order: (a, b) => a.index - b.index, agreement: (a, b) => (finite([agreement(a)])[0] ?? 2) - (finite([agreement(b)])[0] ?? 2),
  kl: (a, b) => divergence(b) - divergence(a),
  length: (a, b) => Math.max(...b.answers.map(x => x.tokens)) - Math.max(...a.answers.map(x => x.tokens)),
};
const FIRST = 8;  // rows dressed at once, so that nothing flickers where the page begins
function draw() {
  query = $("search").value.trim().toLowerCase();
  const text = row => [row.question, row.expected || "", ...row.answers.map(a => a.text)].join("\n").toLowerCase();
  const list = rows.filter(FILTERS[$("filter").value]).filter(row => !query || text(row).includes(query)).sort(SORTS[$("sort").value]);
  for (const row of list) if (!made.has(row)) { made.set(row, rowNode(row)); watch.observe(made.get(row)); }
  $("rows").replaceChildren(...list.map(row => made.get(row)));
  list.forEach((row, i) => { if (i < FIRST || near.has(row)) dress(row); });
  if (!list.length) $("rows").append(el("p", { class: "soft" }, say("rows.none")));
  $("count").textContent = list.length === rows.length ? "" : say("rows.count", { count: list.length, all: rows.length });
}

const tip = $("tip");
$("rows").addEventListener("pointermove", event => {
  const token = event.target.closest(".lens .t");
  if (!token) { tip.style.display = "none"; return; }
  const own = +token.dataset.own, other = +token.dataset.other, p = v => { const x = 100 * Math.exp(v); return (x < 1 ? x.toPrecision(1) : x.toFixed(0)) + "%"; };
  tip.textContent = say("lens.tip", { own: p(own), other: p(other), ratio: (own - other).toFixed(2) });
  tip.style.display = "block";
  tip.style.left = Math.min(innerWidth - tip.offsetWidth - 8, event.clientX + 12) + "px";
  tip.style.top = (event.clientY + 22 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18) + "px";
});
$("rows").addEventListener("pointerleave", () => { tip.style.display = "none"; });

function theme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = say(name === "dark" ? "light" : "dark");
}
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
theme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");

const hasLens = rows.some(row => row.answers.some(a => a.lens));
function lens(on) { $("rows").classList.toggle("lens", on); $("lens").setAttribute("aria-pressed", String(on)); $("legend").style.visibility = on ? "" : "hidden"; }
$("lens").addEventListener("click", () => lens(!$("rows").classList.contains("lens")));
if (!hasLens) { $("lens").remove(); $("legend").remove(); } else lens(true);
function typeset(on) {
  look = on ? "markdown" : "text";
  $("markdown").setAttribute("aria-pressed", String(on));
  if (hasLens && on) lens(false);
  draw();
}
$("markdown").addEventListener("click", () => typeset(look !== "markdown"));
if (hasLens) $("lens").addEventListener("click", () => { if (look === "markdown") typeset(false); });
if (many < 2) for (const id of ["filter"]) $(id).querySelectorAll("option[value=different],option[value=same],option[value=voted],option[value=open]").forEach(o => o.remove());
for (const id of ["search", "filter", "sort"]) for (const kind of ["input", "change"]) $(id).addEventListener(kind, draw);
addEventListener("keydown", event => { if (event.key === "/" && document.activeElement !== $("search")) { event.preventDefault(); $("search").focus(); } });

// Write everything again in this language. Rows are made again too, so that what was open in them closes.
function speak(name) {
  language = name;
  document.documentElement.lang = name;
  for (const node of document.querySelectorAll("[data-say]")) node[node.id === "search" ? "placeholder" : "textContent"] = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const node of document.querySelectorAll("[data-title]")) node.title = say(node.dataset.title);
  $("language").textContent = say("language");
  theme(document.documentElement.dataset.theme);
  $("charts").replaceChildren();
  watch.disconnect(); made.clear(); dressed.clear(); near.clear();
  heading(); tiles(); agreementChart();
  strip(say("chart.length"), say("unit.tokens"), a => a.tokens, 0);
  strip(say("chart.speed"), say("unit.speed"), a => a.tokens_per_second, 1, many > 1 ? say("chart.speed.note") : "");
  voteChart(); draw();
}
$("language").addEventListener("click", () => {
  const names = Object.keys(WORDS), next = names[(names.indexOf(language) + 1) % names.length];
  try { localStorage.setItem("lorafold:language", next); } catch { /* from some disks nothing is kept */ }
  speak(next);
});
speak(language);
