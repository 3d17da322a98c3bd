// One recorded request as the page needs it: its tokens, what was stamped on them, and which slots were held when.
//
// Time t counts generated tokens, as `evicted_at` of a trace does: at time t the slots of the first t tokens have been
// written and every eviction up to t has happened. The last token of a request is never fed, so it never has a slot.

export const NEVER = 2 ** 31 - 1;
export const LEVELS = 10;
// The most important tokens are few: levels are finer towards the top. Shares of all numbers that lie below each.
const QUANTILES = [0.3, 0.5, 0.65, 0.77, 0.86, 0.92, 0.96, 0.98, 0.993];

export class Thought {
  constructor({ name, problem, policy, budget, promptTokens, horizons = [], channels = 0 }) {
    Object.assign(this, { name, problem, policy, budget, promptTokens, horizons, channels });
    this.gold = null;
    this.correct = null;
    this.finishReason = null;
    this.texts = [];
    this.hasTexts = true;
    this.thoughtTokens = NEVER;
    this.evictedAt = [];
    this.recorded = true; // whether evictedAt is known
    this.numbers = []; // [tokens * channels], NaN where nothing was stamped
    this.evictedBy = [0]; // [time]: tokens evicted up to then
    this.bursts = []; // times of evictions
    this.levels = { now: new Uint8Array(0), own: [] };
  }

  get tokens() {
    return this.texts.length;
  }

  // Tokens whose slots are written at time t.
  fed(t) {
    return Math.max(0, Math.min(t, this.tokens - 1));
  }

  fullSlots(t) {
    return this.promptTokens + this.fed(t);
  }

  heldSlots(t) {
    return this.fullSlots(t) - this.evictedBy[Math.max(0, Math.min(t, this.tokens))];
  }

  // Before the eviction of time t, if there is one: the peaks of the curve.
  mostSlots(t) {
    return this.fullSlots(t) - this.evictedBy[Math.max(0, Math.min(t - 1, this.tokens))];
  }

  isAnswer(index) {
    return index >= this.thoughtTokens;
  }

  // The channel by which a token is ranked at time t: the largest horizon that its age has reached.
  channelAt(index, t) {
    const age = t - 1 - index;
    let channel = 0;
    while (channel + 1 < this.channels && this.horizons[channel + 1] <= age) channel++;
    return channel;
  }

  // Shade of a token, 0 to LEVELS - 1; `channel` "now" is the one of its age.
  level(index, t, channel) {
    if (!this.channels) return 0;
    if (channel === "now") return this.levels.now[index * this.channels + this.channelAt(index, t)];
    const own = this.levels.own[Math.min(channel, this.channels - 1)];
    return own[index];
  }

  number(index, channel) {
    return this.numbers[index * this.channels + channel];
  }

  nextBurst(t) {
    return this.bursts.find((at) => at > t);
  }

  previousBurst(t) {
    return this.bursts.findLast((at) => at < t);
  }

  // How many evictions there were up to time t.
  evictions(t) {
    let count = 0;
    while (count < this.bursts.length && this.bursts[count] <= t) count++;
    return count;
  }

  // To be called when tokens, evictions or numbers have changed.
  settle() {
    this.countEvictions();
    this.rankNumbers();
  }

  countEvictions() {
    const gone = new Int32Array(this.tokens + 1);
    if (this.recorded) {
      for (const at of this.evictedAt) if (at <= this.tokens) gone[at]++;
    } else if (this.budget) {
      // Which slots went is not known, but when and how many follows from the budget.
      const { slots, interval } = this.budget;
      for (let t = slots + interval; t <= Math.min(this.thoughtTokens, this.tokens - 1); t += interval) {
        gone[t] = interval;
      }
    }
    this.bursts = [];
    let sum = 0;
    this.evictedBy = gone.map((count, t) => {
      if (count) this.bursts.push(t);
      return (sum += count);
    });
  }

  rankNumbers() {
    const { channels, tokens, numbers } = this;
    if (!channels) return;
    const all = thresholds(numbers);
    this.levels = { now: new Uint8Array(tokens * channels), own: [] };
    for (let k = 0; k < tokens * channels; k++) this.levels.now[k] = levelOf(numbers[k], all);
    for (let channel = 0; channel < channels; channel++) {
      const column = Float32Array.from({ length: tokens }, (_, index) => numbers[index * channels + channel]);
      const own = thresholds(column);
      this.levels.own.push(Uint8Array.from(column, (number) => levelOf(number, own)));
    }
  }
}

function thresholds(numbers) {
  const sorted = Float32Array.from(numbers).filter((number) => !Number.isNaN(number)).sort();
  return sorted.length ? QUANTILES.map((share) => sorted[Math.floor(share * (sorted.length - 1))]) : [];
}

function levelOf(number, bounds) {
  let level = 0;
  while (level < bounds.length && number > bounds[level]) level++;
  return level;
}

// A Thought of one line of a file of traces, version 1 to 3 (see src/leanthink/data/traces/trace.py); throws an Error that says
// what is wrong with it.
export function fromTrace(record) {
  check(record);
  const scores = record.scores ?? null;
  const thought = new Thought({
    name: `${record.id}#${record.sample}`,
    problem: record.problem,
    policy: record.policy,
    budget: record.budget,
    promptTokens: record.prompt_ids.length,
    horizons: scores?.horizons ?? [],
    channels: scores ? Math.max(1, scores.horizons.length) : 0,
  });
  const tokens = record.token_ids.length;
  thought.hasTexts = Array.isArray(record.token_chars);
  thought.texts = thought.hasTexts
    ? cut(record.text, record.token_chars)
    : record.token_ids.map((id) => `[${id}] `);
  thought.thoughtTokens = record.thought_tokens;
  thought.recorded = Array.isArray(record.evicted_at);
  thought.evictedAt = thought.recorded
    ? Int32Array.from(record.evicted_at, (at) => at ?? NEVER)
    : new Int32Array(tokens).fill(NEVER);
  if (scores) thought.numbers = halves(scores.float16, tokens * thought.channels);
  thought.gold = record.gold;
  thought.correct = record.correct;
  thought.finishReason = record.finish_reason;
  thought.settle();
  return thought;
}

function check(record) {
  if (!record || typeof record !== "object" || !("trace" in record)) throw new Error("this is no trace");
  if (![1, 2, 3].includes(record.trace)) {
    throw new Error(`trace version ${record.trace}: this viewer reads versions 1 to 3`);
  }
  for (const name of ["prompt_ids", "token_ids"]) {
    if (!Array.isArray(record[name])) throw new Error(`the trace lacks ${name}`);
  }
  for (const name of ["token_chars", "evicted_at"]) {
    if (Array.isArray(record[name]) && record[name].length !== record.token_ids.length) {
      throw new Error(`${name} has ${record[name].length} entries for ${record.token_ids.length} tokens`);
    }
  }
}

// The text in pieces of so many characters (code points, as Python counts them).
function cut(text, counts) {
  const characters = Array.from(text);
  let first = 0;
  return counts.map((count) => characters.slice(first, (first += count)).join(""));
}

// Little-endian half floats in base64.
export function halves(base64, count) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  if (bytes.length !== 2 * count) throw new Error(`scores has ${bytes.length} bytes for ${count} numbers`);
  return Float32Array.from({ length: count }, (_, k) => half(bytes[2 * k] | (bytes[2 * k + 1] << 8)));
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
}
