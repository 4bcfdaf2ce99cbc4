"use strict";
// The trace is data; nothing of it is ever parsed as markup: text enters the page through textContent alone.
const trace = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, options = {}, ...children) {
  const node = document.createElement(tag);
  if (options.cls) node.className = options.cls;
  if (options.text !== undefined) node.textContent = options.text;
  node.append(...children);
  return node;
}
function draw(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
const piece = (local) => trace.pieces[local];
const visible = (text) => text.replace(/ /g, "\u00b7").replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5").replace(/\r/g, "\u240d")
  .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "\u25af");
// Characters that turn the direction of writing around would reorder the tokens of a whole paragraph.
const tame = (text) => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "\u25af");
const percent = (p) => p === null || p === undefined ? "" : p >= 0.9995 ? "1.00" : p >= 0.001 ? p.toFixed(p < 0.01 ? 3 : 2).replace(/^0/, "") : "<.001";
const exact = (p) => p === null || p === undefined ? "not recorded" : p >= 0.0001 ? (100 * p).toPrecision(3) + " %" : p.toExponential(1);
const ms = (seconds) => seconds === null || seconds === undefined ? "\u2013" : (1000 * seconds).toFixed(seconds < 0.01 ? 2 : 1) + " ms";

// -- the header -------------------------------------------------------------------------------------------------------

function facts(list, entries) {
  list.replaceChildren(...entries.filter(([, value]) => value !== "" && value !== null).map(([name, value]) =>
    make("div", {}, make("dt", { text: name }), make("dd", { text: String(value) }))));
}
const total = trace.statistics;
const settings = Object.entries(trace.settings).map(([k, v]) => k + "=" + (typeof v === "string" ? v : JSON.stringify(v))).join(" ");
facts($("facts"), [
  ["model", trace.model], ["method", trace.method], ["settings", settings], ["tokens", total.tokens],
  ["forwards/token", total.tokens ? total.forwards_per_token.toFixed(2) : ""],
  ["tokens/step", total.mean_accepted_length.toFixed(2)],
  ["tok/s", total.tokens_per_second ? total.tokens_per_second.toFixed(1) : ""],
  ["accepted", total.acceptance_rate === null ? "" : (100 * total.acceptance_rate).toFixed(0) + "%"],
  ["ended by", trace.answers.map((answer) => answer.reason).filter((r, i, all) => all.indexOf(r) === i).join(", ")],
]);

function histogram() {
  const counts = Object.entries(total.accepted_by_depth).map(([depth, n]) => [Number(depth), n]);
  if (!counts.length) return;
  const deepest = Math.max(...counts.map(([depth]) => depth)), most = Math.max(...counts.map(([, n]) => n));
  const wide = deepest > 15 ? 16 : 22, high = 34;
  const svg = draw("svg", { width: (deepest + 1) * wide, height: high + 26 });
  for (const [depth, n] of counts) {
    const h = Math.max(1, high * n / most), x = depth * wide;
    const bar = draw("g", {}, draw("rect", { x: x + 2, y: 12 + high - h, width: wide - 4, height: h, rx: 1 }));
    const count = draw("text", { x: x + wide / 2, y: 9 + high - h });
    count.textContent = n;
    bar.append(count);
    svg.append(bar);
  }
  for (let depth = 0; depth <= deepest; depth++) {
    const label = draw("text", { x: depth * wide + wide / 2, y: high + 23 });
    label.textContent = depth;
    svg.append(label);
  }
  $("histogram").append(svg, make("figcaption", { text: "steps by accepted draft tokens" }));
}

// -- the lines of text: one for every request, and of a search for every branch ------------------------------------------

const lines = [];
for (const step of trace.steps) {
  let line = lines.find((l) => l.request === step.r && l.branch === step.b);
  if (!line) lines.push(line = { request: step.r, branch: step.b, steps: [] });
  line.steps.push(step);
}
lines.sort((a, b) => a.request - b.request || a.branch - b.branch);
let line = lines[0], at = 0, timer = null, opened = new Set();

function label(l) {
  const searched = lines.filter((other) => other.request === l.request).length > 1;
  const won = trace.answers.some((answer) => answer.request === l.request && answer.branch === l.branch);
  return "request " + l.request + (searched ? ", branch " + l.branch + (won ? " (the answer)" : "") : "");
}

function choose(index) {
  line = lines[index];
  $("prompt").querySelector("pre").textContent = trace.prompts[line.request].text;
  $("slider").max = line.steps.length - 1;
  timeline();
  words();
  at = -1;
  go(0);
}

// -- the timeline ---------------------------------------------------------------------------------------------------------

function timeline() {
  const tallest = Math.max(1, ...line.steps.map((step) => step.t.length));
  const svg = $("timeline");
  svg.setAttribute("viewBox", "0 0 " + line.steps.length + " " + tallest);
  svg.replaceChildren(draw("rect", { class: "now", x: 0, y: 0, width: 1, height: tallest }));
  line.steps.forEach((step, i) => {
    const accepted = step.a.length, own = step.t.length - accepted, gap = line.steps.length < 300 ? 0.12 : 0;
    const bars = draw("g", {});
    if (accepted) bars.append(draw("rect", { class: "acc", x: i + gap / 2, y: tallest - accepted, width: 1 - gap, height: accepted }));
    if (own) bars.append(draw("rect", { class: "own", x: i + gap / 2, y: tallest - accepted - own, width: 1 - gap, height: own }));
    svg.append(bars);
  });
}

// -- the text ---------------------------------------------------------------------------------------------------------------

let spans = [];  // by step
function words() {
  const output = $("output");
  output.replaceChildren();
  spans = line.steps.map((step, i) => step.t.map((token, k) => {
    const special = step.x[k] === null;
    const span = make("span", { text: special ? visible(piece(token)) : tame(step.x[k]), cls: (k < step.a.length ? "acc" : "own") + (special ? " special" : "") });
    span.tip = () => describe(token, k < step.a.length ? "accepted draft" : "chosen by the model", step.q ? step.q[k] : null, "step " + (i + 1));
    span.addEventListener("click", () => { pause(); go(i); });
    output.append(span);
    return span;
  }));
  const answer = trace.answers.find((a) => a.request === line.request && a.branch === line.branch);
  const end = make("span", { cls: "end", text: answer ? "\n\u25a0 " + answer.reason : "\n\u25a0 not the answer, or interrupted" });
  output.append(end);
  spans.push([end]);
}
const describe = (token, what, p, where) =>
  "\u201c" + visible(piece(token)) + "\u201d  token " + trace.ids[token] + "\n" + what + " \u00b7 " + where + "\nprobability " + exact(p);

// -- the tree ---------------------------------------------------------------------------------------------------------------

const WIDE = 110, NARROW = 84, ROOT = 84, TALL = 24, GAP = 20, ROW = 29, EDGE = 6, FEW = 3, APART = 0.3;

const doubled = (character) => /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|[\ud800-\udbff]/.test(character);
function short(text, columns) {
  const kept = [];
  let used = 0;
  for (const character of visible(text)) {
    used += doubled(character) ? 2 : 1;
    if (used > columns) return kept.slice(0, -1).join("") + "\u2026";
    kept.push(character);
  }
  return kept.join("");
}

function tree(step) {
  const parents = trace.shapes[step.s], count = step.d.length;
  const children = Array.from({ length: count + 1 }, () => []);  // children[0] are the root's, children[n + 1] node n's
  for (let n = 0; n < count; n++) children[parents[n] + 1].push(n);
  const onPath = new Set(step.a), below = new Array(count).fill(0);
  for (let n = count - 1; n >= 0; n--) if (parents[n] >= 0) below[parents[n]] += below[n] + 1;
  const everything = $("all").checked;

  let drawn = [], filled = [];
  const fitting = new Set(), last = step.a.length ? step.a[step.a.length - 1] : -1;
  // Every column is filled from the top in the order of the tree, so no two edges cross; the accepted path comes first
  // and is a straight line along the top. Children of different parents are set a little apart.
  function place(item, above) {
    item.links = following(item);
    item.row = Math.max(above, filled[item.depth] || 0);
    filled[item.depth] = item.row + 1;
    drawn.push(item);
    if (item.links.length && filled[item.depth + 1] > item.row) filled[item.depth + 1] += APART;
    for (const child of item.links) {
      child.up = item;
      place(child, item.row);
    }
  }
  function following({ node, kind, depth }) {
    if (node === undefined) return [];
    const make = (child) => ({ node: child, kind: onPath.has(child) ? "acc" : "ref", depth: depth + 1 });
    const first = children[node + 1].filter((child) => onPath.has(child)), rest = children[node + 1].filter((child) => !onPath.has(child));
    const found = first.map(make);
    if (node === last) for (let k = step.a.length; k < step.t.length; k++) found.push({ own: k, kind: "own", depth: depth + 1 });
    const open = everything || opened.has(node) || fitting.has(node);
    const few = open ? rest.length : kind === "ref" ? 0 : rest.length <= FEW + 1 ? rest.length : FEW;
    found.push(...rest.slice(0, few).map(make));
    const hidden = rest.slice(few).reduce((sum, child) => sum + below[child] + 1, 0);
    if (hidden) found.push({ more: node, hidden, kind: "more", depth: depth + 1 });
    return found;
  }
  function layout() {
    drawn = [];
    filled = [];
    place({ node: -1, kind: "root", depth: 0 }, 0);
    return Math.max(...filled);
  }
  // What is folded away at first is opened as far as it fits on the screen.
  const room = Math.floor(($("tree").clientHeight - 2 * EDGE) / ROW);
  if (!everything) for (let n = -1; n < count; n++) if (children[n + 1].length) {
    fitting.add(n);
    if (layout() > room) fitting.delete(n);
  }
  const height = 2 * EDGE + ROW * layout();
  // Boxes become a little narrower before the tree has to be scrolled sideways.
  const columns = filled.length - 1, fair = Math.floor(($("tree").clientWidth - 2 * EDGE - ROOT) / columns) - GAP;
  const BOX = Math.max(NARROW, Math.min(WIDE, fair)), width = 2 * EDGE + ROOT + (BOX + GAP) * columns;

  const left = (item) => EDGE + (item.depth ? ROOT + GAP + (item.depth - 1) * (BOX + GAP) : 0);
  const right = (item) => left(item) + (item.depth ? BOX : ROOT), middle = (item) => EDGE + item.row * ROW + TALL / 2;
  const edges = draw("g"), boxes = draw("g");
  for (const item of drawn) {
    for (const child of item.links) {
      const x1 = right(item), y1 = middle(item), x2 = left(child), y2 = middle(child), turn = x1 + GAP / 2;
      child.edge = draw("path", { class: "edge " + child.kind, d: `M${x1} ${y1}C${turn} ${y1} ${turn} ${y2} ${x2} ${y2}` });
      edges.append(child.edge);
    }
    item.box = box(step, item, left(item), middle(item) - TALL / 2, item.depth ? BOX : ROOT);
    boxes.append(item.box);
    for (const [event, hot] of [["pointerenter", true], ["pointerleave", false]]) item.box.addEventListener(event, () => {
      for (let node = item; node; node = node.up) {
        node.box.classList.toggle("hot", hot);
        if (node.edge) node.edge.classList.toggle("hot", hot);
        if (hot && node.edge) edges.append(node.edge);  // above the others
      }
    });
  }
  const svg = draw("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": spoken(step) }, edges, boxes);
  $("tree").replaceChildren(svg);
}

function box(step, item, x, y, wide) {
  if (item.kind === "more") {
    const words = draw("text", { x: 27, y: TALL / 2 });
    words.textContent = "+" + item.hidden;
    const group = draw("g", { class: "more", transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "aria-label": "show " + item.hidden + " more nodes" },
      draw("rect", { y: 2, width: 54, height: TALL - 4, rx: 10 }), words);
    const open = () => { opened.add(item.more); tree(step); };
    group.addEventListener("click", open);
    group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); event.stopPropagation(); open(); } });
    return group;
  }
  let text, p = null, tip = "";
  if (item.kind === "root") {
    const before = at > 0 ? line.steps.slice(0, at).reverse().find((s) => s.t.length) : null;
    text = before ? piece(before.t[before.t.length - 1]) : trace.prompts[line.request].last;
    tip = "the text so far ends here";
  } else {
    const drafted = item.own === undefined, token = drafted ? step.d[item.node] : step.t[item.own];
    const probabilities = drafted ? step.p : step.q;
    text = piece(token);
    p = probabilities ? probabilities[drafted ? item.node : item.own] : null;
    const what = item.kind === "acc" ? "accepted draft" : item.kind === "own" ? "chosen by the model" : "refused draft";
    tip = describe(token, what, p, drafted ? "node " + item.node : "after " + step.a.length + " accepted");
  }
  const group = draw("g", { class: item.kind, transform: `translate(${x} ${y})` }, draw("rect", { class: "box", width: wide, height: TALL, rx: 5 }));
  const word = draw("text", { class: "word", x: 7, y: TALL / 2 });
  word.textContent = short(text, Math.floor((wide - (item.kind === "root" ? 14 : 47)) / 7.2));
  group.append(word);
  if (p !== null) {
    const number = draw("text", { class: "p", x: wide - 6, y: TALL / 2 });
    number.textContent = percent(p);
    group.append(number, draw("rect", { class: "bar", x: 5, y: TALL - 4, width: (p * (wide - 10)).toFixed(1), height: 2, rx: 1 }));
  }
  group.tip = () => tip;
  return group;
}
const spoken = (step) => step.d.length + " drafted, " + step.a.length + " accepted: " + step.t.map((t) => piece(t)).join("");

// -- moving -----------------------------------------------------------------------------------------------------------------

function go(to) {
  const step = line.steps[Math.max(0, Math.min(line.steps.length - 1, to))];
  const was = at;
  at = line.steps.indexOf(step);
  if (at !== was) opened = new Set();
  $("slider").value = at;
  $("where").textContent = "step " + (at + 1) + " of " + line.steps.length;
  const bars = $("timeline").children;
  bars[0].setAttribute("x", at);
  for (let i = 1; i < bars.length; i++) bars[i].setAttribute("class", i - 1 <= at ? "past" : "coming");
  spans.forEach((group, i) => group.forEach((span) => {
    span.hidden = i > at && !(i === line.steps.length && at === line.steps.length - 1);
    span.classList.toggle("fresh", i === at);
  }));
  const newest = spans[at][spans[at].length - 1];
  const output = $("output");
  if (newest) {
    const a = newest.getBoundingClientRect(), b = output.getBoundingClientRect();
    if (a.bottom > b.bottom || a.top < b.top) output.scrollTop += a.bottom - b.bottom + b.height / 4;
  }
  const round = trace.rounds[step.n];
  facts($("numbers"), [
    ["drafted", step.d.length], ["accepted", step.a.length], ["committed", step.t.length ? step.t.length : "0 (looked ahead)"],
    ["draft", ms(round.draft)], ["score", ms(round.score)], ["verify", ms(round.verify)], ["at", round.at.toFixed(2) + " s"],
  ]);
  tree(step);
  $("tree").scrollTo(0, 0);
  if (at === line.steps.length - 1) pause();
}
function pause() {
  clearTimeout(timer);
  timer = null;
  $("play").textContent = "Play";
}
function play() {
  if (timer !== null) return pause();
  if (at === line.steps.length - 1) go(0);
  if (line.steps.length < 2) return;
  $("play").textContent = "Pause";
  const tick = () => {
    const rate = Number($("speed").value), now = trace.rounds[line.steps[at].n].at, then = line.steps[at + 1];
    const wait = rate ? 1000 / rate : 1000 * (trace.rounds[then.n].at - now);
    timer = setTimeout(() => { go(at + 1); if (timer !== null) tick(); }, Math.max(wait, 0));
  };
  tick();
}
const seek = (to) => { pause(); go(to); };

$("first").onclick = () => seek(0);
$("back").onclick = () => seek(at - 1);
$("next").onclick = () => seek(at + 1);
$("last").onclick = () => seek(line.steps.length - 1);
$("play").onclick = play;
$("slider").oninput = () => seek(Number($("slider").value));
$("all").onchange = () => tree(line.steps[at]);
$("timeline").onclick = (event) => {
  const place = $("timeline").getBoundingClientRect();
  seek(Math.floor((event.clientX - place.left) / place.width * line.steps.length));
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select, input[type=range]")) return;
  const moves = { ArrowLeft: () => seek(at - 1), ArrowRight: () => seek(at + 1), Home: () => seek(0), End: () => seek(line.steps.length - 1) };
  if (event.key === " " && !event.target.matches("button, input, summary")) { event.preventDefault(); play(); }
  else if (moves[event.key]) { event.preventDefault(); moves[event.key](); }
});

function pointed(event) {
  let node = event.target;
  while (node && node !== document && !node.tip) node = node.parentNode;
  const tip = $("tip");
  if (!node || !node.tip) { tip.hidden = true; return; }
  tip.textContent = node.tip();
  tip.hidden = false;
  const size = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - size.width - 6)) + "px";
  tip.style.top = (event.clientY + 18 + size.height > innerHeight ? event.clientY - size.height - 10 : event.clientY + 18) + "px";
}
addEventListener("resize", () => { if (lines.length) tree(line.steps[at]); });
document.addEventListener("pointermove", pointed);
document.addEventListener("pointerleave", () => { $("tip").hidden = true; });

if (lines.length) {
  histogram();
  document.querySelector("main").hidden = false;
  if (lines.length > 1) {
    $("lines").hidden = false;
    lines.forEach((l, i) => $("line").append(Object.assign(make("option", { text: label(l) }), { value: i })));
    $("line").onchange = () => { pause(); choose(Number($("line").value)); };
  }
  const asked = new URLSearchParams(location.hash.slice(1));  // #step=12&line=0&all=1 opens the page there
  $("all").checked = asked.get("all") === "1";
  const first = Math.min(lines.length - 1, Math.max(0, Number(asked.get("line")) || 0));
  $("line").value = first;
  choose(first);
  go((Number(asked.get("step")) || 1) - 1);
} else {
  document.body.append(make("p", { cls: "notice", text: "The run ended before its first step: there is nothing to replay." }));
}
