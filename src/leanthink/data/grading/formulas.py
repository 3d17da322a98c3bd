r"""Formulas as sympy has them, and nothing left out: what the parser would drop is spelt so that it cannot, or refused.

Imported by the processes of the math-verify pool alone, as sympy takes a second to load and can compute for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from sympy import Derivative, Function, I, Integral, Symbol
from sympy.core.function import AppliedUndef

from leanthink.data.grading.units import TEXT

MOST_CHARACTERS = 2_000  # of a formula: the parser takes seconds for more
_AS_IT_IS = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp|max|min|gcd|lcm|det"
_FONT = rf"(?:{TEXT}|\\(?:boldsymbol|bm|mathsf)\s*)"
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_I = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_LETTERS = re.compile(r"\\[A-Za-z]+|([A-Za-z])")
_MATRIX = re.compile(r"\\(?:begin|end)\s*\{\w+\}(?:\s*\^\s*\{?T\}?)?")
# (what the parser loses or misreads, what it reads)
_SPELLINGS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"\\(?:imath|iota)(?![A-Za-z])"), "i"),
    (re.compile(rf"{_FONT}\{{\s*({_FUNCTIONS})\s*\}}"), r"\\\1 "),
    (re.compile(rf"{_FONT}\{{\s*(\\?[A-Za-z]|\\[A-Za-z]+)\s*\}}"), r" \1 "),
    (
        re.compile(r"\\hat\s*(?:\{\s*\\?([ijk])(?:math)?\s*\}|\s\\?([ijk])(?:math)?(?![A-Za-z]))"),
        r" \1\2 ",
    ),  # unit vectors
    (re.compile(r"^(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)$"), r"\1 \\cdot 10^{\2}"),
    (re.compile(r"C\s*_\s*\{?\s*(\d+)\s*\}?\s*\^\s*\{?\s*(\d+)\s*\}?"), lambda found: _combinations(found)),
    (re.compile(r"\\operatorname\s*\*?"), r"\\text"),
    (re.compile(rf"(?<![A-Za-z\\])(?:np\.|math\.)?({_FUNCTIONS})(?![A-Za-z])"), r"\\\1 "),
    (re.compile(r"\\(bar|vec|hat|dot|overline|tilde)\s+([A-Za-z])(?![A-Za-z])"), r"\\\1{\2}"),
    (re.compile(r"\\sqrt\s*(\[[^\[\]]*\])\s*(\d|[A-Za-z])"), r"\\sqrt\1{\2}"),
    (re.compile(r"(?<![A-Za-z\\])([Ee])(?=\s*_)"), r"\\text{\1}"),  # a name, as it has an index
    (re.compile(r"_\s*(?:\{\s*\\(odot|oplus|star|ast)\s*\}|\\(odot|oplus|star|ast)(?![A-Za-z]))"), r"_{\\text{\1\2}}"),
    # A prime is part of the name: f'(x) and f(x) are two functions.
    (
        re.compile(r"([A-Za-z])\s*((?:'|\^\s*\\prime(?![A-Za-z])|\^\s*\{(?:\s*\\prime)+\s*\})+)"),
        lambda found: _primed(found),
    ),
    # A transpose is lost unless it is of a matrix that is written out.
    (re.compile(r"(?<=[\w])\s*\^\s*(?:\{\s*(?:T|\\top|\\intercal)\s*\}|T|\\top(?![A-Za-z]))"), r"^{1 T}"),
    # Signs that stand for no number: the parser takes them for names.
    (re.compile(r"\\(?:displaystyle|,|;|:|!|\s)"), " "),
)
# Read as something else than what it says: a base, a double factorial, a prime of something longer.
_UNREADABLE = re.compile(
    r"(?<![A-Za-z_\d])(?<!_\{)\d+\s*_|!\s*!|['′]|\\prime|\\[pb]?mod|\\begin\{cases\}|\\mapsto|\\to(?![A-Za-z])"
)


def read_both(given: str, gold: str) -> tuple[Any, Any] | None:
    """Two formulas in the same reading; None unless both were read, and read to the end."""
    if max(len(given), len(gold)) > MOST_CHARACTERS:
        return None
    texts = tuple(map(_spelt, (given, gold)))
    if any(_UNREADABLE.search(text) for text in texts):
        return None
    is_complex = any(_I.search(text) for text in texts)
    in_degrees = any(_TRIGONOMETRIC.search(text) and r"\circ" in text for text in texts)
    read = []
    for text in texts:
        try:
            found = latex2sympy(
                text,
                is_real=None if is_complex else True,
                convert_degrees=in_degrees,
                normalization_config=_AS_IT_IS,
                conversion_config=ConversionConfig(lowercase_symbols=False),  # R and r are two radii
            )
        except Exception:  # its grammar raises plain ones
            return None
        read.append(found)
    if _dropped(texts[0], read[0]) != _dropped(texts[1], read[1]):
        return None
    ours, theirs = (_closed(formula, is_complex=is_complex) for formula in read)
    return ours, theirs


def _spelt(text: str) -> str:
    for spelling, latex in _SPELLINGS:
        text = spelling.sub(latex, text)
    return text.strip()


def _primed(found: re.Match[str]) -> str:
    primes = len(re.findall(r"'|\\prime", found[2]))
    return f"{found[1]}_{{{'p' * primes}}}"


def _combinations(found: re.Match[str]) -> str:
    """`C_5^2` as the binomial that it is in many countries, unless it is the square of a constant."""
    return rf"\binom{{{found[1]}}}{{{found[2]}}}" if int(found[1]) >= max(int(found[2]), 2) else found[0]


def _dropped(text: str, formula: Any) -> frozenset[str]:
    """Letters of the text that no name of the formula has."""
    names = [str(atom) for atom in formula.atoms(Symbol, Function)]
    names += [str(one.func) for one in formula.atoms(AppliedUndef)]
    read = set("".join(names)) | set("eid")  # constants, and the d of dx
    return frozenset(_LETTERS.findall(_MATRIX.sub("", text))) - read - {""}


def _closed(formula: Any, *, is_complex: bool) -> Any:
    """With i as the imaginary unit; a derivative or integral of a bare name is a name, as it cannot be worked out."""
    if is_complex:
        formula = formula.subs(Symbol("i"), I)
    return formula.xreplace({one: Symbol(str(one)) for one in formula.atoms(Derivative, Integral) if _is_bare(one)})


def _is_bare(one: Any) -> bool:
    return isinstance(one.args[0], Symbol) and one.args[0] not in one.variables
