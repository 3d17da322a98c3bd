r"""Whether an answer is the gold: as text, as numbers, by its letter, in parts; formulas are for others to compare."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from leanthink.data.grading.answer_normalisation import Tolerance, as_number, is_percent, plain, same_number
from leanthink.data.grading.composite_answers import same_parts
from leanthink.data.grading.multiple_choice import is_letter, letter_and_value, letter_of
from leanthink.data.grading.named_results import is_equation, split_name
from leanthink.data.grading.number_bases import same_in_base
from leanthink.data.grading.plain_text import as_latex
from leanthink.data.grading.units import TEXT, same_unit, without_unit

SameFormula = Callable[[str, str, Tolerance], bool]  # (given, gold, tolerance), LaTeX
_WORDS_IN_TEXT = re.compile(rf"{TEXT}\{{([^{{}}]*)\}}")


def same_answer(given: str, gold: str, tolerance: Tolerance, same_formula: SameFormula) -> bool:
    """Whether `given` is `gold`; `same_formula` tells of what is neither text nor number, and is asked last."""
    given, gold = (" ".join(as_latex(text).split()) for text in (given, gold))
    if (same := same_normalised(given, gold, tolerance)) is not None:
        return same
    if is_letter(gold):
        return letter_of(given) == letter_of(gold)
    again = partial(same_answer, tolerance=tolerance, same_formula=same_formula)
    if (printed := letter_and_value(gold)) is not None:
        letter, value = printed
        return letter_of(given) == letter if letter_of(given) is not None else again(given, value)
    if (printed := letter_and_value(given)) is not None:
        return again(printed[1], gold)
    return _same_result(given, gold, partial(_same_value, tolerance=tolerance, same_formula=same_formula))


def same_normalised(given: str, gold: str, tolerance: Tolerance) -> bool | None:
    """Whether both are the same text or the same number; None if that does not tell."""
    if plain(given) == plain(gold):
        return True
    number, wanted = as_number(given), as_number(gold)
    if number is None or wanted is None or _lists(given) or _lists(gold):
        return None
    if not same_unit(given, gold):
        return False
    if same_number(number, wanted, tolerance):
        return True
    if is_percent(given) == is_percent(gold):
        return False
    # Where one alone is a percentage it may also be read as a share.
    return same_number(number / 100 if is_percent(given) else number * 100, wanted, tolerance)


def _same_result(given: str, gold: str, same: Callable[[str, str], bool]) -> bool:
    """Compare values without the names before them, unless it is the equation that is asked for."""
    ours, theirs = split_name(given), split_name(gold)
    if ours.name and theirs.name:
        is_whole = plain(ours.name) != plain(theirs.name)
    else:
        is_whole = bool((ours.name and is_equation(gold)) or (theirs.name and is_equation(given)))
    if is_whole:
        return same(given, gold)
    return any(same(one, other) for other in theirs.values for one in ours.values)


def _same_value(given: str, gold: str, *, tolerance: Tolerance, same_formula: SameFormula) -> bool:
    if (same := same_normalised(given, gold, tolerance)) is not None:
        return same
    if (in_base := same_in_base(given, gold)) is not None:
        return in_base
    alike = same_parts(given, gold, partial(same_answer, tolerance=tolerance, same_formula=same_formula))
    if alike is not None:
        return alike
    if (words := _words(gold)) is not None:
        return _words(given) == words
    if not same_unit(given, gold):
        return False
    ours, theirs = (without_unit(text).strip().strip("$") for text in (given, gold))
    if (same := same_normalised(ours, theirs, tolerance)) is not None:
        return same
    return same_formula(ours, theirs, tolerance)


def _lists(text: str) -> bool:
    """Whether commas with spaces after them say that this is no single number."""
    return re.search(r"\d,\s+-?\d", text) is not None


def _words(text: str) -> str | None:
    r"""Words in lower case, if there is nothing else: a name, yes or no, a day of the week."""
    bare = _WORDS_IN_TEXT.sub(r"\1", text).strip().strip("$").strip(" .")
    bare = " ".join(bare.split()).casefold()
    return bare if re.fullmatch(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*", bare) else None
