// The thought as text: only the lines in view are in the document, and of those only the tokens that changed are touched.

import { Lines } from "./lines.js";

const OVERSCAN = 3; // lines above and below the view
const STATES = ["future", "held", "gone", "unknown"];
const FUTURE = 0;
const HELD = 1;
const GONE = 2;
const UNKNOWN = 3;
const names = new Map(); // class names by code

function className(code) {
  if (!names.has(code)) {
    const level = code & 15;
    const words = [STATES[(code >> 4) & 3], `l${level}`];
    if (code & 64) words.push("answer");
    if (code & 128) words.push("hit");
    if (code & 256) words.push("hit-now");
    if (code & 512) words.push("chosen");
    if (code & 1024) words.push("youngest");
    names.set(code, words.join(" "));
  }
  return names.get(code);
}

export class TextView {
  // `box` scrolls; `view` is shared: { time, channel }.
  constructor(box, view) {
    this.box = box;
    this.view = view;
    this.thought = null;
    this.chosen = null;
    this.hits = new Set();
    this.hitNow = null;
    this.sizer = box.appendChild(document.createElement("div"));
    this.sizer.className = "sizer";
    this.rows = new Map(); // line number to { element, pieces: [{ element, token, code }] }
    this.lineHeight = 22;
    this.charWidth = 8;
    // Kept here, because asking the document between two changes of it makes the browser lay it out anew.
    this.top = 0;
    this.height = 0;
    this.moved = false;
    const scrolled = () => {
      this.top = box.scrollTop;
      this.render();
    };
    box.addEventListener("scroll", scrolled, { passive: true });
    new ResizeObserver(() => this.layout()).observe(box);
  }

  show(thought) {
    this.thought = thought;
    this.chosen = null;
    this.hits = new Set();
    this.hitNow = null;
    this.lines = null;
    this.scrollTo(0);
    this.layout();
  }

  scrollTo(top) {
    const most = Math.max(0, this.lines ? this.lines.count * this.lineHeight - this.height : 0);
    this.top = Math.max(0, Math.min(most, Math.round(top)));
    this.moved = true; // the box follows when the lines are there
  }

  measure() {
    const probe = this.sizer.appendChild(document.createElement("span"));
    probe.className = "probe";
    probe.textContent = "0".repeat(64);
    const size = probe.getBoundingClientRect();
    probe.remove();
    this.charWidth = size.width / 64 || 8;
    this.lineHeight = Math.max(14, Math.round(parseFloat(getComputedStyle(this.box).lineHeight)) || 22);
    const style = getComputedStyle(this.sizer);
    const room = this.sizer.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    return Math.floor(room / this.charWidth);
  }

  layout() {
    this.height = this.box.clientHeight;
    if (!this.thought || !this.box.clientWidth) return;
    const columns = Math.max(8, this.measure());
    if (this.lines?.columns === columns) return this.render();
    const anchor = this.lines ? this.firstToken() : 0;
    this.lines = new Lines(columns);
    this.clear();
    this.grow();
    if (anchor) this.scrollTo(this.lines.lineOf[anchor] * this.lineHeight);
    this.render();
  }

  // Takes in the tokens that the thought has got since.
  grow() {
    if (!this.lines) return;
    const last = this.lines.count - 1;
    for (let token = this.lines.lineOf.length; token < this.thought.tokens; token++) {
      this.lines.add(this.thought.texts[token]);
    }
    for (let line = Math.max(0, last - 1); line <= last; line++) this.drop(line); // these may have grown or been broken
    this.sizer.style.height = `${this.lines.count * this.lineHeight}px`;
  }

  clear() {
    for (const line of [...this.rows.keys()]) this.drop(line);
  }

  drop(line) {
    this.rows.get(line)?.element.remove();
    this.rows.delete(line);
  }

  firstToken() {
    const line = Math.min(this.lines.count - 1, Math.floor(this.top / this.lineHeight));
    return this.lines.pieceToken[this.lines.lineFirst[line]] ?? 0;
  }

  // Brings the lines in view up to the present state; returns how many tokens were touched.
  render() {
    if (!this.lines) return 0;
    const first = Math.max(0, Math.floor(this.top / this.lineHeight) - OVERSCAN);
    const lines = Math.ceil(this.height / this.lineHeight) + 2 * OVERSCAN;
    const end = Math.min(this.lines.count, first + lines);
    for (const line of [...this.rows.keys()]) if (line < first || line >= end) this.drop(line);
    const added = document.createDocumentFragment();
    let touched = 0;
    for (let line = first; line < end; line++) {
      if (!this.rows.has(line)) added.append(this.makeRow(line));
      for (const piece of this.rows.get(line).pieces) {
        const code = this.code(piece.token);
        if (code === piece.code) continue;
        piece.code = code;
        piece.element.className = className(code);
        touched++;
      }
    }
    if (added.childNodes.length) this.sizer.append(added);
    if (this.moved) this.box.scrollTop = this.top;
    this.moved = false;
    return touched;
  }

  makeRow(line) {
    const element = document.createElement("div");
    element.className = "line";
    element.style.top = `${line * this.lineHeight}px`;
    const [first, end] = this.lines.range(line);
    const pieces = [];
    for (let k = first; k < end; k++) {
      const span = element.appendChild(document.createElement("span"));
      span.textContent = this.lines.pieceText[k];
      span.dataset.token = this.lines.pieceToken[k];
      pieces.push({ element: span, token: this.lines.pieceToken[k], code: -1 });
    }
    this.rows.set(line, { element, pieces });
    return element;
  }

  code(token) {
    const { thought, view } = this;
    const { time, channel } = view;
    let code = token >= time ? FUTURE : HELD;
    if (code === HELD && !thought.recorded && thought.bursts.length) code = UNKNOWN;
    else if (code === HELD && thought.evictedAt[token] <= time) code = GONE;
    const level = code === HELD ? thought.level(token, time, channel) : 0;
    code = level | (code << 4);
    if (thought.isAnswer(token)) code |= 64;
    if (this.hits.has(token)) code |= 128;
    if (this.hitNow && token >= this.hitNow.first && token <= this.hitNow.last) code |= 256;
    if (token === this.chosen) code |= 512;
    if (token === time - 1 && time < thought.tokens) code |= 1024;
    return code;
  }

  // Scrolls so that a token is in view; if it was not, to this share of the height.
  reveal(token, share = 0.5) {
    if (!this.lines || token < 0 || token >= this.thought.tokens) return;
    const top = this.lines.lineOf[token] * this.lineHeight;
    if (top < this.top + this.lineHeight || top > this.top + this.height - 3 * this.lineHeight) {
      this.scrollTo(top - this.height * share);
    }
  }

  mark(matches, now) {
    this.hits = new Set();
    for (const { first, last } of matches) for (let token = first; token <= last; token++) this.hits.add(token);
    this.hitNow = now;
    this.render();
  }

  choose(token) {
    this.chosen = token;
    this.render();
  }

  elementOf(token) {
    for (const { pieces } of this.rows.values()) {
      for (const piece of pieces) if (piece.token === token) return piece.element;
    }
    return null;
  }

  // The token a line above (-1) or below (1), about as far from the left.
  neighbour(token, down) {
    const line = this.lines.lineOf[token] + down;
    if (line < 0 || line >= this.lines.count) return token;
    const [first] = this.lines.range(this.lines.lineOf[token]);
    const [otherFirst, otherEnd] = this.lines.range(line);
    const offset = this.lines.pieceToken.indexOf(token, first) - first;
    return this.lines.pieceToken[Math.min(otherFirst + Math.max(0, offset), otherEnd - 1)] ?? token;
  }
}
