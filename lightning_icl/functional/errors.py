"""The one error that is the user's to mend."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

MOST_THREADS = 1024
MOST_SEED = 2**32 - 1  # torch's CPU generator uses no more of it
LARGEST = 1e6  # of a real option: beside larger ones float32 has few digits left for what is of size 1


class InputError(ValueError):
    """A value that cannot work; the message names it and says what would.

    The command line prints the message as one sentence, without a traceback.
    """


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name as a question, or all of them where none is near."""
    valid = sorted(set(valid))
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid are: {', '.join(valid)}."


def check_at_least(smallest: int, **counts: Any) -> None:
    """Refuse what is no whole number, or below ``smallest`` (a standard error, for one, needs 2 prompts)."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise InputError(f"{name} is {value!r}, but it must be a whole number of at least {smallest}.")
        if value < smallest:
            raise InputError(f"{name} is {value}, but it must be at least {smallest}.")


def check_between(smallest: int, largest: int, **counts: Any) -> None:
    """Refuse what is no whole number, or outside these limits: above ``largest`` it would take all memory or days."""
    check_at_least(smallest, **counts)
    for name, value in counts.items():
        if value > largest:
            raise InputError(f"{name} is {value}, but it must be at most {largest:,}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}, but it must be one of {', '.join(choices)}.")


def check_each_once(name: str, keys: Sequence[str]) -> None:
    """Refuse two of a list that would be logged under one name."""
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{name} has {key} {keys.count(key)} times, but each must be there once.")


def check_positive(**numbers: Any) -> None:
    """Refuse what is no number above 0, or above LARGEST."""
    for name, value in numbers.items():
        _check_number(name, value, "a finite number above 0")
        if value <= 0:
            raise InputError(f"{name} is {value}, but it must be a finite number above 0.")


def check_not_negative(**numbers: Any) -> None:
    """Refuse what is no number, below 0 or above LARGEST."""
    for name, value in numbers.items():
        _check_number(name, value, "a finite number that is 0 or larger")
        if value < 0:
            raise InputError(f"{name} is {value}, but it must be a finite number that is 0 or larger.")


def check_finite(**numbers: Any) -> None:
    """Refuse what is no number, or of a size above LARGEST."""
    for name, value in numbers.items():
        _check_number(name, value, "a finite number")


def _check_number(name: str, value: Any, wanted: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}, but it must be {wanted}.")
    if abs(float(value)) > LARGEST:
        raise InputError(f"{name} is {value}, but its size must be at most {LARGEST:,.0f}.")
