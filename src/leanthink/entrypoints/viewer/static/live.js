// A thought as it is written: reads the stream of /v1/chat/completions with "kv_events": true (docs/serving.md).
//
// Nothing in the stream is trusted: what is missing, of another type or out of range is left out, never guessed.

import { NEVER, Thought } from "./thought.js";

const isCount = (value) => Number.isInteger(value) && value >= 0;
const listOf = (value) => (Array.isArray(value) ? value : []);

// The JSON documents of a stream of server-sent events, up to [DONE].
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest = (rest + (value ?? "")).replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = done ? "" : blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:"));
      const text = data.map((line) => line.slice(5).trim()).join("\n");
      if (text === "[DONE]") return;
      if (text) yield JSON.parse(text);
    }
    if (done) return;
  }
}

export function startThought(request) {
  return new Thought({
    name: "live",
    problem: request.problem,
    policy: request.policy ?? "the server's policy",
    budget: null,
    promptTokens: 0,
  });
}

// Takes one chunk into the thought; returns whether anything changed.
export function takeChunk(thought, chunk) {
  const choice = listOf(chunk?.choices)[0] ?? {};
  const facts = chunk?.leanthink && typeof chunk.leanthink === "object" ? chunk.leanthink : {};
  const before = thought.tokens;
  takeSettings(thought, facts);
  if (facts.eviction) takeEviction(thought, facts.eviction); // it came before this chunk's token
  const thinks = typeof choice.delta?.reasoning_content === "string" && choice.delta.reasoning_content !== "";
  const text = (choice.delta?.reasoning_content ?? "") + (choice.delta?.content ?? "");
  if (isCount(facts.position)) {
    const told = typeof facts.text === "string" ? facts.text : text;
    addToken(thought, told, typeof facts.in_thought === "boolean" ? facts.in_thought : thinks);
  } else if (text) {
    addToken(thought, text, thinks); // a server that tells nothing of its slots: a piece of text passes for a token
  }
  if (typeof choice.finish_reason === "string") thought.finishReason = choice.finish_reason;
  return thought.tokens > before || Object.keys(facts).length > 0 || thought.finishReason !== null;
}

function takeSettings(thought, facts) {
  if (typeof facts.policy === "string") thought.policy = facts.policy;
  if (isCount(facts.prompt_tokens)) thought.promptTokens = facts.prompt_tokens;
  if (facts.budget && isCount(facts.budget.slots)) thought.budget = facts.budget;
  if (Array.isArray(facts.horizons) && !thought.channels && facts.horizons.every(isCount)) {
    thought.horizons = facts.horizons;
  }
}

function addToken(thought, text, inThought) {
  if (!inThought && thought.thoughtTokens === NEVER) thought.thoughtTokens = thought.tokens;
  thought.texts.push(text);
  thought.evictedAt.push(NEVER);
  for (let channel = 0; channel < thought.channels; channel++) thought.numbers.push(NaN);
}

function takeEviction(thought, { evicted_at: told, positions, importance }) {
  const time = isCount(told) ? told : thought.tokens;
  for (const position of listOf(positions)) {
    const index = position - thought.promptTokens;
    if (isCount(index) && index < thought.tokens && thought.evictedAt[index] === NEVER) thought.evictedAt[index] = time;
  }
  for (const entry of listOf(importance)) takeImportance(thought, listOf(entry));
}

function takeImportance(thought, [position, ...numbers]) {
  const index = position - thought.promptTokens;
  const channels = Math.max(1, thought.horizons.length);
  if (!isCount(index) || index >= thought.tokens || numbers.length !== channels) return;
  if (!thought.channels) {
    thought.channels = channels;
    thought.numbers = new Array(thought.tokens * channels).fill(NaN);
  }
  numbers.forEach((number, channel) => {
    if (Number.isFinite(number)) thought.numbers[index * channels + channel] = number;
  });
}

// Sends the request and hands over the thought after every chunk that changed it.
export async function stream(request, { key, signal, onChange }) {
  const thought = startThought(request);
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const { problem, ...settings } = request;
  const body = { ...settings, messages: [{ role: "user", content: problem }], stream: true, kv_events: true };
  const response = await fetch("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await refusal(response));
  for await (const chunk of events(response.body)) {
    if (chunk.error) throw new Error(chunk.error.message ?? "the server ended the stream with an error");
    if (takeChunk(thought, chunk)) onChange(thought);
  }
  return thought;
}

async function refusal(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `the server answered ${response.status}: ${text.slice(0, 200)}`;
  }
}
