"""A law of one's own that draws what no run can use gets one sentence; every law of ours passes."""

import re

import pytest
import torch
from conftest import small_data, small_module, small_trainer
from margins import EVERY_TASK

from lightning_icl import InputError, Task
from lightning_icl.functional.tasks.trial import check_law


@pytest.mark.parametrize("name", EVERY_TASK)
def test_our_laws_pass(name):
    check_law(EVERY_TASK[name])


class Own(Task):
    def sample_targets(self, x, generator):
        return x.sum(-1), None


class TargetsAlone(Own):
    def sample_targets(self, x, generator):
        return x.sum(-1)


class OneAPrompt(Own):
    def sample_targets(self, x, generator):
        return x.sum((1, 2)), None


class Double(Own):
    def sample_targets(self, x, generator):
        return x.double().sum(-1), None


class Undefined(Own):
    def sample_targets(self, x, generator):
        return x.sum(-1).log(), None


class OtherGenerator(Own):
    def sample_targets(self, x, generator):
        return x.sum(-1) * torch.randn(len(x), 1), None


class WeightsOfSomethingElse(Own):
    def sample_targets(self, x, generator):
        return x.square().sum(-1), torch.ones(len(x), self.n_dims)


class Undecorated(Own):
    width: int = 20


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (TargetsAlone, "TargetsAlone.sample_targets returns a Tensor, but it must return two things: the targets, and"),
        (OneAPrompt, r"returns targets (4,) of torch.float32, but for x of shape (4, 5, 3) they must be (4, 5) of"),
        (Double, "returns targets (4, 5) of torch.float64, but"),
        (Undefined, "Undefined draws prompts whose y is NaN or infinite"),
        (OtherGenerator, "OtherGenerator draws another y from the same generator: every random number must come from"),
        (WeightsOfSomethingElse, "returns weights w, but its targets are not <w, x>: return None"),
        (Undecorated, "Undecorated has width as an annotation, but that is an option only with @dataclass(frozen="),
    ],
)
def test_what_no_run_can_use_is_told(own, message):
    check_law(Own(3))
    with pytest.raises(InputError, match=re.escape(message)):
        check_law(own(3))


def test_a_run_says_so_before_it_begins(tmp_path):
    data = small_data(validation={"plain": {}, "other": {"task": TargetsAlone(4)}})
    with pytest.raises(InputError, match="sample_targets returns a Tensor"):
        small_trainer(tmp_path).fit(small_module(), data)
