"""The pieces of HTML that reports are put together from, out of `report.jinja`, and their style."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup


def escaped(value: object) -> Markup:
    """A value as HTML; markup stays as it is. Quotes are escaped as the standard library does it."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


@cache
def _pieces() -> Any:
    """The macros of the template, whose every value passes `escaped`."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, finalize=escaped)
    return environment.get_template("report.jinja").module


def run_name(index: int, name: str, symbol: str = "●") -> Markup:
    """A name in the colour of its lines, after the symbol of its points."""
    return Markup(_pieces().run_name(index, name, symbol))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> Markup:
    """A table whose first column names the rows; where the screen is narrow it scrolls by itself, or breaks `words`."""
    return Markup(_pieces().table(head, rows, words))


def section(title: str, note: str, *parts: Markup, folded: bool = False) -> Markup:
    """A heading, a sentence where there is one, and what follows; `folded` until it is opened."""
    return Markup(_pieces().section(title, note, parts, folded))


def figures(drawn: Mapping[str, Markup], *, large: bool = False) -> Markup:
    """Plots by their titles, as many in a row as there is room for; `large` ones are two in a row at most."""
    return Markup(_pieces().figures(list(drawn.items()), large))


def heading(title: str, *parts: Markup, names: Sequence[Markup] = ()) -> Markup:
    """The title of a page, what stands below it, and the names of what it shows, which stay in sight."""
    return Markup(_pieces().heading(title, parts, names))


def tagged(tag: str, text: str) -> Markup:
    """A text within an element of HTML."""
    return Markup(_pieces().tagged(tag, text))


def page(title: str, body: Sequence[Markup]) -> str:
    """The whole file."""
    return str(_pieces().page(title, Markup(STYLE), body))


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
