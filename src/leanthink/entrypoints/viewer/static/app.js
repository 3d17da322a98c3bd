// The page: chooses traces, keeps the time that all panes share, and listens to buttons and keys.

import { Card } from "./card.js";
import { stream } from "./live.js";
import { Pane } from "./pane.js";
import { fromTrace } from "./thought.js";

const at = (id) => document.getElementById(id);
const SPEEDS = [...at("speed").options].map((option) => Number(option.value));
const view = { time: 0, channel: "now", span: 1 };
const card = new Card(at("card"));
const panes = [];
let sources = []; // { label, problem, policy, load() }
let playing = false;
let scheduled = false;
let live = null; // the AbortController of a stream

// -- time ------------------------------------------------------------------------------------------------------------

function tokens() {
  return Math.max(0, ...panes.map((pane) => pane.thought?.tokens ?? 0));
}

function seek(time) {
  view.time = Math.max(0, Math.min(tokens(), Math.round(time)));
  schedule();
}

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    render();
  });
}

function render() {
  at("time").value = view.time;
  at("clock").value = `${view.time.toLocaleString("en")} / ${tokens().toLocaleString("en")}`;
  at("time").setAttribute("aria-valuetext", `${view.time} of ${tokens()} tokens`);
  for (const pane of panes) {
    if (at("follow").checked) pane.follow();
    pane.render();
  }
}

function play(wanted = !playing) {
  if (wanted === playing) return;
  playing = wanted;
  at("play").classList.toggle("playing", playing);
  at("play").setAttribute("aria-label", playing ? "Pause" : "Play");
  if (!playing) return;
  if (view.time >= tokens()) view.time = 0;
  let last = performance.now();
  let exact = view.time;
  const frame = (now) => {
    if (!playing) return;
    if (Math.round(exact) !== view.time) exact = view.time; // somebody moved the slider
    exact += ((now - last) / 1000) * Number(at("speed").value);
    last = now;
    view.time = Math.min(tokens(), Math.round(exact));
    render();
    if (view.time >= tokens()) return play(false);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

function toBurst(direction) {
  const found = panes
    .map((pane) => (direction > 0 ? pane.thought?.nextBurst(view.time) : pane.thought?.previousBurst(view.time)))
    .filter((time) => time !== undefined);
  if (found.length) seek(direction > 0 ? Math.min(...found) : Math.max(...found));
}

// -- traces ----------------------------------------------------------------------------------------------------------

function tell(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

async function get(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.status} ${(await response.text()).slice(0, 300)}`);
  return response.json();
}

async function start() {
  if (location.search !== "?traces") {
    // No traces are served beside this page: it is a server of models that shows it.
    at("live-open").hidden = false;
    return tell("Press Live to watch a thought as it is written, or open a file of traces.");
  }
  const listed = await get("traces.json");
  return offer(listed.map((entry) => ({ ...entry, load: () => get(`traces/${entry.number}.json`) })));
}

function offer(found) {
  sources = found;
  if (!sources.length) return tell("There is no trace in this file.");
  fill(at("trace"), sources.map((source, index) => [index, label(source)]));
  return choose(0);
}

function label({ key, policy, problem, file }) {
  const many = new Set(sources.map((source) => source.file)).size > 1;
  const asked = problem.replace(/\s+/g, " ").slice(0, 60);
  return [policy, asked, key, ...(many ? [file] : [])].join(" · ");
}

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

async function choose(index) {
  stopLive();
  const source = sources[index];
  at("trace").value = index;
  const others = sources
    .map((other, k) => [k, other])
    .filter(([k, other]) => k !== index && other.problem === source.problem)
    .map(([k, other]) => [k, label(other)]);
  fill(at("compare"), [["", others.length ? "nothing" : "no other policy"], ...others]);
  at("compare").disabled = !others.length;
  await showAll([index]);
}

async function compare(value) {
  const first = Number(at("trace").value);
  at("compare").value = value;
  await showAll(value === "" ? [first] : [first, Number(value)]);
}

async function showAll(indices) {
  play(false);
  try {
    const thoughts = await Promise.all(indices.map(async (index) => fromTrace(await sources[index].load())));
    tell("");
    show(thoughts);
    seek(tokens());
  } catch (error) {
    tell(`This trace cannot be shown: ${error.message}`);
  }
}

function show(thoughts) {
  while (panes.length > thoughts.length) panes.pop().box.remove();
  while (panes.length < thoughts.length) {
    const box = at("pane").content.firstElementChild.cloneNode(true);
    at("panes").append(box);
    panes.push(new Pane(box, view, { card, seek, say: (text) => (at("spoken").textContent = text) }));
  }
  view.span = Math.max(1, ...thoughts.map((thought) => thought.tokens));
  at("time").max = view.span;
  view.time = Math.min(view.time, view.span);
  at("problem").hidden = false;
  at("problem-text").textContent = thoughts[0].problem;
  at("gold").textContent = thoughts[0].gold === null ? "" : `right answer: ${thoughts[0].gold}`;
  fillChannels(thoughts);
  thoughts.forEach((thought, k) => panes[k].show(thought));
  search();
}

function fillChannels(thoughts) {
  const best = thoughts.reduce((a, b) => (b.channels > a.channels ? b : a));
  const entries = !best.channels
    ? [["now", "nothing: no scores recorded"]]
    : !best.horizons.length
      ? [["now", "predicted importance"]]
      : [["now", "horizon of its age"], ...best.horizons.map((h, k) => [k, `horizon ${h}`])];
  fill(at("channel"), entries);
  const kept = [...at("channel").options].some((option) => option.value === String(view.channel));
  if (!kept) view.channel = "now";
  at("channel").value = view.channel;
  at("channel").disabled = entries.length < 2;
}

async function openFiles(files) {
  const found = [];
  for (const file of files) {
    const lines = (await file.text()).split("\n");
    for (const [number, line] of lines.entries()) {
      if (!line.trim()) continue;
      try {
        const record = JSON.parse(line);
        fromTrace(record);
        const { id, sample, problem, policy } = record;
        found.push({ key: `${id}#${sample}`, problem, policy, file: file.name, load: async () => record });
      } catch (error) {
        return tell(`${file.name}, line ${number + 1}: ${error.message}`);
      }
    }
  }
  return offer(found);
}

// -- search ----------------------------------------------------------------------------------------------------------

function search() {
  const wanted = at("search").value;
  const counts = panes.map((pane) => pane.search(wanted));
  at("search-count").value = wanted ? counts.join(" + ") : "";
}

function stepSearch(direction) {
  let shown = "";
  for (const pane of panes) {
    const found = pane.step(direction);
    if (!found) continue;
    if (view.time <= found.last) seek(found.last + 1);
    pane.text.reveal(found.first);
    pane.text.render();
    shown ||= `${pane.match + 1} / ${pane.matches.length}`;
  }
  if (!shown) return;
  at("search-count").value = shown;
  at("follow").checked = false; // or the text would go back to the present at once
}

// -- live ------------------------------------------------------------------------------------------------------------

async function startLive() {
  stopLive();
  const number = (id) => (at(id).value ? Number(at(id).value) : undefined);
  const request = {
    problem: at("live-prompt").value,
    model: at("live-model").value || (await modelName()),
    policy: at("live-policy").value || undefined,
    budget: number("live-budget"),
    max_tokens: number("live-tokens"),
  };
  live = new AbortController();
  const { signal } = live;
  at("live-open").textContent = "Stop";
  tell("");
  let first = true;
  let queued = false;
  const paint = (thought) => {
    queued = false;
    if (signal.aborted) return;
    thought.settle();
    const atEnd = first || view.time >= Number(at("time").max); // else somebody looks at an earlier time
    if (first) show([thought]);
    first = false;
    view.span = Math.max(256, 2 ** Math.ceil(Math.log2(thought.tokens + 1)));
    at("time").max = thought.tokens;
    if (atEnd) view.time = thought.tokens;
    panes[0].grow();
    fillChannels([thought]);
    render();
  };
  try {
    const done = await stream(request, {
      key: at("live-key").value,
      signal,
      onChange: (thought) => {
        if (!queued) requestAnimationFrame(() => paint(thought));
        queued = true;
      },
    });
    paint(done);
    view.span = Math.max(1, done.tokens);
    panes[0].draw();
    if (!done.finishReason) tell("The stream ended before the request had finished.");
  } catch (error) {
    if (!signal.aborted) tell(`Live: ${error.message}`);
  }
  if (!signal.aborted) stopLive();
}

function stopLive() {
  live?.abort();
  live = null;
  at("live-open").textContent = "Live";
}

async function modelName() {
  const key = at("live-key").value;
  const response = await fetch("/v1/models", { headers: key ? { authorization: `Bearer ${key}` } : {} });
  return response.ok ? (await response.json()).data?.[0]?.id : undefined;
}

// -- buttons and keys ------------------------------------------------------------------------------------------------

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("leanthink-theme", theme);
  } catch {
    // A browser that keeps nothing: the theme then lasts as long as the page.
  }
  for (const pane of panes) pane.draw();
}

function toggleTheme() {
  const { theme } = document.documentElement.dataset;
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  setTheme(dark ? "light" : "dark");
}

function toggleCompare() {
  const other = at("compare").options[1];
  if (at("compare").value !== "") compare("");
  else if (other) compare(other.value);
}

function stepSpeed(direction) {
  const now = SPEEDS.indexOf(Number(at("speed").value));
  at("speed").value = SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, now + direction))];
}

function nextChannel() {
  const select = at("channel");
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  setChannel();
}

function setChannel() {
  const { value } = at("channel");
  view.channel = value === "now" ? value : Number(value);
  schedule();
}

function toggleFollow() {
  at("follow").checked = !at("follow").checked;
  schedule();
}

const KEYS = {
  " ": () => play(),
  ArrowLeft: (event) => seek(view.time - (event.shiftKey ? 100 : 1)),
  ArrowRight: (event) => seek(view.time + (event.shiftKey ? 100 : 1)),
  ",": () => toBurst(-1),
  ".": () => toBurst(1),
  Home: () => seek(0),
  End: () => seek(tokens()),
  "+": () => stepSpeed(1),
  "=": () => stepSpeed(1),
  "-": () => stepSpeed(-1),
  h: nextChannel,
  c: toggleCompare,
  f: toggleFollow,
  t: toggleTheme,
  n: () => stepSearch(1),
  N: () => stepSearch(-1),
  "/": () => at("search").focus(),
  "?": () => at("help").showModal(),
  Escape: () => card.hide(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input:not([type=range], [type=checkbox]), textarea, select");
  const pressing = event.target.matches("button, input[type=checkbox]") && event.key === " ";
  if (typing || pressing || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key](event);
}

function listen() {
  document.addEventListener("keydown", onKey);
  at("time").addEventListener("input", () => seek(Number(at("time").value)));
  at("play").addEventListener("click", () => play());
  at("burst-previous").addEventListener("click", () => toBurst(-1));
  at("burst-next").addEventListener("click", () => toBurst(1));
  at("trace").addEventListener("change", () => choose(Number(at("trace").value)));
  at("compare").addEventListener("change", () => compare(at("compare").value));
  at("channel").addEventListener("change", setChannel);
  at("follow").addEventListener("change", schedule);
  at("search").addEventListener("input", search);
  at("search").addEventListener("keydown", (event) => event.key === "Escape" && at("search").blur());
  at("search-form").addEventListener("submit", (event) => event.preventDefault());
  at("search").addEventListener("keydown", (event) => event.key === "Enter" && stepSearch(event.shiftKey ? -1 : 1));
  at("search-next").addEventListener("click", () => stepSearch(1));
  at("search-previous").addEventListener("click", () => stepSearch(-1));
  at("theme").addEventListener("click", toggleTheme);
  at("help-open").addEventListener("click", () => at("help").showModal());
  at("file").addEventListener("change", () => openFiles(at("file").files));
  at("live-open").addEventListener("click", () => (live ? stopLive() : at("live").showModal()));
  at("live-cancel").addEventListener("click", () => at("live").close());
  at("live-form").addEventListener("submit", startLive);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => panes.forEach((pane) => pane.draw()));
}

try {
  const theme = localStorage.getItem("leanthink-theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // As above.
}
listen();
start().catch((error) => tell(`The traces cannot be read: ${error.message}`));
