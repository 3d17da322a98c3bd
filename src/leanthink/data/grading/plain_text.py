"""Mathematics as people and models type it, written as LaTeX: `√2`, `x²`, `½`, `3×10⁵`, `x <= 3`, `sqrt(2)`."""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\ufe63": "-",
    "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "∗": "*", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ",
    "≤": r"\leq ", "⩽": r"\leq ", "≦": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ", "≧": r"\geq ", "≠": r"\neq ",
    "≈": r"\approx ", "≡": r"\equiv ", "∞": r"\infty ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "°": r"^{\circ}",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∖": r"\setminus ", "∠": r"\angle ", "△": r"\triangle ",
    "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "′": "'", "″": "''", "’": "'", "∣": r"\mid ", "∥": r"\|", "…": r"\ldots ",
    "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "→": r"\to ", "∂": r"\partial ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ", "\u2061": "", "\u200b": "",
}  # fmt: skip
_ASCII = (
    (re.compile(r"<="), r"\\leq "),
    (re.compile(r">="), r"\\geq "),
    (re.compile(r"(?<=[\w)\]}])\s*\*\*\s*(\d+)"), r"^{\1}"),
    (re.compile(r"(?<=[\w)\]}])\s*\*\*\s*(?=[\w(\\-])"), "^"),
    (re.compile(r"\s!=\s"), r" \\neq "),  # n!=6 is a factorial
    (re.compile(r"(?<![A-Za-z\\])(?:infinity|oo)(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\])(pi)(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"\\(?:display|text)style(?![A-Za-z])"), " "),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset "),
)
_ROOT = re.compile(r"(?:√|\\?(?<![A-Za-z])sqrt(?![A-Za-z]))\s*\(|[()]")
_BARE_ROOT = re.compile(r"√\s*(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])|\\[A-Za-z]+)?")
_REPEATED = re.compile("((?:[0-9]\u0305)+)")  # digits under a bar
_NAMED = {"GREEK SMALL LETTER ": str.lower, "GREEK CAPITAL LETTER ": str.capitalize}


def as_latex(text: str) -> str:
    """The text with Unicode's mathematics and a few spellings of plain text as LaTeX; what is LaTeX stays."""
    text = _roots(text)
    if not text.isascii():
        text = _REPEATED.sub(lambda found: rf"\overline{{{found[1].replace(chr(0x305), '')}}}", text)
        text = _BARE_ROOT.sub(lambda found: rf"\sqrt{{{found[1]}}}" if found[1] else r"\sqrt ", text)
        text = _scripts(text, "<super>", "^")
        text = _scripts(text, "<sub>", "_")
        text = "".join(map(_character, text))
    for spelling, latex in _ASCII:
        text = spelling.sub(latex, text)
    return text


def _roots(text: str) -> str:
    """`sqrt(...)` and `√(...)` with braces; the text as it is where its parentheses do not match."""
    if "sqrt" not in text and "√" not in text:
        return text
    pieces: list[str] = []
    is_root: list[bool] = []
    start = 0
    for found in _ROOT.finditer(text):
        if found[0] == ")":
            if not is_root:
                return text
            mark = "}" if is_root.pop() else ")"
        else:
            is_root.append(found[0] != "(")
            mark = r"\sqrt{" if is_root[-1] else "("
        pieces += text[start : found.start()], mark
        start = found.end()
    return text if is_root else "".join(pieces) + text[start:]


def _scripts(text: str, kind: str, mark: str) -> str:
    """Raised or lowered characters that stand together as one exponent or index."""
    pieces: list[str] = []
    raised = ""
    for character in (*text, ""):
        if character and unicodedata.decomposition(character).startswith(kind):
            raised += unicodedata.normalize("NFKC", character)
            continue
        if raised:
            pieces.append(f"{mark}{{{raised}}}".replace("\u2212", "-"))
            raised = ""
        pieces.append(character)
    return "".join(pieces)


def _character(character: str) -> str:
    if character.isascii():
        return character
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    plain = unicodedata.normalize("NFKC", character)
    if "\u2044" in plain:  # the bar of ½
        top, _, bottom = plain.partition("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    name = unicodedata.name(plain, "") if len(plain) == 1 else ""
    for prefix, spell in _NAMED.items():
        if name.startswith(prefix) and name.removeprefix(prefix).isalpha():
            letter = name.removeprefix(prefix).replace("LAMDA", "LAMBDA").replace("FINAL SIGMA", "SIGMA")
            return rf"\{spell(letter)} "
    return plain
