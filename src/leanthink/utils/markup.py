"""The pieces of HTML that reports are put together from, and their style."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence


class Markup(str):
    """HTML of our own making; any other text is escaped where it gets into a piece."""


def escaped(text: str) -> str:
    """The text as HTML."""
    return text if isinstance(text, Markup) else html.escape(text)


def run_name(index: int, name: str, symbol: str = "●") -> Markup:
    """A name in the colour of its lines, after the symbol of its points."""
    own = f"--own: var(--run-{index}); --symbol: '{symbol} '"
    return Markup(f'<span class="run" style="{own}">{html.escape(name)}</span>')


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> Markup:
    """A table whose first column names the rows; where the screen is narrow it scrolls by itself, or breaks `words`."""
    top = "".join(f"<th>{escaped(word)}</th>" for word in head)
    body = "".join(
        f"<tr><th>{escaped(first)}</th>{''.join(f'<td>{escaped(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    kind = ' class="words"' if words else ""
    return Markup(f'<div class="wide"><table{kind}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>')


def section(title: str, note: str, *parts: Markup, folded: bool = False) -> Markup:
    """A heading, a sentence where there is one, and what follows; `folded` until it is opened."""
    inside = (f"<p>{escaped(note)}</p>" if note else "") + "".join(parts)
    if folded:
        return Markup(f"<details><summary>{escaped(title)}</summary>{inside}</details>")
    return Markup(f"<section><h2>{escaped(title)}</h2>{inside}</section>")


def figures(drawn: Mapping[str, Markup], *, large: bool = False) -> Markup:
    """Plots by their titles, as many in a row as there is room for; `large` ones are two in a row at most."""
    found = "".join(f"<figure><figcaption>{escaped(title)}</figcaption>{svg}</figure>" for title, svg in drawn.items())
    return Markup(f'<div class="plots{" large" if large else ""}">{found}</div>')


def _colors(colors: Sequence[str]) -> str:
    return " ".join(f"--run-{index}: {color};" for index, color in enumerate(colors))


DAY = _colors(("#1f6f5c", "#c2410c", "#1d4ed8", "#a21caf", "#a16207", "#0891b2", "#be123c", "#4d7c0f"))
NIGHT = _colors(("#4fc3a1", "#fb923c", "#7aa2ff", "#e879f9", "#facc15", "#22d3ee", "#fb7185", "#a3e635"))
STYLE = f"""
:root {{ color-scheme: light dark; --ink: #1c1b18; --paper: #fdfcf9; --line: #c9c5ba; {DAY} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e9e6dd; --paper: #171715; --line: #4b4943; {NIGHT} }} }}
body {{ margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 16px/1.45 system-ui, sans-serif; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin: 2rem 0 .3rem; }} section section h2 {{ font-size: 1rem; }}
p {{ margin: .3rem 0; max-width: 60rem; font-size: .9rem; }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: .5rem 1rem; }}
.large {{ grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }}
figure {{ margin: 0; }} figcaption {{ font-size: .9rem; }} svg {{ width: 100%; height: auto; display: block; }}
.wide {{ overflow-x: auto; margin: .8rem 0; }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .15rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }}
td {{ white-space: nowrap; }} tr > th:first-child {{ text-align: left; white-space: nowrap; }}
.words th:first-child {{ white-space: normal; }}
.words td, .words thead th {{ text-align: left; white-space: normal; overflow-wrap: anywhere; }}
.run {{ white-space: nowrap; }} .run::before {{ content: var(--symbol); color: var(--own); }}
.names {{ position: sticky; top: 0; background: var(--paper); padding: .3rem 0; display: flex; flex-wrap: wrap;
  gap: 0 1.2rem; }}
summary {{ cursor: pointer; margin: .6rem 0; }}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
