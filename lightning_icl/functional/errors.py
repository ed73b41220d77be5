"""The one error that is the user's to mend."""

import math
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class InputError(ValueError):
    """A value that cannot work; the message names it and says what would.

    The command line prints the message as one sentence, without a traceback.
    """


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name as a question, or all of them where none is near."""
    valid = sorted(set(valid))
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid are: {', '.join(valid)}."


def check_at_least(smallest: int, **counts: int | None) -> None:
    """Refuse a count below ``smallest`` (a standard error, for one, needs 2 prompts); None is no count."""
    for name, value in counts.items():
        if value is not None and value < smallest:
            raise InputError(f"{name} is {value}, but it must be at least {smallest}.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}, but it must be one of {', '.join(choices)}.")


def check_each_once(name: str, keys: Sequence[str]) -> None:
    """Refuse two of a list that would be logged under one name."""
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{name} has {key} {keys.count(key)} times, but each must be there once.")


def check_positive(**numbers: float) -> None:
    """Refuse a number that is not above 0, and one without end."""
    for name, value in numbers.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} is {value}, but it must be a finite number above 0.")


def check_not_negative(**numbers: float) -> None:
    """Refuse a number below 0, and one without end."""
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} is {value}, but it must be a finite number that is 0 or larger.")
