"""P-probing: its optimisers and fleets against plain ones, its arms, and planted cases where the answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.constructions import ConstructedPreprocessThenGD
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import gradient_descent_path, inverse_curvature, preprocess_then_gd_path
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.representations import correlation_features, leading_first, raw, scaled
from lightning_icl.functional.seeds import over_seeds_and_prompts
from lightning_icl.instruments.fleet import Fleet
from lightning_icl.instruments.p_probing import (
    OPTIMISERS,
    Comparison,
    PProbing,
    Training,
    claim,
    errors_of_arms,
    first_layer,
    judged,
    p_probing,
    read_in,
)
from lightning_icl.instruments.probe_models import LinearAttention, TunedDescent

TASK = SparseLinearRegression(3, 1, noise_std=0.3)
SHORT = Training(n_steps=2, batch_size=2, n_queries=2, n_seeds=2, n_choose=8, n_score=4)


def sampled(n_prompts, seed=0, n_points=5, n_queries=2, task=TASK):
    return task.sample(n_prompts, n_points, n_queries, torch.Generator().manual_seed(seed))


def model(heads=(2, 1), **options):
    torch.manual_seed(0)
    return Transformer(3, **({"d_model": 8, "heads": list(heads)} | options))


def preprocessing(n_dims, heads):
    """Layer 1 of preprocess-then-GD writes R_hat x beside x and y, as many coordinates of it as it has heads."""
    construction = ConstructedPreprocessThenGD(steps=1, step_size=0.2, coordinates=range(1, heads + 1))
    transformer = Transformer(n_dims, **construction.options(n_dims))
    transformer.load_state_dict(construction.state(n_dims))
    return transformer.requires_grad_(False)


def idle(n_dims, heads):
    """Layer 1 adds nothing."""
    transformer = preprocessing(n_dims, heads)
    transformer.blocks[0].attention.output.weight.zero_()
    return transformer


def copies(n_dims, heads):
    """Layer 1 has one head, so many times over."""
    transformer, one = preprocessing(n_dims, heads), preprocessing(n_dims, 1).blocks[0].attention
    many = transformer.blocks[0].attention
    for part in ("query", "key", "value"):
        getattr(many, part).weight.copy_(getattr(one, part).weight.repeat(heads, 1))
    many.output.weight.copy_(one.output.weight.repeat(1, heads) / heads)
    return transformer


def untrained(n_dims, heads):
    torch.manual_seed(heads)
    return Transformer(n_dims, 2 * n_dims + 1, [heads], "linear", mlp=False, norm="none", head_dim=1)


# the arms


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": (1, 4), "attention": "linear", "norm": "none"},
        {"norm": "post", "mask": "full"},
        {"position": "learned", "max_points": 5, "mask": "causal"},
        {"mask": "causal", "layout": "prefixes"},
    ],
    ids=str,
)
def test_first_layer_is_what_a_forward_pass_gives_after_layer_1(options):
    transformer, prompt = model(**options), sampled(4)
    output, found = transformer.on_prompt(prompt), first_layer(transformer)(prompt)
    torch.testing.assert_close(found.x, output.context_states[1])
    torch.testing.assert_close(found.x_query, output.query_states[1])
    assert not found.x.requires_grad
    assert found.y is prompt.y


def test_the_read_in_is_what_a_forward_pass_starts_from():
    transformer, prompt = model(), sampled(4)
    output, found = transformer.on_prompt(prompt), read_in(transformer)(prompt)
    torch.testing.assert_close((found.x, found.x_query), (output.context_states[0], output.query_states[0]))


def test_a_preprocessing_layer_leads_with_the_papers_preprocessing():
    """[x | R_hat x | y] in leading coordinates starts with a linear map of R_hat x, and an idle layer's with one of x.

    As few prompts fit the coordinates, up to a tenth; by R^2 of least squares on other prompts.
    """
    fit, prompt = (sampled(2048, seed, 12, task=SparseLinearRegression(4, 1, noise_std=0.3)) for seed in (0, 1))
    for network, target in ((preprocessing(4, 4), correlation_features), (idle(4, 4), raw)):
        leading = leading_first(first_layer(network), fit)(prompt).x[..., :4].flatten(0, 1)
        wanted = target(prompt).x.flatten(0, 1)
        left = wanted - leading @ torch.linalg.lstsq(leading, wanted).solution
        assert (left.square().sum() / wanted.square().sum()) < 0.1


# the optimisers


@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize(
    ("represent", "path"), [(correlation_features, preprocess_then_gd_path), (raw, gradient_descent_path)]
)
def test_descent_with_the_identity_map_is_gradient_descent_on_the_features(represent, path, n_steps):
    prompt = sampled(6).double()
    features = represent(prompt)
    descent = TunedDescent(3, 3, n_steps).double()
    with torch.no_grad():
        descent.map.weight.copy_(torch.eye(3))
        descent.log_steps.fill_(math.log(0.7))
        found = descent(features)
    step = 0.7 / torch.linalg.matrix_norm(features.x.mT @ features.x / 5)
    w = path(prompt.x, prompt.y, n_steps, step)[n_steps]
    torch.testing.assert_close(found, (prompt.x_query * w[:, None]).sum(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_descent_starts_with_the_first_features_and_chebyshevs_steps(n_steps):
    """What such descent leaves of the weights is Chebyshev's polynomial, at most 1 / T_k(5/3) on [1/4, 1]."""
    prompt = sampled(6, n_points=8).double()
    descent = TunedDescent(3, 2, n_steps).double()
    assert torch.equal(descent.map.weight, torch.eye(2, 3, dtype=torch.float64))
    eigenvalues = torch.linspace(0.25, 1, 101)
    left = torch.stack([1 - step * eigenvalues for step in descent.log_steps.exp()]).prod(dim=0).abs()
    assert float(left.max().detach()) == pytest.approx(1 / math.cosh(n_steps * math.acosh(5 / 3)), rel=1e-5)
    torch.testing.assert_close(descent(scaled(prompt)), descent(prompt), rtol=1e-9, atol=1e-12)


def test_descent_on_features_that_are_zero_predicts_zero_and_can_be_trained():
    prompt = sampled(2)
    descent = TunedDescent(3, 3, 2)
    predicted = descent(prompt._replace(x=0 * prompt.x))
    predicted.square().sum().backward()
    assert not predicted.any()
    assert descent.map.weight.grad.isfinite().all()


def test_attention_starts_without_any_and_each_layer_has_one_head():
    attention = LinearAttention(5, 3, 4)
    assert attention.network.heads == [1, 1, 1, 1]
    prompt = sampled(2, task=SparseLinearRegression(5, 1))
    without = attention.network.on_prompt(prompt, torch.zeros(4, 1)).prediction
    torch.testing.assert_close(attention(prompt), without)


# padding


def padded(prompt, n_points):
    """The first examples of each prompt, its own number of them, then padding up to ``n_points`` rows in all."""
    mask = torch.arange(n_points) < torch.arange(1, len(prompt.x) + 1)[:, None]
    return prompt._replace(x=prompt.x * mask[..., None], y=prompt.y * mask, f=None, point_mask=mask)


def of_each(prompt):
    """Every prompt alone, without its padding."""
    for b, n in enumerate(prompt.point_mask.sum(dim=1).tolist()):
        yield b, n, prompt.rows(b, b + 1).first(n).unpadded()


@pytest.mark.parametrize("options", [{}, {"mask": "causal", "layout": "prefixes"}], ids=str)
def test_the_states_of_padded_prompts_are_those_without_padding_and_zero_there(options):
    transformer, prompt = model(**options).double(), padded(sampled(4, n_points=5).double(), 5)
    for represent in (first_layer(transformer), read_in(transformer)):
        found = represent(prompt)
        assert not found.x[~prompt.point_mask].any()
        for b, n, alone in of_each(prompt):
            expected = represent(alone)
            torch.testing.assert_close(found.x[b, :n], expected.x[0], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(found.x_query[b], expected.x_query[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_optimisers_learn_nothing_from_padding(kind):
    prompt = padded(sampled(4, n_points=5).double(), 5)
    torch.manual_seed(0)
    optimiser = OPTIMISERS[kind](3, 3, 2).double()
    for parameter in optimiser.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = optimiser(prompt)
    for b, _, alone in of_each(prompt):
        torch.testing.assert_close(found[b], optimiser(alone)[0], rtol=1e-10, atol=1e-12)


def test_padded_prompts_are_probed():
    class Padded:
        def sample(self, batch_size, n_points, n_queries, generator):
            return TASK.sample(batch_size, n_points, n_queries, generator).padded_after(n_points - 2)

    class Short:
        def sample(self, *args):
            return Padded().sample(*args).first(3).unpadded()

    models, found = {"a": model()}, []
    for source in (Padded(), Short()):
        found.append(p_probing(models, source, 5, 1, training=SHORT).errors)
    for optimiser, by_arm in found[0].items():
        for arm, errors in by_arm.items():
            # Between the two lies the rounding of float32 in some training steps.
            torch.testing.assert_close(errors, found[1][optimiser][arm], rtol=2e-3, atol=2e-3, msg=f"{optimiser} {arm}")


# the fleet


def alone(build, seed, prompts, n_steps):
    """One model, trained by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        one = build()
    optimizer = torch.optim.AdamW(one.parameters(), lr=1e-2, weight_decay=0.0)
    for step, prompt in enumerate(prompts):
        warm_up = max(1, round(0.05 * n_steps))
        after = (step - warm_up) / (n_steps - warm_up)
        rate = (step + 1) / warm_up if step < warm_up else 0.5 * (1 + math.cos(math.pi * after))
        optimizer.param_groups[0]["lr"] = 1e-2 * rate
        optimizer.zero_grad()
        (one(prompt) - prompt.f_query).square().mean().backward()
        norm = torch.cat([p.grad.flatten() for p in one.parameters()]).norm()
        for p in one.parameters():
            p.grad /= max(1.0, norm)
        optimizer.step()
    return one


def stacked(rows):
    """(arms, seeds) prompts as one, without w and f."""
    bare = [[prompt._replace(w=None, f=None) for prompt in row] for row in rows]
    return Prompt._make(
        None if bare[0][0][i] is None else torch.stack([torch.stack([p[i] for p in row]) for row in bare])
        for i in range(len(Prompt._fields))
    )


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_fleet_is_so_many_models_trained_one_by_one(kind):
    build, n_steps = (lambda: OPTIMISERS[kind](3, 3, 2).double()), 30
    steps = [[[sampled(4, 100 * t + 10 * a + s).double() for s in range(3)] for a in range(2)] for t in range(n_steps)]
    fleet = Fleet(build, 2, [5, 6, 7], n_steps)
    for step in steps:
        fleet.train_step(stacked(step))
    fresh = sampled(3, seed=9999).double()
    found = fleet.predictions(stacked([[fresh] * 3] * 2))
    for a in range(2):
        for s, seed in enumerate([5, 6, 7]):
            one = alone(build, seed, [step[a][s] for step in steps], n_steps)
            torch.testing.assert_close(found[a, s], one(fresh).detach(), rtol=1e-6, atol=1e-9)


# the whole


def test_the_same_seed_gives_the_same_numbers_and_the_global_generator_is_left_alone():
    state, models = torch.random.get_rng_state(), {"a": model()}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = p_probing(models, TASK, 4, 1, training=SHORT)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(4)
    again = p_probing(models, TASK, 4, 1, training=SHORT)
    other = p_probing(models, TASK, 4, 1, training=replace(SHORT, seed=1))
    torch.random.set_rng_state(state)
    for optimiser, errors in first.errors.items():
        assert list(errors) == [*("layer_1/a", "read_in/a", "untrained", "raw", "r_hat", "r_hat_power", "gd_plus_plus")]
        for arm, values in errors.items():
            assert values.shape == (1, 2, 4)
            assert torch.equal(values, again.errors[optimiser][arm])
            assert not torch.equal(values, other.errors[optimiser][arm])


def test_no_generator_of_a_gpu_is_seeded(monkeypatch):
    def refused(*_):
        raise AssertionError

    models = {"a": model()}
    for owner, name in ((torch.cuda, "manual_seed_all"), (torch.cuda, "manual_seed"), (torch, "manual_seed")):
        monkeypatch.setattr(owner, name, refused)
    before = torch.random.get_rng_state()
    p_probing(models, TASK, 4, 1, training=SHORT)
    models["a"].untrained(3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_runs_inside_inference_mode():
    with torch.inference_mode():
        found = p_probing({"a": model()}, TASK, 4, 1, training=SHORT)
    assert found.errors["descent"]["raw"].isfinite().all()


def test_an_arm_that_is_told_the_support_beats_the_raw_examples():
    def told(prompt):
        support = (prompt.w != 0)[:, None]
        return prompt._replace(x=prompt.x * support, x_query=prompt.x_query * support)

    training = Training(n_steps=40, batch_size=16, n_queries=4, n_seeds=3, n_score=512)
    errors = errors_of_arms({"raw": raw, "told": told, "also raw": raw}, TASK, 5, 2, training)
    for by_arm in errors.values():
        assert torch.equal(by_arm["raw"], by_arm["also raw"])
        for depth in range(2):
            gain = over_seeds_and_prompts(by_arm["raw"][depth] - by_arm["told"][depth])
            assert gain.low > 0
            assert gain.value > 0.3 * float(by_arm["raw"][depth].mean())


def closed_form_risks(path, prompts, depths):
    """Of 1 .. depths steps, all of the best of many sizes in units of each prompt's 1/lambda_max."""
    unit = inverse_curvature(correlation_features(prompts).x if path is preprocess_then_gd_path else prompts.x)
    steps = [path(prompts.x, prompts.y, depths, c * unit)[1:] for c in torch.linspace(0.2, 3, 29)]
    predicted = torch.einsum("ktbd,bqd->ktbq", torch.stack(steps), prompts.x_query)
    return (predicted - prompts.f_query).square().mean(dim=(-2, -1)).amin(dim=0)


def probed(networks, n_dims, n_points, sparsity, depths, training):
    models = {"most": networks(n_dims, n_dims), "fewest": networks(n_dims, 1)}
    return p_probing(
        models, SparseLinearRegression(n_dims, sparsity, noise_std=0.2), n_points, depths, training=training
    )


SMALL = {"n_dims": 4, "n_points": 8, "sparsity": 1, "depths": 1}
LARGE = {"n_dims": 8, "n_points": 12, "sparsity": 2, "depths": 2}
CALIBRATED = [
    pytest.param(SMALL, Training(n_steps=60, n_queries=4, n_score=512), [0]),
    pytest.param(LARGE, Training(n_steps=200), range(5), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("case", "training", "seeds"), CALIBRATED)
@pytest.mark.usefixtures("unchecked")
def test_on_a_network_that_preprocesses_the_claim_holds(case, training, seeds):
    """Where preprocess-then-GD has the lower risk at every number of steps, by the closed forms."""
    task = SparseLinearRegression(case["n_dims"], case["sparsity"], noise_std=0.2)
    prompts = sampled(4096, 1, case["n_points"], task=task).double()
    better, worse = (
        closed_form_risks(path, prompts, case["depths"]) for path in (preprocess_then_gd_path, gradient_descent_path)
    )
    assert (better < 0.8 * worse).all()
    for seed in seeds:
        found = probed(preprocessing, **case, training=replace(training, seed=seed))
        assert claim(found.comparisons()) == "HOLDS"
        # Descent makes as much of R_hat x within the states as of R_hat x alone. Attention need not: it knows a scale,
        # and that of R_hat x alone is made equal over prompts.
        descent = found.errors["descent"]
        assert descent["layer_1/most"].mean() < 1.1 * descent["r_hat"].mean()


@pytest.mark.parametrize("networks", [idle, pytest.param(copies, marks=pytest.mark.slow), untrained])
@pytest.mark.parametrize(("case", "training", "seeds"), CALIBRATED)
@pytest.mark.usefixtures("unchecked")
def test_on_a_network_that_does_not_preprocess_the_claim_never_holds(networks, case, training, seeds):
    for seed in seeds:
        comparisons = probed(networks, **case, training=replace(training, seed=seed)).comparisons()
        assert claim(comparisons) != "HOLDS"
        if networks is idle:
            nothing = [c.difference.value for c in comparisons if c.claimed and c.rival == "read_in"]
            assert max(map(abs, nothing)) < 1e-6


# verdicts, on errors made up


def made_up(heads, **risks):
    """Errors around the given risks, by arm, the same noise in each."""
    noise = 0.01 * torch.randn(1, 3, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    arms = dict.fromkeys(("read_in", "raw", "untrained", "gd_plus_plus", "r_hat"), 1.0) | risks
    return PProbing(
        {"descent": {arm: risk + noise.roll(i, -1) for i, (arm, risk) in enumerate(arms.items())}},
        heads,
        ["read_in"],
        0.5,
        0.5,
    )


@pytest.mark.parametrize(
    ("risks", "verdicts", "whole"),
    [
        ({"many": 0.5, "one": 0.7}, ["HOLDS", "HOLDS"], "HOLDS"),
        ({"many": 0.7, "one": 0.5}, ["FAILS", "HOLDS"], "FAILS"),
        ({"many": 0.5, "one": 0.5}, ["UNDECIDED", "HOLDS"], "UNDECIDED"),
        ({"many": 1.2, "one": 1.2}, ["UNDECIDED", "FAILS"], "FAILS"),
        ({"many": math.nan, "one": 0.5}, ["UNDECIDED", "UNDECIDED"], "UNDECIDED"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(risks, verdicts, whole):
    comparisons = made_up({"many": 8, "one": 1}, **risks).comparisons()
    claimed = [c for c in comparisons if c.claimed]
    assert [c.rival for c in claimed] == ["heads_1", "read_in"]
    assert [c.verdict for c in claimed] == verdicts
    assert claim(comparisons) == whole


def test_models_with_equally_many_heads_count_as_one():
    found = made_up({"a": 8, "b": 8, "c": 2, "d": 1}, a=0.4, b=0.6, c=0.1, d=0.8)
    difference = next(c for c in found.comparisons() if c.rival == "heads_1").difference
    assert difference.value == pytest.approx(-0.3, abs=0.005)


def test_a_failure_is_corrected_for_the_claimed_comparisons_by_holms_rule():
    """By the p-values of scipy's t-test: one seed, so that the intervals are Student's over prompts."""
    noise = torch.randn(6, 1, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifts = torch.tensor([0.0, 0.44, 0.47, 0.47, 0.55, 0.44]).double()
    differences = 0.9 * (noise - noise.mean(dim=-1, keepdim=True)) + shifts[:, None, None]
    given = {
        Comparison("descent", i, "raw", over_seeds_and_prompts(difference), claimed=True): difference
        for i, difference in enumerate(differences)
    }
    p = np.array([ttest_1samp(difference[0], 0).pvalue for difference in differences])
    order, expected = np.argsort(p), np.full(6, "UNDECIDED", dtype=object)
    for rank, i in enumerate(order):
        if p[i] > 0.05 / (6 - rank):
            break
        expected[i] = "FAILS"
    found = [one.verdict for one in judged(given)]
    assert found == expected.tolist()
    bonferroni, uncorrected = (p < 0.05 / 6).sum(), (p < 0.05).sum()
    assert bonferroni < found.count("FAILS") < uncorrected  # else any rule would do


@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (3, 0.1), (3, 0.3)])
@pytest.mark.usefixtures("unchecked")
def test_where_nothing_differs_the_claim_fails_in_at_most_one_study_of_twenty(seeds, between):
    generator = torch.Generator().manual_seed(0)

    def study():
        def errors():
            own, shared = (torch.randn(2, seeds, p, generator=generator, dtype=torch.float64) for p in (100, 1))
            return 1 + 0.5 * own + between * shared

        arms = ("many", "one", "read_in", "raw", "untrained", "gd_plus_plus", "r_hat")
        by_arm = {optimiser: {arm: errors() for arm in arms} for optimiser in ("attention", "descent")}
        return PProbing(by_arm, {"many": 8, "one": 1}, ["read_in"], 0.5, 0.5).comparisons()

    studies = [study() for _ in range(200)]
    alone = np.mean([any(c.difference.low > 0 for c in comparisons if c.claimed) for comparisons in studies])
    assert alone > 0.08  # what the correction is for
    assert np.mean([claim(comparisons) == "FAILS" for comparisons in studies]) <= 0.05 + 4 * (0.05 * 0.95 / 200) ** 0.5
    assert np.mean([claim(comparisons) == "HOLDS" for comparisons in studies]) <= 0.025


def test_without_a_model_of_fewer_heads_only_the_read_in_is_claimed():
    comparisons = made_up({"a": 8, "b": 8}, a=0.4, b=0.6).comparisons()
    assert [c.rival for c in comparisons if c.claimed] == ["read_in"]


# what is refused


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"models": {}}, "there is no model, but P-probing needs at least one"),
        ({"models": {"a": model((0, 2))}}, "the model a has no heads in layer 1"),
        ({"models": {"a": Transformer(2, 8, [2])}}, "the model a takes x of length 2, but the prompts have 3"),
        ({"models": {"a": model(mask="causal", layout="alternating")}}, "layout is 'alternating', but P-probing needs"),
        ({"depths": 0}, "depths is 0, but it must be at least 1"),
    ],
)
def test_bad_input_is_named(change, sentence):
    options = {"models": {"a": model()}, "task": TASK, "n_points": 4, "depths": 1, "training": SHORT} | change
    with pytest.raises(InputError, match=sentence):
        p_probing(**options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"n_steps": 0}, "n_steps is 0, but it must be at least 1"),
        ({"n_score": 1}, "n_score is 1, but it must be at least 2"),
        ({"n_choose": 1}, "n_choose is 1, but it must be at least 2"),
        ({"n_seeds": 0}, "n_seeds is 0, but it must be at least 1"),
        ({"seed": -1}, "seed is -1, but it must be at least 0"),
    ],
)
def test_training_that_cannot_be_done_is_named_where_it_is_built(change, sentence):
    with pytest.raises(InputError, match=sentence):
        replace(SHORT, **change)
