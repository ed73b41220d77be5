"""Probes of layers, against hooks and scikit-learn, and on networks whose states are known."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import STRENGTHS
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.tasks import LinearRegression, SparseLinearRegression
from lightning_icl.instruments.probing import probe_layers
from lightning_icl.transformer import Transformer

N_DIMS, N_POINTS, N_QUERIES = 3, 5, 2
TASK = SparseLinearRegression(N_DIMS, 2, noise_std=0.3)


def targets_of(table, token):
    return list(dict.fromkeys(row.target for row in table.rows if row.token == token))


def sampled(seed, n_prompts=50, task=TASK, n_points=N_POINTS):
    generator = torch.Generator().manual_seed(seed)
    return task.sample(n_prompts, n_points, N_QUERIES, generator).double()


def network(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        defaults = {"n_dims": N_DIMS, "d_model": 8, "heads": [2, 1]}
        return Transformer(**(defaults | options)).double()


# Against an independent slow route


def hooked_states(transformer, prompt, token, places):
    """States after the read-in and each layer, by forward hooks rather than the named output."""
    captured = []
    modules = [transformer.read_in, *transformer.layers]
    hooks = [m.register_forward_hook(lambda _m, _i, output: captured.append(output)) for m in modules]
    with torch.no_grad():
        transformer.on_prompt(prompt)
    for hook in hooks:
        hook.remove()
    return [(states[:, -N_QUERIES:] if token == "query" else states[:, places]).numpy() for states in captured]


def slow_targets(prompt, token, points, depth, ridge_alpha):
    """Every target of each prompt and token, by loops."""
    found = {}
    for b in range(len(prompt.x)):
        x, y, w = (field[b].numpy() for field in (prompt.x, prompt.y, prompt.w))
        n, r_hat = len(y), x.T @ y / len(y)
        weights = {
            "least_squares": np.linalg.lstsq(x, y)[0],
            "ridge": Ridge(ridge_alpha, fit_intercept=False).fit(x, y).coef_,
        }
        for name, scale in (("gd", np.ones(N_DIMS)), ("preprocess_then_gd", r_hat)):
            features, u = x * scale, np.zeros(N_DIMS)
            for t in range(1, depth + 1):
                u = u - features.T @ (features @ u - y) / np.linalg.norm(features, 2) ** 2
                weights[f"{name}_{t}"] = scale * u
        assert n == N_POINTS
        at = prompt.x_query[b].numpy() if token == "query" else x[points]
        for row in at:
            values = {"f": [w @ row], "w": w, "support": (w != 0) * 1.0, "r_hat": r_hat, "preprocessed": r_hat * row}
            values |= {name: [w_hat @ row] for name, w_hat in weights.items()}
            for name, value in values.items():
                found.setdefault(name, []).append(value)
    return {name: np.array(values) for name, values in found.items()}


def best_ridges(states, truth):
    """Of each target scikit-learn's probe at the best strength of the grid: that strength, and what it predicts.

    All targets are columns of one fit, which leaves each what it is alone.
    """
    unit = ((states[0] - states[0].mean(0)) ** 2).sum() / states[0].shape[1]
    ends = np.cumsum([part.shape[1] for part in truth[0].values()])[:-1]
    labels = np.hstack(list(truth[0].values()))
    tried = [Ridge(strength * unit, solver="svd").fit(states[0], labels) for strength in STRENGTHS]
    chosen, scored = ([np.split(probe.predict(some), ends, axis=1) for probe in tried] for some in states[1:])
    for i, (name, true) in enumerate(truth[1].items()):
        best = int(np.argmin([((predicted[i] - true) ** 2).sum() for predicted in chosen]))
        yield name, tried[best].alpha, scored[best][i]


@pytest.mark.parametrize(
    ("options", "token", "points", "places"),
    [
        ({}, "query", [], []),
        ({}, "context", [0, 2, 4], [0, 2, 4]),
        ({"layout": "alternating", "mask": "causal", "norm": "none"}, "context", [0, 2, 4], [0, 4, 8]),
        ({"heads": [1], "layout": "prefixes", "mask": "causal"}, "context", [0, 2, 4], [0, 2, 4]),
        ({"heads": [3, 0, 1], "head_dim": 2, "attention": "linear"}, "query", [], []),
    ],
)
def test_every_number_equals_hooks_loops_and_scikit_learn(options, token, points, places):
    transformer, sets = network(**options), [sampled(seed, 40 + seed) for seed in (1, 2, 3)]
    other = network(seed=1, **options)
    table = probe_layers(transformer, TASK, *sets, untrained=other, context_points=3, chunk_size=17)
    depth = len(transformer.heads)
    truth = [slow_targets(prompt, token, points, depth, TASK.ridge_alpha) for prompt in sets]
    assert targets_of(table, token) == list(truth[0])
    for kind, model in (("trained", transformer), ("untrained", other)):
        states = [hooked_states(model, prompt, token, places) for prompt in sets]
        for layer in range(depth + 1):
            for name, alpha, predicted in best_ridges([part[layer].reshape(-1, 8) for part in states], truth):
                rows, wanted = table.by_layer(name, token), truth[2][name]
                assert [row.layer for row in rows] == list(range(depth + 1))
                found = getattr(rows[layer], kind)
                assert found.alpha == pytest.approx(alpha, rel=1e-6)
                errors = ((predicted - wanted) ** 2).sum(1).reshape(len(sets[2].x), -1).mean(1)
                assert found.risk.value == pytest.approx(errors.mean(), rel=1e-6, abs=1e-9)
                assert found.risk.standard_error == pytest.approx(errors.std(ddof=1) / len(errors) ** 0.5, abs=1e-6)
                r2 = r2_score(wanted, predicted, multioutput="variance_weighted")
                assert found.r2.value == pytest.approx(r2, abs=1e-6)
                assert (found.auc is not None) == (name == "support")
                if found.auc is not None:
                    assert found.auc.value == pytest.approx(roc_auc_score(wanted.ravel(), predicted.ravel()), abs=1e-6)
    for row in table.rows:
        assert row.over_untrained.value == pytest.approx(row.trained.r2.value - row.untrained.r2.value, abs=1e-12)
        assert row.over_shuffled.value == pytest.approx(row.trained.r2.value - row.shuffled.r2.value, abs=1e-12)


def test_a_fixed_strength_is_the_strength_of_every_probe():
    table = probe_layers(network(), TASK, *map(sampled, (1, 2, 3)), untrained=network(seed=1), alpha=2.5)
    assert {scored.alpha for row in table.rows for scored in (row.trained, row.shuffled, row.untrained)} == {2.5}


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk_size):
    sets = [sampled(seed, 20) for seed in (1, 2, 3)]
    for row, other in zip(
        probe_layers(network(), TASK, *sets, chunk_size=chunk_size).rows,
        probe_layers(network(), TASK, *sets).rows,
        strict=True,
    ):
        assert row.trained.risk.value == pytest.approx(other.trained.risk.value, abs=1e-9)


# States that are known


def designed(n_prompts, seed, n_dims=3, n_points=6):
    """Noise-free prompts whose X^T X / n has eigenvalues 1, 1/2, 1/4: the GD step 1/lambda_max is 1 for all of them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(n_prompts, *shape, generator=generator, dtype=torch.float64)

    left, right = torch.linalg.qr(normal(n_points, n_dims)).Q, torch.linalg.qr(normal(n_dims, n_dims)).Q
    spectrum = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    x, w, x_query = n_points**0.5 * left * spectrum.sqrt() @ right, normal(n_dims), normal(N_QUERIES, n_dims)
    y, f_query = torch.einsum("bpd,bd->bp", x, w), torch.einsum("bqd,bd->bq", x_query, w)
    return Prompt(x, y, x_query, f_query, f_query, w, f=y)


def one_step_network(n_dims=3):
    """Hidden = (x, y); key = query = x, value = y: the query's last slot becomes <X^T y / n, x_q>, a GD step of 1."""
    transformer = Transformer(
        n_dims, n_dims + 1, [1], attention="linear", mask="context", mlp=False, norm="none", head_dim=n_dims
    ).double()
    attention = transformer.layers[0].attention
    select = torch.eye(n_dims, n_dims + 1, dtype=torch.float64)
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.zero_()
        transformer.read_in.weight.copy_(torch.eye(n_dims + 1))
        attention.query.weight.copy_(select)
        attention.key.weight.copy_(select)
        attention.value.weight[0, n_dims] = 1
        attention.output.weight[n_dims, 0] = n_dims**0.5
    return transformer


def test_one_step_of_gradient_descent_is_found_where_it_is_computed():
    table = probe_layers(one_step_network(), LinearRegression(3), *(designed(300, seed) for seed in (1, 2, 3)))
    before, after = table.by_layer("gd_1")
    assert after.trained.r2.value == pytest.approx(1, abs=1e-12)
    assert after.trained.risk.value == pytest.approx(0, abs=1e-12)
    assert before.trained.r2.value < 0.05
    # Nothing else is what the state holds.
    for target in ("f", "w", "r_hat", "preprocessed", "least_squares", "preprocess_then_gd_1"):
        assert table.by_layer(target)[1].trained.r2.value < 0.95


def test_what_a_state_holds_is_found_without_error():
    """A context token is (x; y), and y = f(x) without noise; layer 1 adds the step to it."""
    table = probe_layers(one_step_network(), LinearRegression(3), *(designed(100, seed) for seed in (1, 2, 3)))
    before, after = table.by_layer("f", "context")
    assert before.trained.r2.value == pytest.approx(1, abs=1e-12)
    assert before.trained.risk.value == pytest.approx(0, abs=1e-12)
    assert after.trained.r2.value < 0.99
    assert before.shuffled.r2.value < 0.2
    assert before.over_shuffled.value > 0.8


@pytest.mark.parametrize("target", ["f", "w", "support", "r_hat"])
def test_a_state_that_knows_nothing_of_a_target_explains_none_of_it(target):
    """After the read-in a query has seen x_q alone, and the weights are symmetric about 0."""
    table = probe_layers(network(), TASK, *(sampled(seed, 1000) for seed in (1, 2, 3)))
    row = table.by_layer(target)[0]
    assert abs(row.trained.r2.value) <= 4 * row.trained.r2.standard_error + 8 / 1000
    assert abs(row.shuffled.r2.value) <= 4 * row.shuffled.r2.standard_error + 8 / 1000
    if row.trained.auc is not None:
        assert abs(row.trained.auc.value - 0.5) <= 4 * row.trained.auc.standard_error


def test_an_untrained_network_is_no_better_than_itself():
    transformer = network()
    table = probe_layers(transformer, TASK, *map(sampled, (1, 2, 3)), untrained=transformer)
    for row in table.rows:  # but for the rounding of products with the shuffled labels beside and without
        assert tuple(row.over_untrained) == pytest.approx((0.0, 0.0), abs=1e-14)
        assert row.trained.alpha == row.untrained.alpha
        assert row.trained.risk == pytest.approx(row.untrained.risk, rel=1e-12, abs=1e-14)
        assert row.trained.r2 == pytest.approx(row.untrained.r2, rel=1e-12, abs=1e-14)
        assert row.trained.auc == (row.untrained.auc and pytest.approx(row.untrained.auc, rel=1e-12))


def test_what_was_found_on_an_untrained_network_stands_in_for_it():
    sets, control = [sampled(seed, 20) for seed in (1, 2, 3)], network(seed=2)
    found = probe_layers(network(), TASK, *sets, untrained=control).untrained
    other = network(seed=1)
    table = probe_layers(other, TASK, *sets, untrained=found)
    assert table == probe_layers(other, TASK, *sets, untrained=control)._replace(untrained=found)
    assert table.rows != probe_layers(other, TASK, *sets, untrained=other).rows


def test_without_an_untrained_network_there_is_no_such_control():
    rows = probe_layers(network(), TASK, *map(sampled, (1, 2, 3))).rows
    assert {(row.untrained, row.over_untrained) for row in rows} == {(None, None)}


# Awkward prompts


def test_a_constant_target_has_no_r2_and_no_auc():
    task = LinearRegression(N_DIMS, noise_std=0.3)  # every weight is in the support
    table = probe_layers(network(), task, *(sampled(seed, task=task) for seed in (1, 2, 3)))
    for row in table.by_layer("support"):
        assert row.trained.risk.value == pytest.approx(0, abs=1e-20)
        assert all(math.isnan(number) for number in (*row.trained.r2, *row.trained.auc, *row.over_shuffled))


def test_a_task_without_weights_leaves_them_out():
    sets = [sampled(seed)._replace(w=None, f=None) for seed in (1, 2, 3)]
    table = probe_layers(network(), TASK, *sets)
    assert not {"w", "support"} & {row.target for row in table.rows}
    assert "f" in targets_of(table, "query")
    assert "f" not in targets_of(table, "context")


@pytest.mark.parametrize(("n_prompts", "n_points"), [(2, 1), (2, 5), (4, 2)])
def test_the_fewest_prompts_and_examples_give_finite_risks(n_prompts, n_points):
    """Fewer samples than features, too."""
    table = probe_layers(network(), TASK, *(sampled(seed, n_prompts, n_points=n_points) for seed in (1, 2, 3)))
    assert all(math.isfinite(number) for row in table.rows for number in row.trained.risk)


def test_single_precision_finds_the_same():
    sets = [sampled(seed, 200) for seed in (1, 2, 3)]
    exact = probe_layers(network(), TASK, *sets, alpha=1.0)
    single = [Prompt._make(None if field is None else field.float() for field in prompt) for prompt in sets]
    rough = probe_layers(network().float(), TASK, *single, alpha=1.0)
    for row, other in zip(exact.rows, rough.rows, strict=True):
        assert row.trained.risk.value == pytest.approx(other.trained.risk.value, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"context_points": 0}, "context_points is 0, but it must be at least 1"),
        ({"chunk_size": 0}, "chunk_size is 0, but it must be at least 1"),
        ({"untrained": network(heads=[2])}, "the untrained network has 1 layers, but the probed one has 2"),
        ({"score": sampled(3, n_points=4)}, "the prompts of score have shape"),
        ({"choose": sampled(2, 1)}, "choose has 1 prompts, but it must have at least 2"),
        ({"fit": sampled(1).padded_after(3)}, "the prompts are padded, but all 5 examples of each are needed here"),
        ({"network": network(n_dims=4)}, "the prompts of fit have shape"),
    ],
)
def test_what_cannot_be_probed_is_named(change, sentence):
    sets = dict(zip(("fit", "choose", "score"), map(sampled, (1, 2, 3)), strict=True))
    with pytest.raises(InputError, match=sentence):
        probe_layers(**({"network": network(), "task": TASK} | sets | change))


# The untrained network


def test_untrained_weights_are_those_of_a_fresh_network():
    trained = network(norm="pre", mlp=True, heads=[2, 0, 1], head_dim=3).float()
    fresh = trained.untrained(7)
    expected = network(seed=7, norm="pre", mlp=True, heads=[2, 0, 1], head_dim=3).float()
    assert fresh.state_dict().keys() == trained.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.allclose(fresh.state_dict()[name], value), name


def test_an_untrained_network_touches_neither_the_trained_one_nor_the_global_generator():
    trained = network(position="learned", max_points=400)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    state = torch.random.get_rng_state()
    fresh, again = trained.untrained(), trained.untrained()
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name])
        assert torch.equal(fresh.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(fresh.read_in.weight, trained.read_in.weight)
    assert not torch.equal(fresh.position, trained.position)
    # 401 x 8 normal numbers: their standard deviation is known to 1 / sqrt(2 x 3208).
    assert float(fresh.position.detach().std()) == pytest.approx(0.02, rel=4 / (2 * 3208) ** 0.5)


def test_the_untrained_control_starts_as_the_model_did():
    for init, same in (("default", False), ("keys_equal_queries", True)):
        torch.manual_seed(0)
        control = Transformer(3, 8, [2], init=init).untrained()
        attention = control.blocks[0].attention
        assert torch.equal(attention.key.weight, attention.query.weight) == same
