// One thought on the page: its numbers, its pictures and its text, all at the shared time.

import { drawCurve, drawMap, drawStrip, fit, palette } from "./charts.js";
import { spoken } from "./card.js";
import { find } from "./search.js";
import { TextView } from "./text.js";

export class Pane {
  // `view` is shared by all panes: { time, channel, span }; `seek(time)` sets the time of all of them.
  constructor(box, view, { card, seek, say }) {
    Object.assign(this, { box, view, card, seek, say });
    this.thought = null;
    this.matches = [];
    this.match = -1;
    this.part = Object.fromEntries([...box.querySelectorAll("[data-part]")].map((part) => [part.dataset.part, part]));
    this.text = new TextView(this.part.text, view);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.part.charts);
  }

  listen() {
    const { text, charts } = this.part;
    const tokenOf = (event) => {
      const piece = event.target.closest?.("[data-token]");
      return piece && { piece, token: Number(piece.dataset.token) };
    };
    text.addEventListener("pointerover", (event) => {
      const found = tokenOf(event);
      if (found) this.card.show(this.thought, found.token, this.view, found.piece);
      else if (this.text.chosen === null) this.card.hide();
    });
    text.addEventListener("pointerleave", () => this.card.hide());
    text.addEventListener("click", (event) => {
      const found = tokenOf(event);
      if (found) this.choose(found.token);
    });
    text.addEventListener("keydown", (event) => this.walk(event));
    text.addEventListener("blur", () => this.card.hide());
    const jump = (event) => {
      const { left, width } = charts.getBoundingClientRect();
      this.seek(Math.round(((event.clientX - left) / width) * this.view.span));
    };
    charts.addEventListener("pointerdown", (event) => {
      charts.setPointerCapture(event.pointerId);
      jump(event);
    });
    charts.addEventListener("pointermove", (event) => event.buttons && jump(event));
  }

  // Arrow keys inside the text go from token to token.
  walk(event) {
    if (!this.thought || event.ctrlKey || event.metaKey || event.altKey) return;
    const now = this.text.chosen ?? Math.max(0, Math.min(this.view.time, this.thought.tokens) - 1);
    const last = this.thought.tokens - 1;
    const next = {
      ArrowLeft: () => now - 1,
      ArrowRight: () => now + 1,
      ArrowUp: () => this.text.neighbour(now, -1),
      ArrowDown: () => this.text.neighbour(now, 1),
    }[event.key];
    if (!next) return;
    event.preventDefault();
    event.stopPropagation();
    this.choose(Math.max(0, Math.min(last, next())));
  }

  choose(token) {
    this.text.reveal(token);
    this.text.choose(token);
    const element = this.text.elementOf(token);
    if (element) this.card.show(this.thought, token, this.view, element);
    this.say(spoken(this.thought, token, this.view));
  }

  show(thought) {
    this.thought = thought;
    this.matches = [];
    this.match = -1;
    this.text.show(thought);
    const { policy, settings, verdict, note } = this.part;
    policy.textContent = thought.policy;
    settings.textContent = thought.budget
      ? `budget ${thought.budget.slots} · window ${thought.budget.window} · interval ${thought.budget.interval}`
      : "no budget";
    verdict.textContent = thought.correct === null ? "" : thought.correct ? "✓ right" : "✗ wrong";
    verdict.dataset.correct = String(thought.correct);
    note.textContent = this.notes().join(" ");
    note.hidden = !note.textContent;
    this.draw();
  }

  notes() {
    const { thought } = this;
    const notes = [];
    if (!thought.recorded && thought.bursts.length) {
      notes.push("Which slots were evicted was not recorded: the curve follows from the budget, the text is not faded.");
    }
    if (!thought.hasTexts) notes.push("A trace of version 1: it knows token ids, but not the text of each.");
    return notes;
  }

  // A live thought has grown.
  grow() {
    this.text.grow();
    this.part.policy.textContent = this.thought.policy;
    if (this.thought.budget) {
      const { slots, window, interval } = this.thought.budget;
      this.part.settings.textContent = `budget ${slots} · window ${window ?? "?"} · interval ${interval ?? "?"}`;
    }
    this.draw();
  }

  draw() {
    if (!this.thought) return;
    this.colours = palette(this.box);
    this.part.map.parentElement.hidden = !this.thought.recorded && this.thought.bursts.length > 0;
    for (const canvas of [this.part.curve, this.part.map, this.part.strip]) fit(canvas);
    this.width = this.part.charts.clientWidth;
    drawCurve(this.part.curve, this.thought, this.view.span, this.colours);
    drawMap(this.part.map, this.thought, this.view.span, this.colours);
    this.render();
  }

  // Everything that follows the time.
  render() {
    if (!this.thought) return;
    const { thought, view, part } = this;
    const t = Math.min(view.time, thought.tokens);
    drawStrip(part.strip, thought, view, view.span, this.colours);
    part.playhead.style.transform = `translateX(${(t / view.span) * this.width}px)`;
    const held = thought.heldSlots(t);
    const full = thought.fullSlots(t);
    part.held.textContent = held.toLocaleString("en");
    part.full.textContent = full.toLocaleString("en");
    part.saved.textContent = full ? `${Math.round(100 * (1 - held / full))} %` : "0 %";
    part.evictions.textContent = thought.evictions(t).toLocaleString("en");
    this.text.render();
  }

  follow() {
    this.text.reveal(Math.min(this.view.time, this.thought?.tokens ?? 0) - 1, 0.75);
  }

  search(wanted) {
    this.matches = this.thought ? find(this.thought.texts, wanted) : [];
    this.match = -1;
    this.text.mark(this.matches, null);
    return this.matches.length;
  }

  // Goes to the next match, or with -1 to the previous one; returns the time at which it is written.
  step(direction) {
    if (!this.matches.length) return null;
    const from = this.match < 0 && direction < 0 ? 0 : this.match;
    this.match = (from + direction + this.matches.length) % this.matches.length;
    const found = this.matches[this.match];
    this.text.mark(this.matches, found);
    return found;
  }
}
