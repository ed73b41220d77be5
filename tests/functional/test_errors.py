"""Checks of options: whatever is no number gets the sentence that a wrong number gets."""

import math
import resource

import pytest
import torch

from lightning_icl import LinearRegression, PromptDataModule, TaskPool, Transformer
from lightning_icl.functional import memory
from lightning_icl.functional.errors import (
    LARGEST,
    InputError,
    check_at_least,
    check_between,
    check_finite,
    check_not_negative,
    check_positive,
)

NO_NUMBER = [None, True, "3", "", [], math.nan]
CHECKS = {
    "a whole number of at least 1": [lambda x: check_at_least(1, size=x), lambda x: check_between(1, 9, size=x)],
    "a finite number above 0": [lambda x: check_positive(size=x)],
    "a finite number that is 0 or larger": [lambda x: check_not_negative(size=x)],
    "a finite number": [lambda x: check_finite(size=x)],
}


@pytest.mark.parametrize("value", NO_NUMBER, ids=repr)
@pytest.mark.parametrize("words", CHECKS)
def test_what_is_no_number_is_named(words, value):
    for check in CHECKS[words]:
        with pytest.raises(InputError) as error:
            check(value)
        assert str(error.value) == f"size is {value!r}, but it must be {words}."


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (lambda: check_at_least(2, size=1), "size is 1, but it must be at least 2."),
        (lambda: check_at_least(2, size=2.0), "size is 2.0, but it must be a whole number of at least 2."),
        (lambda: check_between(2, 2000, size=2001), "size is 2001, but it must be at most 2,000."),
        (lambda: check_positive(size=0.0), "size is 0.0, but it must be a finite number above 0."),
        (lambda: check_positive(size=1e9), "size is 1000000000.0, but its size must be at most 1,000,000."),
        (lambda: check_not_negative(size=-1), "size is -1, but it must be a finite number that is 0 or larger."),
        (lambda: check_not_negative(size=math.inf), "size is inf, but it must be a finite number that is 0 or larger."),
        (lambda: check_finite(size=-1e30), "size is -1e+30, but its size must be at most 1,000,000."),
    ],
)
def test_a_number_that_cannot_work_is_named(check, words):
    with pytest.raises(InputError) as error:
        check()
    assert str(error.value) == words


def test_numbers_at_the_limits_pass():
    check_at_least(2, size=2)
    check_between(2, 9, least=2, most=9)
    check_positive(least=1e-30, most=LARGEST)
    check_not_negative(least=0, most=LARGEST)
    check_finite(least=-LARGEST, most=LARGEST)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PromptDataModule(LinearRegression(4), batch_size=10**7), "batch_size is 10,000,000: so many prompts"),
        (lambda: PromptDataModule(LinearRegression(4), n_points=10**7), "n_points 10,000,000"),
        (lambda: TaskPool(LinearRegression(4), 10**9), "a pool whose n_tasks is 1,000,000,000 would take"),
        (lambda: Transformer(4, d_model=2**20), "the weights of a model with d_model 1,048,576"),
        (lambda: Transformer(4, head_dim=10**9), "head_dim 1000000000"),
        (lambda: Transformer(4, position="learned", max_points=10**9), "max_points 1000000000"),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_it_is_asked_for(monkeypatch, make, words):
    monkeypatch.setattr(memory, "memory", lambda device: 2 * 2**30)
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
    assert str(error.value).endswith(" GiB of memory, but there are 2.")


def test_a_process_has_no_more_memory_than_it_is_allowed(monkeypatch):
    whole = memory.memory(torch.device("cpu"))
    monkeypatch.setattr(resource, "getrlimit", lambda of: (2**20, 2**30))
    assert memory.memory(torch.device("cpu")) == 2**20 < whole
