// The pictures of a thought: slots held against a full cache over time, which positions had a slot when, and which now.

import { LEVELS } from "./thought.js";

const sizes = new WeakMap(); // in CSS pixels: to ask a canvas while the text changes would cost a layout

// Makes a canvas as large as its place, in device pixels; to be called whenever that may have changed.
export function fit(canvas) {
  const scale = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  canvas.getContext("2d").setTransform(scale, 0, 0, scale, 0, 0);
  sizes.set(canvas, { width, height });
}

function prepare(canvas) {
  const { width, height } = sizes.get(canvas);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

// Colours of the style sheet, as a canvas understands them.
export function palette(element) {
  const probe = element.appendChild(document.createElement("i"));
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const colours = Object.fromEntries(
    ["ink", "soft", "grid", "accent", "wash", "pinned"].map((name) => [name, read(name)]),
  );
  colours.levels = Array.from({ length: LEVELS }, (_, level) => read(`strip-${level}`));
  probe.remove();
  return colours;
}

// Slots over time: the full cache as a line, what was held as an area. `span` tokens fill the width.
export function drawCurve(canvas, thought, span, colours) {
  const { context, width, height } = prepare(canvas);
  if (!width || !thought.tokens) return;
  const most = Math.max(1, thought.promptTokens + span) * 1.04;
  const x = (t) => (t / span) * width;
  const y = (slots) => height - (slots / most) * height;
  drawGrid(context, width, height, most, y, colours);
  context.beginPath();
  context.moveTo(0, y(thought.fullSlots(0)));
  context.lineTo(x(thought.tokens - 1), y(thought.fullSlots(thought.tokens)));
  context.strokeStyle = colours.soft;
  context.setLineDash([4, 3]);
  context.lineWidth = 1.5;
  context.stroke();
  context.setLineDash([]);
  const points = heldPoints(thought, span / width);
  context.beginPath();
  context.moveTo(0, y(thought.promptTokens));
  for (const [t, slots] of points) context.lineTo(x(t), y(slots));
  context.strokeStyle = colours.accent;
  context.lineWidth = 1.75;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(x(points.at(-1)[0]), height);
  context.lineTo(0, height);
  context.closePath();
  context.fillStyle = colours.wash;
  context.fill();
  context.fillStyle = colours.pinned;
  context.fillRect(0, y(thought.promptTokens), x(thought.tokens), height);
}

function drawGrid(context, width, height, most, y, colours) {
  context.font = "11px system-ui, sans-serif";
  context.lineWidth = 1;
  const step = niceStep(most / Math.max(2, height / 36));
  for (let slots = step; slots < most; slots += step) {
    context.fillStyle = colours.grid;
    context.fillRect(0, Math.round(y(slots)), width, 1);
    context.fillStyle = colours.soft;
    context.fillText(slots.toLocaleString("en"), 4, y(slots) - 3);
  }
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

// The held slots at most every half pixel, and at every peak and fall.
function heldPoints(thought, tokensPerPixel) {
  const points = [];
  const step = Math.max(1, Math.floor(tokensPerPixel / 2));
  let burst = 0;
  for (let t = 0; t <= thought.tokens; t += step) {
    for (; burst < thought.bursts.length && thought.bursts[burst] <= t; burst++) {
      const at = thought.bursts[burst];
      points.push([at, thought.mostSlots(at)], [at, thought.heldSlots(at)]);
    }
    points.push([t, thought.heldSlots(t)]);
  }
  points.push([thought.tokens, thought.heldSlots(thought.tokens)]);
  return points;
}

// A column is a moment, a row a token: painted while the token has its slot. Darker: more of them have.
export function drawMap(canvas, thought, span, colours) {
  const { context, width, height } = prepare(canvas);
  if (!width || !thought.tokens) return;
  const columns = canvas.width;
  const rows = canvas.height;
  const share = coverage(thought, span, columns, rows);
  const [red, green, blue] = colours.accent.match(/[\d.]+/g).map(Number);
  const image = context.createImageData(columns, rows);
  for (let k = 0; k < share.length; k++) {
    image.data[4 * k] = red;
    image.data[4 * k + 1] = green;
    image.data[4 * k + 2] = blue;
    image.data[4 * k + 3] = 235 * Math.min(1, share[k]) ** 0.6;
  }
  context.putImageData(image, 0, 0);
}

// [rows * columns]: of the tokens of a row, the share that had a slot in the time of a column.
function coverage(thought, span, columns, rows) {
  const change = new Float32Array(rows * (columns + 1));
  const tokensPerRow = span / rows;
  for (let token = 0; token < thought.fed(thought.tokens); token++) {
    const from = (token / span) * columns;
    const to = (Math.min(thought.evictedAt[token], thought.tokens) / span) * columns;
    const top = (token / span) * rows;
    const bottom = ((token + 1) / span) * rows;
    for (let row = Math.floor(top); row < Math.min(rows, Math.ceil(bottom)); row++) {
      const overlap = Math.min(bottom, row + 1) - Math.max(top, row);
      const weight = tokensPerRow > 1 ? 1 / tokensPerRow : overlap;
      const base = row * (columns + 1);
      change[base + Math.floor(from)] += weight;
      change[base + Math.min(columns, Math.max(Math.floor(from) + 1, Math.round(to)))] -= weight;
      if (tokensPerRow > 1) break;
    }
  }
  const share = new Float32Array(rows * columns);
  for (let row = 0; row < rows; row++) {
    let sum = 0;
    for (let column = 0; column < columns; column++) {
      share[row * columns + column] = sum += change[row * (columns + 1) + column];
    }
  }
  return share;
}

// The slots of one moment, oldest token left: painted by importance where one is held, bare where it is gone.
export function drawStrip(canvas, thought, view, span, colours) {
  const { context, width, height } = prepare(canvas);
  if (!width) return;
  const now = Math.min(view.time, thought.tokens);
  const pixels = new Int8Array(Math.ceil(width)).fill(-1);
  for (let token = 0; token < now; token++) {
    if (thought.evictedAt[token] <= now) continue;
    const level = thought.level(token, now, view.channel);
    const first = Math.floor((token / span) * width);
    const end = Math.max(first + 1, Math.floor(((token + 1) / span) * width));
    for (let x = first; x < end; x++) if (level > pixels[x]) pixels[x] = level;
  }
  for (let x = 0; x < pixels.length; ) {
    let end = x + 1;
    while (end < pixels.length && pixels[end] === pixels[x]) end++;
    if (pixels[x] >= 0) {
      context.fillStyle = colours.levels[thought.channels ? pixels[x] : 6];
      context.fillRect(x, 0, end - x, height);
    }
    x = end;
  }
}
