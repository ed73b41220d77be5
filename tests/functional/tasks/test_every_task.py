"""What holds for every task: its law at given points, its generator, its cost, its configuration."""

import copy
import inspect
import io
import math
import pickle
import re
from contextlib import redirect_stdout
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from margins import EVERY_TASK, assert_mean_within_4_standard_errors, every_task, generator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lightning_icl
from lightning_icl import (
    DecisionTree,
    Eigenvalues,
    GroupSparseLinearRegression,
    HiddenRepresentation,
    InputError,
    Law,
    LinearClassification,
    LinearRegression,
    Mixture,
    PolynomialRegression,
    QuadraticRegression,
    ReLUNetwork,
    SparseLinearRegression,
    SparseRecovery,
    Spiked,
    Task,
    TaskPool,
)
from lightning_icl.cli import ICLCommandLine
from lightning_icl.functional.tasks.law import Constant

NAMES = list(EVERY_TASK)
# Two points at which targets are compared; their first two features agree in sign.
POINTS = np.array([[1.0, -0.5, 2.0], [0.3, -1.5, -0.7]])


def second_moments(between):
    """The matrix of ``between`` over the two points."""
    return np.array([[between(a, b) for b in POINTS] for a in POINTS])


def angle(a, b):
    return math.acos(min(1.0, a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def hermite(x, k):
    return np.polynomial.hermite_e.HermiteE.basis(k)(x) / math.sqrt(math.factorial(k))


def pool_moments(pool):
    return pool.pool.double().T.numpy() @ pool.pool.double().numpy() / pool.n_tasks


def arc_cosine(a, b):
    """2 E relu(<u, a>) relu(<u, b>), u ~ N(0, I) (Cho and Saul 2009)."""
    t = angle(a, b)
    return np.linalg.norm(a) * np.linalg.norm(b) / math.pi * (math.sin(t) + (math.pi - t) * math.cos(t))


POOL = TaskPool(SparseLinearRegression(3, 2), 4)
REPRESENTATION = HiddenRepresentation(3, 5, 2)


def phi(x):
    return REPRESENTATION.representation(torch.tensor(x)).numpy()


@pytest.mark.parametrize(
    ("task", "between"),  # E f(a) f(b) over target functions
    [
        (SparseLinearRegression(3, 2), lambda a, b: 2 / 3 * a @ b),
        (SparseLinearRegression(3, 2, weight_law="unit_norm"), lambda a, b: a @ b / 3),
        (
            SparseLinearRegression(3, 2, weight_law="scaled", weight_mean=2.0),  # E w_i w_j: 2/3 (1/2 + 4), 1/3 4
            lambda a, b: a @ (np.eye(3) * (3 - 4 / 3) + 4 / 3) @ b,
        ),
        (LinearRegression(3, weight_law="sign"), lambda a, b: a @ b),
        (GroupSparseLinearRegression(3, 3, 1), lambda a, b: a @ b),
        (SparseRecovery(3, 1), lambda a, b: a @ b / 3),
        (POOL, lambda a, b: a @ pool_moments(POOL) @ b),
        (QuadraticRegression(3), lambda a, b: a**2 @ b**2 / 3),
        (PolynomialRegression(3, 3), lambda a, b: sum(hermite(a, k) @ hermite(b, k) for k in (1, 2, 3)) / 3),
        (ReLUNetwork(3, 8), arc_cosine),
        (DecisionTree(3, 2), lambda a, b: ((a > 0) == (b > 0)).mean() ** 2),
        (LinearClassification(3, flip_probability=0.2), lambda a, b: 0.36 * (1 - 2 * angle(a, b) / math.pi)),
        (REPRESENTATION, lambda a, b: phi(a) @ phi(b)),
        (
            Mixture([LinearRegression(3), QuadraticRegression(3)], [1.0, 3.0]),
            lambda a, b: a @ b / 4 + a**2 @ b**2 / 4,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Law) else "",
)
def test_targets_at_given_points_have_the_second_moments_of_their_law(task, between):
    x = torch.tensor(POINTS, dtype=torch.float32).expand(40_000, 2, 3)
    f = task.sample_targets(x, generator())[0].double()
    assert_mean_within_4_standard_errors(f[:, :, None] * f[:, None], second_moments(between))


@pytest.mark.parametrize("name", NAMES)
def test_the_generator_is_the_only_randomness(name):
    task = EVERY_TASK[name]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = task.sample(3, 4, 2, generator())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = every_task(4)[name].sample(3, 4, 2, generator())  # a task built anew is the same task
    other = task.sample(3, 4, 2, generator(1))
    for field, a, b, c in zip(first._fields, first, again, other, strict=True):
        assert (a is None and b is None and c is None) or torch.equal(a, b), field
        if a is not None and not (name == "recovery" and field == "x"):
            assert not torch.equal(a, c), field


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("batch", "points", "queries", "d"), [(1, 1, 1, 1), (1, 3, 2, 5), (4, 0, 2, 2), (2, 7, 3, 1)])
def test_every_shape_works(name, batch, points, queries, d):
    task = every_task(d)[name]
    prompt = task.sample(batch, points, queries, generator())
    assert task.n_dims == d
    assert prompt.x.shape == (batch, points, d)
    assert prompt.x_query.shape == (batch, queries, d)
    assert prompt.y.shape == prompt.f.shape == (batch, points)
    assert prompt.y_query.shape == prompt.f_query.shape == (batch, queries)
    assert prompt.w is None or prompt.w.shape == (batch, d)
    assert all(field.isfinite().all() for field in prompt if field is not None)
    assert all(field.dtype == torch.float32 for field in prompt if field is not None)


@pytest.mark.parametrize("name", NAMES)
def test_labels_have_the_targets_as_their_mean(name):
    prompt = EVERY_TASK[name].sample(20_000, 1, 1, generator())
    for noise in (prompt.y - prompt.f, prompt.y_query - prompt.f_query):
        assert_mean_within_4_standard_errors(noise, 0)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_independent(name):
    """Neighbours in a batch: their targets and features do not correlate (given the pool, the design, the net)."""
    prompt = EVERY_TASK[name].sample(20_000, 1, 1, generator())
    for values in (prompt.f_query.double(), prompt.x_query[:, 0].double(), (prompt.y_query - prompt.f_query).double()):
        centred = values - values.mean(dim=0)
        assert_mean_within_4_standard_errors(centred[::2] * centred[1::2], 0)


class Elements(TorchDispatchMode):
    """Counts the elements that operations return: a bound on memory and a measure of work, without a clock."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += sum(leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        return result


class Copies(TorchDispatchMode):
    """Counts the tensors made from lists, or from tensors of another device or dtype."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("_to_copy", "lift_fresh", "_local_scalar_dense")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("relu", "tree")])  # whose t law is in float64
def test_no_batch_but_the_first_copies_what_the_task_holds(name):
    """On a GPU each such copy would wait for the device."""
    task = EVERY_TASK[name]
    task.sample(3, 4, 2, generator())
    with Copies() as copies:
        task.sample(3, 4, 2, generator())
    assert copies.count == 0


def test_a_constant_is_copied_once_for_each_dtype_and_not_at_all_with_its_task():
    value = torch.tensor([1.0, 2.0], dtype=torch.float64)
    constant = Constant(value)
    single = constant.like(torch.zeros(1))
    assert single.dtype == torch.float32
    assert constant.like(torch.zeros(3)) is single
    assert constant.like(value) is value
    for twin in (copy.deepcopy(constant), pickle.loads(pickle.dumps(constant))):
        assert torch.equal(twin.value, value)
        assert twin._copies == {}


def elements(task, batch):
    with Elements() as counted:
        task.sample(batch, 6, 2, generator())
    return counted.count


@pytest.mark.parametrize("name", NAMES)
def test_cost_is_linear_in_the_batch(name):
    task = EVERY_TASK[name]
    once, twice, four_times = (elements(task, batch) for batch in (16, 32, 64))
    assert twice > once
    assert four_times - twice == 2 * (twice - once)


@pytest.mark.parametrize("name", NAMES)
def test_copies_sample_alike_and_can_be_shifted(name):
    task = EVERY_TASK[name]
    for twin in (copy.copy(task), copy.deepcopy(task), pickle.loads(pickle.dumps(task)), replace(task)):
        assert repr(twin) == repr(task)
        assert torch.equal(twin.sample(3, 4, 2, generator()).y, task.sample(3, 4, 2, generator()).y)
        assert repr(twin.shifted(correlation=0.7)) == repr(task.shifted(correlation=0.7))


@pytest.mark.parametrize("name", NAMES)
def test_every_task_can_be_shifted_without_changing_itself(name):
    task = EVERY_TASK[name]
    before = repr(task)
    shifted = task.shifted(correlation=0.7)
    assert type(shifted) is type(task)
    assert repr(task) == before
    assert "correlation=0.7" in repr(shifted)
    assert "correlation=0.7" not in before


@pytest.mark.parametrize("name", NAMES)
def test_unknown_shifts_are_named(name):
    task = EVERY_TASK[name]
    with pytest.raises(InputError, match=rf"{type(task).__name__} has no option 'correlaton'; did you mean 'correlati"):
        task.shifted(correlaton=0.7)


def test_shifts_are_checked_by_the_constructor():
    task = SparseLinearRegression(4, 2, noise_std=0.3)
    with pytest.raises(InputError, match="sparsity is 5, but it must lie between 1 and n_dims, which is 4"):
        task.shifted(sparsity=5)
    with pytest.raises(InputError, match="SparseLinearRegression has no option 'noice_std'; did you mean 'noise_std'"):
        task.shifted(noice_std=1.0)
    with pytest.raises(InputError, match="LinearRegression has no option 'sparsity'; valid are: correlation, feature"):
        LinearRegression(4).shifted(sparsity=2)
    with pytest.raises(InputError, match="LinearClassification has no option 'noise_std'"):
        LinearClassification(4).shifted(noise_std=0.1)


def test_positional_and_forwarded_options_survive_a_shift():
    task = SparseLinearRegression(
        6, 2, noise_std=0.3, correlation=0.5, weight_law="sign", noise="laplace", spectrum=Spiked(1, 4.0)
    ).shifted(sparsity=3)
    expected = SparseLinearRegression(
        6, 3, noise_std=0.3, correlation=0.5, weight_law="sign", noise="laplace", spectrum=Spiked(1, 4.0)
    )
    assert repr(task) == repr(expected)


@dataclass(frozen=True)
class Offset(Task):
    """A user's task with an option of its own.

    Args:
        offset: added to every target.
    """

    offset: float

    def sample_targets(self, x, generator):
        return x.sum(-1) + self.offset, None


class Plain(Task):
    """A user's task that says what the targets are, and no more."""

    def sample_targets(self, x, generator):
        return x.sum(-1), None


def test_users_tasks_shift_and_truncate_too():
    task = Offset(4, 2.0, noise_std=0.5).shifted(offset=7.0, n_dims=3)
    assert (task.offset, task.n_dims, task.noise_std) == (7.0, 3, 0.5)
    assert task.sample(1, 1, 1, generator()).f.item() == pytest.approx(
        Plain(3).sample(1, 1, 1, generator()).f.item() + 7
    )
    assert re.fullmatch(r"Offset\(n_dims=3, noise_std=0\.5, .*, offset=7\.0\)", repr(task))
    assert Plain(4, noise_std=0.5).truncated(2).n_dims == 2
    assert Plain(4, noise_std=0.5).shifted(noise_std=1.0).noise_std == 1.0
    with pytest.raises(InputError, match="Plain has no option 'ofset'"):
        Plain(4).shifted(ofset=1.0)


def test_a_users_task_with_an_init_of_its_own_is_refused_when_it_is_defined():
    """As tasks were written before 0.3: its options would be lost by every shift and in every checkpoint."""
    with pytest.raises(InputError, match=r"Old has an __init__ of its own, but .* write them as annotations, such as"):

        class Old(Task):
            def __init__(self, n_dims, degree=2, **options):
                super().__init__(n_dims, **options)
                self.degree = degree


def test_a_law_does_not_change_and_equals_those_of_the_same_options():
    task = SparseLinearRegression(4, 2, noise_std=(0.1, 0.5), spectrum=Spiked(1, 4.0))
    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'noise_std'"):
        task.noise_std = 0.3
    assert task == SparseLinearRegression(4, 2, noise_std=[0.1, 0.5], spectrum=Spiked(1, 4.0))
    assert task != task.shifted(noise_std=0.1)
    assert Mixture([task]) == Mixture([task]) != Mixture([task, task])
    task.sample(1, 1, 1, generator())  # what it keeps besides its options does not count
    assert task == copy.deepcopy(task) == SparseLinearRegression(4, 2, noise_std=[0.1, 0.5], spectrum=Spiked(1, 4.0))


@pytest.mark.parametrize("name", NAMES)
def test_whatever_is_a_task_has_all_that_tasks_have_and_laws_of_laws_are_none(name):
    """A pool or a mixture has no noise or features of its own, so that it promises less than a task does."""
    task = EVERY_TASK[name]
    promised = {name for name in [*vars(Task), *vars(Law)] if not name.startswith("_")}
    assert {"sample_features", "sample_labels", "noise_std", "rotation", "noise_levels", "covariance"} < promised
    assert isinstance(task, Law)
    assert isinstance(task, Task) == (name not in ("pool", "mixture"))
    lacks = {name for name in promised if not hasattr(task, name)}
    assert not lacks or not isinstance(task, Task)
    assert not lacks & {name for name in vars(Law) if not name.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_the_configuration_with_types_and_defaults(name):
    task = EVERY_TASK[name]
    parameters = inspect.signature(type(task)).parameters
    assert [*parameters] == [*inspect.signature(type(task).__init__).parameters][1:]
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values())  # no **options
    assert all(p.annotation not in (p.empty, "Any") for p in parameters.values())
    assert {*parameters} == {option.name for option in fields(task) if option.init}
    assert {*parameters} <= task.options()
    assert type(task)(**{name: getattr(task, name) for name in parameters}) == task
    assert all(p.default == getattr(type(task), p.name) for p in parameters.values() if p.default is not p.empty)


@pytest.mark.parametrize("name", NAMES)
def test_help_on_the_command_line_explains_every_option(name):
    parser, task = ArgumentParser(), type(EVERY_TASK[name])
    parser.add_argument("--task", type=Law)
    with redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
        parser.parse_args([f"--task.help={task.__name__}"])
    entries = dict(re.findall(r"\n  --task\.(\w+),? (.*?)(?=\n  --task|$)", text.getvalue(), flags=re.DOTALL))
    for option, parameter in inspect.signature(task).parameters.items():
        said = " ".join(entries[option].split())
        explanation, _, of_type = said.rpartition("(")
        assert len(explanation) > 8, option
        required = parameter.default is inspect.Parameter.empty
        assert ("required, type: " in of_type) == required, option
        assert required or f"default: {'null' if parameter.default is None else parameter.default}" in of_type, option


def test_the_representation_names_public_options_alone():
    task = TaskPool(SparseLinearRegression(3, 2, noise_std=0.5, spectrum=Spiked(1, 4.0)), 5)
    assert repr(task) == (
        "TaskPool(n_dims=3, task=SparseLinearRegression(n_dims=3, noise_std=0.5, correlation=0.0, noise='gaussian', "
        "noise_df=5.0, features='gaussian', feature_df=5.0, spectrum=Spiked(n_spikes=1, spike=4.0), rotation='none', "
        "weight_law='gaussian', weight_mean=0.0, sparsity=2), n_tasks=5, pool_seed=0)"
    )


# As version 0.2 wrote them into checkpoints: a resume compares these texts.
WRITTEN = Path(__file__).with_name("representations.txt").read_text().splitlines()
REPRESENTATIONS = dict(line.split(": ", 1) for line in WRITTEN)


@pytest.mark.parametrize("name", NAMES)
def test_the_representation_is_deterministic_and_plain(name):
    text = repr(EVERY_TASK[name])
    assert text == REPRESENTATIONS[name]
    assert text == repr(every_task(4)[name])
    assert "tensor" not in text
    assert " at 0x" not in text
    assert "(_" not in text
    assert ", _" not in text


@pytest.mark.parametrize("name", ["sparse", "dense", "quadratic", "polynomial", "relu", "tree", "classification"])
def test_truncation_is_the_same_law_in_fewer_dimensions(name):
    task = EVERY_TASK[name]
    assert repr(task.truncated(3)) == repr(task.shifted(n_dims=3))
    assert task.truncated(3).sample(2, 3, 1, generator()).x.shape == (2, 3, 3)
    assert repr(task.truncated(4)) == repr(task)


@pytest.mark.parametrize("sparsity", [None, 4])
def test_classification_by_all_weights_is_by_all_of_fewer_too(sparsity):
    task = LinearClassification(4, sparsity)
    assert task == LinearClassification(4)
    assert task.truncated(2) == task.shifted(n_dims=2) == LinearClassification(2, 2)
    assert task.shifted(sparsity=3) == LinearClassification(4, 3)
    with pytest.raises(InputError, match="sparsity is 3, but it must lie between 1 and n_dims, which is 2"):
        LinearClassification(4, 3).truncated(2)


def test_truncation_of_a_mixture_truncates_its_tasks():
    mixture = Mixture([SparseLinearRegression(4, 2), ReLUNetwork(4, 5)]).truncated(3)
    assert [task.n_dims for task in (mixture, *mixture.tasks)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (SparseLinearRegression(4, 3), "sparsity is 3, but it must lie between 1 and n_dims, which is 2"),
        (SparseLinearRegression(4, 1, rotation="fixed"), "rotation is 'fixed', which mixes all dimensions"),
        (LinearRegression(4, spectrum=Eigenvalues([1.0, 2.0, 3.0, 4.0])), "values lists 4 variances.*which is 2"),
        (SparseRecovery(4, 1), "design is 'fixed', which has all 4 dimensions; they cannot be cut to 2."),
        (TaskPool(LinearRegression(4), 3), "the tasks of a pool have all 4 dimensions; they cannot be cut to 2."),
        (HiddenRepresentation(4), "the representation takes all 4 dimensions; they cannot be cut to 2."),
        (Mixture([LinearRegression(4), HiddenRepresentation(4)]), "the representation takes all 4 dimensions"),
        (LinearRegression(1), "n_dims is 2, but this task can be truncated to at most 1 dimensions."),
    ],
)
def test_truncation_is_refused_where_something_is_fixed(task, message):
    with pytest.raises(InputError, match=message):
        task.truncated(2)


def test_a_fresh_design_can_be_truncated():
    assert SparseRecovery(4, 1, "fresh").truncated(2).n_dims == 2


def test_ridge_strength_is_implied_by_linear_laws_alone():
    implied = {name for name, task in EVERY_TASK.items() if task.ridge_alpha is not None}
    assert implied == {"sparse", "recovery", "pool"}  # the dense one mixes noise levels, the group one has a mean


def as_yaml(task):
    """The configuration of a task, from its attributes, as a user would write it."""
    options = {option.name: getattr(task, option.name) for option in fields(task) if option.init}
    return {"class_path": type(task).__name__, "init_args": {n: value_as_yaml(v) for n, v in options.items()}}


def value_as_yaml(value):
    if isinstance(value, list):
        return [value_as_yaml(entry) for entry in value]
    return as_yaml(value) if is_dataclass(value) else value


@pytest.mark.parametrize("name", NAMES)
def test_every_option_of_every_task_can_be_written_in_yaml(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Law)
    written = yaml.safe_dump({"task": as_yaml(EVERY_TASK[name])})
    built = parser.instantiate_classes(parser.parse_string(written)).task
    assert repr(built) == repr(EVERY_TASK[name])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pool", "mixture")])
def test_every_simple_task_is_built_by_the_command_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    config = {"data": {"task": as_yaml(EVERY_TASK[name])}, "trainer": {"logger": False, "accelerator": "cpu"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    built = ICLCommandLine(["--config", "config.yaml"], run=False)
    assert repr(built.datamodule.task) == repr(EVERY_TASK[name])


def test_every_task_is_exported_and_covered_here():
    families = {
        value
        for value in vars(lightning_icl).values()
        if inspect.isclass(value) and issubclass(value, Law) and not inspect.isabstract(value)
    }
    assert families == {type(task) for task in EVERY_TASK.values()}
