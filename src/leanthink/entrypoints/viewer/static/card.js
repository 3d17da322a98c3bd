// The card of one token: what it is, how it was scored, and what became of its slot.

import { NEVER } from "./thought.js";

export function quoted(text) {
  return text === "" ? "no text" : JSON.stringify(text);
}

// What became of the token, in one sentence.
export function fate(thought, token, time) {
  const at = thought.evictedAt[token];
  if (token >= time) return "still to be written";
  const age = Math.min(time, thought.tokens) - 1 - token;
  if (!thought.recorded && thought.bursts.length) return `age ${age}; which slots were evicted was not recorded`;
  if (at <= time) {
    const burst = thought.bursts.indexOf(at) + 1;
    return `evicted at ${at} by ${thought.policy}, at age ${at - 1 - token} (eviction ${burst} of ${thought.bursts.length})`;
  }
  if (token === thought.tokens - 1 && thought.finishReason) return "the last token: it never needed a slot";
  const later = at === NEVER ? "" : `; evicted later, at ${at}`;
  return `held, age ${age}${thought.isAnswer(token) ? ", pinned as answer" : ""}${later}`;
}

export function place(thought, token) {
  return `token ${token}, position ${thought.promptTokens + token}, ${thought.isAnswer(token) ? "answer" : "thought"}`;
}

// The same in words, for the status line that screen readers read.
export function spoken(thought, token, view) {
  return `${quoted(thought.texts[token])}, ${place(thought, token)}, ${fate(thought, token, view.time)}`;
}

export class Card {
  constructor(box) {
    this.box = box;
  }

  show(thought, token, view, anchor) {
    const part = (name, className, text) => {
      const element = document.createElement(name);
      element.className = className;
      element.textContent = text;
      return element;
    };
    this.box.replaceChildren(
      part("code", "card-token", quoted(thought.texts[token])),
      part("p", "card-place", place(thought, token)),
      part("p", "card-fate", fate(thought, token, view.time)),
    );
    if (thought.channels) this.box.append(this.scores(thought, token, view));
    this.box.hidden = false;
    this.put(anchor.getBoundingClientRect());
  }

  scores(thought, token, view) {
    const list = document.createElement("dl");
    list.className = "scores";
    const ranked = thought.channelAt(token, view.time);
    for (let channel = 0; channel < thought.channels; channel++) {
      const number = thought.number(token, channel);
      const term = document.createElement("dt");
      term.textContent = thought.horizons.length ? `from ${thought.horizons[channel]} on` : "score";
      const value = document.createElement("dd");
      value.className = `bar l${thought.levels.own[channel]?.[token] ?? 0}`;
      value.textContent = Number.isFinite(number) ? number.toFixed(2) : "not stamped";
      if (channel === ranked && thought.horizons.length) value.classList.add("ranked");
      list.append(term, value);
    }
    return list;
  }

  // Below the token, or above it where there is no room.
  put(anchor) {
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const left = Math.max(8, Math.min(anchor.left, window.innerWidth - width - 8));
    const below = anchor.bottom + 8;
    const top = below + height < window.innerHeight - 8 ? below : Math.max(8, anchor.top - height - 8);
    this.box.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
  }

  hide() {
    this.box.hidden = true;
  }
}
