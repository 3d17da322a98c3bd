// Breaks tokens into lines of a fixed number of columns, at spaces where there are any; grows with its tokens.

const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u;
const NARROW = /[\p{Mn}\p{Me}\p{Cf}]/u;
export const NEWLINE = "↵";

function width(character) {
  if (character <= "\u007e") return 1;
  if (NARROW.test(character)) return 0;
  return WIDE.test(character) ? 2 : 1;
}

// What is shown of a token: control characters by their pictures, newlines by a sign that ends the line.
function shown(character) {
  const code = character.codePointAt(0);
  if (character === "\t") return "→";
  return code < 32 ? String.fromCodePoint(0x2400 + code) : character;
}

export class Lines {
  // A piece is what one line shows of one token; a token has at least one.
  constructor(columns) {
    this.columns = Math.max(8, columns);
    this.pieceToken = [];
    this.pieceText = [];
    this.lineFirst = [0]; // of each line its first piece
    this.lineOf = []; // of each token the line it begins in
    this.column = 0;
    this.breakAt = 0; // the piece that a full line can be broken before
    this.widths = [];
  }

  get count() {
    return this.lineFirst.length;
  }

  // The pieces of a line: [first, end).
  range(line) {
    return [this.lineFirst[line], line + 1 < this.count ? this.lineFirst[line + 1] : this.pieceText.length];
  }

  add(text) {
    const token = this.lineOf.length;
    this.lineOf.push(this.count - 1);
    const before = this.pieceText.length;
    let piece = "";
    let columns = 0;
    for (const character of text) {
      if (character === "\n") {
        this.put(token, piece + NEWLINE, columns + 1);
        this.startLine(this.pieceText.length);
        piece = "";
        columns = 0;
        continue;
      }
      const wide = width(character);
      if (columns + wide > this.columns) {
        this.put(token, piece, columns);
        piece = "";
        columns = 0;
      }
      piece += shown(character);
      columns += wide;
    }
    if (piece || this.pieceText.length === before) this.put(token, piece, columns);
  }

  put(token, text, columns) {
    const first = this.lineFirst[this.count - 1];
    if (this.column && this.column + columns > this.columns) {
      this.startLine(this.breakAt > first ? this.breakAt : this.pieceText.length);
    }
    this.pieceToken.push(token);
    this.pieceText.push(text);
    this.widths.push(columns);
    this.column += columns;
    if (/\s$/.test(text)) this.breakAt = this.pieceText.length;
    if (this.pieceText.length === 1 || this.pieceToken.at(-2) !== token) this.lineOf[token] = this.count - 1;
  }

  // Everything from this piece on stands on a new line.
  startLine(piece) {
    this.lineFirst.push(piece);
    this.breakAt = piece;
    this.column = 0;
    for (let k = piece; k < this.pieceText.length; k++) {
      this.column += this.widths[k];
      if (this.pieceToken[k] !== this.pieceToken[k - 1]) this.lineOf[this.pieceToken[k]] = this.count - 1;
    }
  }
}
