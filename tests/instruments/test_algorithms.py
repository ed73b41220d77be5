"""Which algorithm is it: readings, distances and fitted settings against slow routes and planted algorithms."""

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import Ridge as SklearnRidge

from lightning_icl import ReLUNetwork, SparseLinearRegression, Transformer
from lightning_icl.functional import estimators
from lightning_icl.functional.constructions import (
    ConstructedGD,
    ConstructedGDPlusPlus,
    ConstructedPreprocessThenGD,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import (
    GD,
    Case,
    Lasso,
    LeastSquares,
    NearestNeighbours,
    Newton,
    PreprocessThenGD,
    ZeroPredictor,
    tuned,
    whole_prompts,
)
from lightning_icl.functional.tasks import Eigenvalues
from lightning_icl.instruments.algorithms import (
    PROBE,
    READ_OUT,
    Reader,
    Readings,
    TunedRidge,
    algorithm_distances,
    closest,
    default_algorithms,
    distances,
    excess_over,
    own_readers,
    probe_readers,
    readings,
    squared_differences,
)
from lightning_icl.instruments.families import fitted, members_of, refined

IT = [Reader(READ_OUT, 1, torch.sum)]  # one reading, which the tests make themselves
TASK = SparseLinearRegression(3, 2, noise_std=0.3)
CASE = Case(TASK, TASK, 3)


def sampled(n_prompts, seed=0, n_points=6, n_queries=2, task=TASK):
    return task.sample(n_prompts, n_points, n_queries, torch.Generator().manual_seed(seed))


def model(n_dims=3, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = Transformer(n_dims, **({"d_model": 12, "heads": [3, 2]} | options)).double()
        for parameter in built.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
    return built


def readings_of(algorithm, problems):
    """What a module would read whose predictions are those of the algorithm."""
    w_hat = algorithm.weights(problems)[:, 0]
    weights = w_hat[:, None].expand(-1, problems.targets.shape[2], -1)
    return Readings(estimators.predictions(w_hat, problems.targets[:, 0])[None], weights[None])


VARIANTS = [
    {},
    {"mlp": False, "attention": "linear", "norm": "none"},
    {"attention": "relu", "norm": "post", "mask": "full"},
    {"mask": "causal", "layout": "prefixes"},
    {"mask": "causal", "layout": "alternating", "position": "learned", "max_points": 6},
    {"heads": [0, 2]},
    {"heads": [1]},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_readings_and_implied_weights_equal_one_query_at_a_time(options):
    transformer, prompt = model(**options), sampled(5).double()
    own = own_readers(transformer, transformer.on_prompt(prompt))
    readers = [*probe_readers(transformer, sampled(20, 1).double(), 0.7, 8), *own]
    found = readings(transformer, prompt, readers, chunk_size=3)
    assert torch.allclose(found.prediction[-1], transformer.on_prompt(prompt).prediction, atol=1e-10)
    for r, reader in enumerate(readers):
        for b in range(5):
            for q in range(2):
                alone = prompt.rows(b, b + 1)._replace(x_query=prompt.x_query[b : b + 1, q : q + 1])

                def read(x, alone=alone, reader=reader):
                    output = transformer.on_prompt(alone._replace(x_query=x[None, None]))
                    return reader.read(output.query_states[reader.layer])[0, 0]

                x = alone.x_query[0, 0]
                steps = 1e-5 * torch.eye(3, dtype=x.dtype)
                differences = torch.stack([(read(x + e) - read(x - e)) / 2e-5 for e in steps])
                assert read(x).item() == pytest.approx(float(found.prediction[r, b, q]), abs=1e-9)
                assert torch.allclose(found.weights[r, b, q], differences, atol=1e-6)


def test_the_probes_are_ridge_on_the_query_states():
    transformer, fit, prompt = model(), sampled(30, 1).double(), sampled(4).double()
    found = readings(transformer, prompt, probe_readers(transformer, fit, 0.7, 7))
    seen, fresh = (transformer.on_prompt(p).query_states for p in (fit, prompt))
    assert len(found.prediction) == 2
    for layer in (1, 2):
        probe = SklearnRidge(alpha=0.7).fit(seen[layer].detach().flatten(0, 1), fit.f_query.flatten())
        expected = probe.predict(fresh[layer].detach().flatten(0, 1))
        np.testing.assert_allclose(found.prediction[layer - 1].flatten(), expected, atol=1e-9)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_gradients_run_in_every_mode_and_leave_no_trace(mode):
    transformer = model().float()
    with mode():
        fit, prompt = sampled(9, 1), sampled(4)
        own = own_readers(transformer, transformer.on_prompt(prompt))
        found = readings(transformer, prompt, [*probe_readers(transformer, fit, 1.0), *own])
    assert not found.prediction.requires_grad
    assert not found.weights.requires_grad
    assert found.weights.abs().amin(dim=(1, 2, 3)).gt(0).all()
    assert not prompt.x_query.requires_grad
    assert all(parameter.grad is None for parameter in transformer.parameters())


def test_gradients_run_under_autocast_within_inference_mode():
    transformer = model().float()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = readings(transformer, sampled(4), [*probe_readers(transformer, sampled(9, 1), 1.0)])
    assert found.weights.isfinite().all()


@pytest.mark.parametrize(("n_dims", "n_points", "n_queries"), [(3, 5, 2), (1, 1, 1)])
def test_distances_equal_a_loop_over_prompts_and_queries(n_dims, n_points, n_queries):
    task = SparseLinearRegression(n_dims, 1, noise_std=0.3)
    transformer = model(n_dims, heads=[2])
    prompts = [sampled(9, seed, n_points, n_queries, task).double() for seed in range(3)]
    [found] = [
        d
        for d in algorithm_distances(transformer, *prompts, task, [GD(2, scale=0.7)], [n_points])
        if d.reading == READ_OUT
    ]
    rows = []
    for x, y, x_query in zip(prompts[2].x, prompts[2].y, prompts[2].x_query, strict=True):
        scale = 0.7 / np.linalg.eigvalsh(x.T @ x / n_points)[-1]
        w_a = np.zeros(n_dims)
        for _ in range(2):
            w_a = w_a - scale * x.numpy().T @ (x.numpy() @ w_a - y.numpy()) / n_points
        by_query = []
        for q in range(n_queries):
            x_q = x_query[q : q + 1][None].clone().requires_grad_()
            tokens = torch.cat([torch.cat([x, y[:, None]], 1)[None], torch.nn.functional.pad(x_q, (0, 1))], dim=1)
            prediction = transformer(tokens).prediction
            (g,) = torch.autograd.grad(prediction.sum(), x_q)
            g, yhat, yhat_a = g[0, 0].numpy(), prediction.item(), float(w_a @ x_query[q].numpy())
            cosine = g @ w_a / (np.linalg.norm(g) * np.linalg.norm(w_a))
            by_query.append([(yhat - yhat_a) ** 2, yhat**2, ((g - w_a) ** 2).sum(), (g**2).sum(), cosine])
        rows.append(np.mean(by_query, axis=0))
    rows = np.array(rows)
    mean = rows.mean(axis=0)
    error = rows.std(axis=0, ddof=1) / 3
    close = {"rel": 1e-9, "abs": 1e-12}
    assert (found.spd, found.ilwd, found.cosine) == pytest.approx((mean[0], mean[2], mean[4]), **close)
    of_means = [found.errors[name] for name in ("spd", "ilwd", "cosine")]
    assert of_means == pytest.approx([error[0], error[2], error[4]], **close)
    assert (found.relative_spd, found.relative_ilwd) == pytest.approx((mean[0] / mean[1], mean[2] / mean[3]), **close)
    left_out = np.array([np.delete(rows, i, axis=0).mean(axis=0) for i in range(9)])
    ratios = np.stack([left_out[:, 0] / left_out[:, 1], left_out[:, 2] / left_out[:, 3]])
    jackknife = np.sqrt(8 / 9 * ((ratios - ratios.mean(axis=1, keepdims=True)) ** 2).sum(axis=1))
    assert [found.errors[name] for name in ("relative_spd", "relative_ilwd")] == pytest.approx(jackknife, **close)


def test_the_zero_predictor_is_at_relative_distance_one():
    prompts = [sampled(8, seed) for seed in range(3)]
    for found in algorithm_distances(model().float(), *prompts, TASK, [ZeroPredictor()]):
        assert (found.relative_spd, found.relative_ilwd, found.cosine) == (1, 1, 0)


# Which settings: on a grid, then refined, for every number of steps


def noisy_readings(problems):
    """Two readings that no algorithm gives: f at two scales, under noise."""
    noise = torch.randn(2, *problems.f[:, 0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return problems.f[:, 0] * torch.tensor([1.0, 0.1])[:, None, None] + 0.3 * noise


def left_of(reading, w_hat, problems, is_scaled):
    """The mean squared residual by another route: of lstsq where the prediction may be rescaled."""
    target, other = reading.flatten().numpy(), estimators.predictions(w_hat, problems.targets[:, 0]).flatten().numpy()
    scale = max(0.0, np.linalg.lstsq(other[:, None], target, rcond=None)[0][0]) if is_scaled else 1.0
    return np.mean((target - scale * other) ** 2)


@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("algorithm", default_algorithms(TASK, 3), ids=lambda a: a.key)
@pytest.mark.usefixtures("unchecked")
def test_no_candidate_and_no_neighbour_is_closer_than_the_member_chosen(algorithm, is_scaled, monkeypatch):
    monkeypatch.setattr("lightning_icl.functional.references.problems.ENTRIES_AT_ONCE", 9 * (3**2 + 256 * 3))
    problems = whole_prompts(sampled(16))
    targets = noisy_readings(problems)
    family = fitted(algorithm, CASE, problems, targets, [is_scaled] * 2)
    members = members_of(family.algorithm, problems)
    for target, chosen in zip(targets, family.chosen, strict=True):
        w_hat = family.algorithm.at(chosen.settings[chosen.best, :, None]).weights(problems)[:, 0]
        least = left_of(target, w_hat, problems, is_scaled)
        candidates = family.algorithm.grid(problems)[..., 0]
        moved = [p for p, name in enumerate(family.algorithm.setting_names) if name not in ("steps", "features")]
        low, high = candidates.amin(0) / 2, 2 * candidates.amax(0)
        near = [chosen.settings * (1 + sign * 0.01 * (torch.arange(len(low)) == p)) for p in moved for sign in (-1, 1)]
        inside = [some for some in near if ((some >= low) & (some <= high)).all()]
        for w in members(torch.cat([candidates, chosen.settings, *inside])):
            assert left_of(target, w, problems, is_scaled) >= least * (1 - 1e-5)


def test_weights_of_several_settings_at_once_are_those_of_each_alone():
    problems = whole_prompts(sampled(5))
    for algorithm in default_algorithms(TASK, 4):
        family = fitted(algorithm, CASE, problems, noisy_readings(problems), [False, True])
        settings = family.chosen[0].settings.flip(0)  # in no order that a path would have them in
        together = members_of(family.algorithm, problems)(settings)
        for some, w_hat in zip(settings, together, strict=True):
            alone = family.algorithm.at(some[:, None]).weights(problems)[:, 0]
            torch.testing.assert_close(w_hat, alone, rtol=1e-9, atol=1e-12)


def test_refinement_ends_where_the_residuals_are_least():
    """Of a + b s and exp: the one minimum is that of a quadratic, the other is 0; one ends at its bound."""
    at = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def residuals(settings):
        line = settings[:, :1] * at - torch.tensor([1.0, 2.5, 2.9])  # least at <at, y> / <at, at>
        curve = torch.exp(-settings[:, 1:] * at) - torch.exp(-0.7 * at)
        return torch.cat([line, curve], dim=1)

    start = torch.tensor([[0.2, 0.1], [3.0, 2.0]], dtype=torch.float64)
    ends = torch.zeros(2).double(), torch.full((2,), 5.0).double()
    best = (1.0 + 5.0 + 8.7) / 14
    assert torch.allclose(refined(residuals, start, [0, 1], ends), torch.tensor([best, 0.7]).double(), atol=1e-6)
    bounded = refined(residuals, start.clamp(max=0.5), [0, 1], (ends[0], torch.full((2,), 0.5).double()))
    assert torch.allclose(bounded, torch.tensor([0.5, 0.5]).double())
    assert torch.equal(refined(residuals, start, [1], ends)[:, 0], start[:, 0])


# Networks whose algorithm is known


def built(construction, n_dims):
    network = Transformer(n_dims, **construction.options(n_dims)).double()
    network.load_state_dict(construction.state(n_dims))
    return network


def read_out_distances(network, task, choose, score, max_steps):
    """The distances of the model's own read-outs, without probes."""
    readers = own_readers(network, network.on_prompt(score))
    seen = [(whole_prompts(prompt), readings(network, prompt, readers)) for prompt in (choose, score)]
    return distances(readers, default_algorithms(task, max_steps), Case(task, task, len(network.heads)), *seen)


SKEWED = Eigenvalues([1.0, 0.5, 0.3])
KNOWN = {
    "gd": (ConstructedGD(3, 0.1234), "gd_best_shared_step", [1, 2, 3]),
    "preprocess_then_gd": (ConstructedPreprocessThenGD(3, 0.1234), "preprocess_then_gd_best_shared_step", [0, 1, 2, 3]),
    "gd_plus_plus": (ConstructedGDPlusPlus(3, 0.1234, 0.0567), "gd_plus_plus_best_shared_step", [1, 2, 3]),
    "preconditioned": (
        ConstructedGD(3, 0.1234, torch.diag(1 / torch.tensor([1.0, 0.5, 0.3])).tolist()),
        "preconditioned_gd_best_shared_step",
        [1, 2, 3],
    ),
}


def assert_named(found, algorithm, steps, n_points, step=0.1234):
    """By the model's read-out every layer is its algorithm after its steps, and nothing else unless it is the same."""
    for layer, t in enumerate(steps, start=1):
        names = closest(found, READ_OUT, layer, n_points)
        if t == 0:
            assert names == []
            continue
        # After one step GD and GD++ are one algorithm, and GD++ with gamma = 0 is GD.
        same = (
            {"gd_plus_plus_best_shared_step": "gd_best_shared_step"}.get(algorithm, algorithm) if t == 1 else algorithm
        )
        assert names[0].algorithm == same
        assert {d.algorithm for d in names[1:]} <= {"gd_plus_plus_best_shared_step"}
        assert all(d.from_closest < 1e-12 for d in names)
        (mine,) = (d for d in names if d.algorithm == algorithm)
        assert (mine.setting["steps"], mine.steps_range) == (t, (t, t))
        assert mine.setting["step"] == pytest.approx(step, rel=1e-6)
        assert max(mine.relative_spd, mine.relative_ilwd) < 1e-12
        assert mine.cosine == pytest.approx(1)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.usefixtures("unchecked")
def test_every_layer_of_a_known_network_is_named_with_its_steps(name):
    """Eta and gamma off the grid; that P-GD's first layer predicts nothing is said, and no algorithm's name."""
    construction, algorithm, steps = KNOWN[name]
    task = SparseLinearRegression(
        3, 1, noise_std=0.2, weight_law="sign", spectrum=SKEWED if name == "preconditioned" else None
    )
    prompts = [sampled(32, seed, 24, 2, task).double() for seed in (1, 2)]
    found = read_out_distances(built(construction, 3), task, *prompts, max_steps=4)
    assert_named(found, algorithm, steps, 24)
    if name == "gd_plus_plus":
        (mine,) = (d for d in closest(found, READ_OUT, 3, 24) if d.algorithm == algorithm)
        assert mine.setting["gamma"] == pytest.approx(0.0567, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.usefixtures("unchecked")
def test_every_layer_of_a_known_network_is_named_at_full_size(name):
    construction, algorithm, steps = KNOWN[name]
    spectrum = None
    if name == "preconditioned":
        values = [1.0, 1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.25]
        construction = ConstructedGD(3, 0.1234, torch.diag(1 / torch.tensor(values)).tolist())
        spectrum = Eigenvalues(values)
    task = SparseLinearRegression(8, 2, noise_std=0.2, weight_law="sign", spectrum=spectrum)
    prompts = [sampled(256, seed, 40, 16, task).double() for seed in range(3)]
    assert_named(algorithm_distances(built(construction, 8), *prompts, task, n_points=[40]), algorithm, steps, 40)


def flipped(network):
    torch.nn.init.constant_(network.read_out.weight, 0).data[0, -1] = 1  # minus the label slot is the prediction
    return network


NOT_GD = {
    "untrained": lambda: Transformer(3, 16, [4, 4], mlp=False).double(),
    "random weights": lambda: model(heads=[3, 2]),
    "sign flipped": lambda: flipped(built(ConstructedGD(2, 0.2), 3)),
}


@pytest.mark.parametrize("name", NOT_GD)
@pytest.mark.usefixtures("unchecked")
def test_a_network_that_is_no_algorithm_is_far_from_all(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = NOT_GD[name]()
    for d in read_out_distances(network, TASK, *(sampled(64, seed, 12, 2).double() for seed in (1, 2)), max_steps=4):
        assert d.relative_spd + 3 * d.errors["relative_spd"] > 0.9


@pytest.mark.usefixtures("unchecked")
def test_a_lasso_predictor_is_the_lasso_and_no_other():
    choose, score = (whole_prompts(sampled(128, seed, 8)) for seed in (1, 2))
    (lasso,) = tuned([Lasso(0.2345).bound(CASE)], choose)
    seen = [readings_of(lasso, problems) for problems in (choose, score)]
    found = distances(IT, default_algorithms(TASK, 6), CASE, (choose, seen[0]), (score, seen[1]))
    (name,) = closest(found, READ_OUT, 1, 8)
    assert name.algorithm == "lasso"
    assert name.setting["alpha"] == pytest.approx(0.2345, rel=1e-3)  # off the grid


def test_a_probe_is_compared_without_scale():
    """A reading that is a third of ridge's prediction is ridge for a probe, and is not as the model's own."""
    choose, score = (whole_prompts(sampled(64, seed)) for seed in (1, 2))
    (ridge,) = tuned([TunedRidge(alpha=1.5).bound(CASE)], choose)
    seen = [Readings._make(part / 3 for part in readings_of(ridge, problems)) for problems in (choose, score)]
    both = [Readings._make(part.expand(2, *part.shape[1:]) for part in reading) for reading in seen]
    readers = [Reader(PROBE, 1, torch.sum), Reader(READ_OUT, 1, torch.sum)]
    probe, own = distances(readers, [TunedRidge(alpha=1.5)], CASE, (choose, both[0]), (score, both[1]))
    assert probe.relative_spd < 1e-20
    assert probe.relative_ilwd < 1e-20
    assert probe.setting == {"alpha": 1.5, "scale": pytest.approx(1 / 3)}
    assert own.relative_spd == pytest.approx(4)  # (1/3 - 1)^2 / (1/3)^2
    minus = [Readings._make(-part for part in reading) for reading in both]
    flipped, _ = distances(readers, [TunedRidge(alpha=1.5)], CASE, (choose, minus[0]), (score, minus[1]))
    assert (flipped.setting["scale"], flipped.relative_spd) == (0, 1)


def test_the_probe_of_gradient_descent_is_told_from_preprocessing():
    """What the best linear use of the state can say: which family, not how many steps."""
    fit, choose, score = (sampled(512, seed, 12, 4).double() for seed in range(3))
    compared = [GD(step_size="shared", max_steps=4), PreprocessThenGD(step_size="shared", max_steps=4)]
    found = algorithm_distances(built(ConstructedGD(3, 0.3), 3), fit, choose, score, TASK, compared, [12], alpha=1e-6)
    for layer in (1, 2, 3):
        names = closest(found, PROBE, layer, 12)
        assert [d.algorithm for d in names] == ["gd_best_shared_step"]
        assert names[0].relative_spd < 0.01


@pytest.mark.parametrize("alpha", [0.1, 2.0])
def test_the_alpha_of_a_module_that_is_ridge_is_found(alpha):
    choose, score = (whole_prompts(sampled(128, seed)) for seed in (1, 2))
    w_hat = [estimators.ridge(p.x, p.y, alpha) for p in (choose, score)]
    seen = [
        Readings(estimators.predictions(w, p.targets[:, 0])[None], w[None, :, None].expand(-1, -1, 2, -1))
        for w, p in zip(w_hat, (choose, score), strict=True)
    ]
    algorithms = [TunedRidge(), GD(max_steps=1), Lasso(), LeastSquares()]
    found = {d.algorithm: d for d in distances(IT, algorithms, CASE, (choose, seen[0]), (score, seen[1]))}
    ridge = found.pop("ridge")
    assert ridge.setting["alpha"] == pytest.approx(alpha, rel=1e-6)
    assert ridge.relative_spd < 1e-12
    assert all(d.relative_spd > 3 * ridge.relative_spd for d in found.values())


@pytest.mark.parametrize("algorithm", [Newton(4), GD(3, scale=0.7), Lasso(0.05), PreprocessThenGD(5, scale=1.2)])
def test_an_algorithm_is_at_no_distance_of_itself_and_its_setting_is_found(algorithm):
    choose, score = (whole_prompts(sampled(128, seed)) for seed in (1, 2))
    (planted,) = tuned([algorithm.bound(CASE)], choose)
    rule = getattr(algorithm, "step_size", None)
    families = [a for a in default_algorithms(TASK, 10) if a.name == algorithm.name]
    family = next(a for a in families if getattr(a, "step_size", None) == rule)
    seen = [readings_of(planted, problems) for problems in (choose, score)]
    [found] = distances(IT, [family], CASE, (choose, seen[0]), (score, seen[1]))
    setting = dict(zip(planted.setting_names, planted.setting[:, 0].tolist(), strict=True))
    assert found.setting == pytest.approx(setting, rel=1e-4)
    assert found.relative_spd < 1e-8


def test_settings_are_chosen_on_other_prompts_than_those_scored():
    prompts = [sampled(32, seed).double() for seed in range(4)]
    transformer = model()
    first = algorithm_distances(transformer, *prompts[:3], TASK, [TunedRidge()])
    second = algorithm_distances(transformer, *prompts[:2], prompts[3], TASK, [TunedRidge()])
    assert [d.setting for d in first] == [d.setting for d in second]
    assert all(a.spd != b.spd for a, b in zip(first, second, strict=True))


def test_a_reading_of_noise_is_no_farther_from_the_best_ridge_than_from_zero():
    choose, score = (whole_prompts(sampled(64, seed)) for seed in (1, 2))
    generator = torch.Generator().manual_seed(0)
    noise = [
        Readings(
            *(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((1, 64, 2), (1, 64, 2, 3)))
        )
        for _ in (choose, score)
    ]
    [found] = distances(IT, [TunedRidge()], CASE, (choose, noise[0]), (score, noise[1]))
    assert found.relative_spd == pytest.approx(1, abs=0.03)


# Which is closest, and which cannot be told from it


def test_the_excess_over_the_closest_by_hand():
    generator = torch.Generator().manual_seed(0)
    seen = [
        Readings(torch.randn(2, 64, 2, generator=generator), torch.randn(2, 64, 2, 3, generator=generator))
        for _ in range(2)
    ]
    seen = [Readings._make(part.double() for part in readings) for readings in seen]
    choose, score = (whole_prompts(sampled(64, seed)) for seed in (1, 2))
    algorithms = [GD(2, scale=0.7), TunedRidge(alpha=2.0), ZeroPredictor()]
    readers = [Reader(READ_OUT, 1, torch.sum), Reader(READ_OUT, 2, torch.sum)]
    found = distances(readers, algorithms, CASE, (choose, seen[0]), (score, seen[1]))
    for i, layer in enumerate((1, 2)):
        errors = []
        for algorithm in algorithms:
            w = tuned([algorithm.bound(CASE)], choose)[0].weights(score)[:, 0]
            errors.append((seen[1].prediction[i] - estimators.predictions(w, score.targets[:, 0])).square().mean(dim=1))
        spd = torch.stack(errors).mean(dim=1)
        best = int(spd.argmin())
        for algorithm, mine, error in zip(algorithms, spd, errors, strict=True):
            (d,) = [d for d in found if (d.algorithm, d.layer) == (algorithm.key, layer)]
            assert d.rank == 1 + sorted(spd.tolist()).index(float(mine))
            assert d.excess_over_closest.value == pytest.approx(float(mine / spd[best]) - 1, rel=1e-9, abs=1e-12)
            influence = (error / mine - errors[best] / spd[best]).numpy()
            half = norm.ppf(1 - 0.025 / 3) * influence.std(ddof=1) / 8  # three pairs of algorithms
            low, high = np.log1p(d.excess_over_closest[1:])
            assert high - low == pytest.approx(2 * half, rel=1e-6, abs=1e-12)


def alike(differences):
    """The algorithms that the prompts cannot tell from the closest."""
    best = int(differences.mean(dim=1).nan_to_num(torch.inf).argmin())
    n = len(differences)
    excess = excess_over(best, differences, torch.ones(differences.shape[1]), n * (n - 1) // 2)
    return (excess[1] <= 0).nonzero().flatten().tolist()


def test_equals_are_tied_and_others_are_not_however_long_their_tails():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(256, generator=generator).double().square()
    noise = [0.01 * torch.randn(256, generator=generator).double().square() for _ in range(3)]
    # The noise of a prompt is shared, so that 5 % farther is told apart where the distances themselves overlap.
    assert alike(torch.stack([common + noise[0], common + noise[1], 1.05 * common + noise[2]])) == [0, 1]
    # One prompt makes the mean: 474 +- 294 and the like, of whose difference 0 is within noise.
    far = torch.where(torch.arange(256) == 7, 1.2e5, 0.5).double()
    difference = far - common
    assert difference.mean() - 1.96 * difference.std() / 16 < 0
    assert alike(torch.stack([common, far])) == [0]
    diverged = torch.full((256,), torch.inf).double()
    assert alike(torch.stack([diverged, common, diverged * torch.nan])) == [1]
    assert alike(torch.stack([0 * common, 1e-14 * common, common])) == [0, 1]  # the same but for rounding


@pytest.mark.parametrize("n_algorithms", [2, 8])
@pytest.mark.parametrize("law", ["normal", "squared", "long-tailed"])
def test_equals_are_all_tied_95_percent_of_the_time(n_algorithms, law):
    generator, sets = torch.Generator().manual_seed(0), 400
    held = 0
    for _ in range(sets):
        noise = torch.randn(n_algorithms, 256, generator=generator, dtype=torch.float64)
        values = {"normal": 1 + 0.3 * noise, "squared": noise.square(), "long-tailed": noise.exp()}[law]
        held += len(alike(values)) == n_algorithms
    print(f"{n_algorithms} {law}: {held / sets:.1%}")
    assert held / sets >= 0.95 - 3 * (0.95 * 0.05 / sets) ** 0.5


@pytest.mark.parametrize("excess", [0.1, 1.0])
def test_the_interval_of_a_true_excess_holds(excess):
    generator, sets = torch.Generator().manual_seed(0), 400
    held = 0
    for _ in range(sets):
        shared = torch.randn(256, generator=generator, dtype=torch.float64).square()
        own = torch.randn(2, 256, generator=generator, dtype=torch.float64).square()
        differences = torch.stack([shared + own[0], (1 + excess) * (shared + own[1])])
        low, high = excess_over(0, differences, own[0], 1)[1:, 1]
        held += bool(low <= excess <= high)
    print(f"excess {excess}: {held / sets:.1%}")
    assert abs(held / sets - 0.95) <= 3 * (0.95 * 0.05 / sets) ** 0.5


def test_weights_are_zero_where_the_cosine_would_not_be_defined():
    zero = torch.zeros(2, 1, dtype=torch.float64)
    w = torch.zeros(2, 1, 3, dtype=torch.float64)
    assert squared_differences(zero, w, zero, w[:, 0]).eq(0).all()


def test_bayes_is_there_where_the_law_has_a_posterior():
    assert "bayes" in [a.key for a in default_algorithms(TASK)]
    assert "bayes" not in [a.key for a in default_algorithms(ReLUNetwork(3, 4))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_points": [7]}, "n_points has 7, but it must lie between 1 and the prompts' 6 examples"),
        ({"n_points": [0]}, "n_points has 0"),
        ({"algorithms": [NearestNeighbours()]}, "nearest_neighbours_3, but only estimators of linear weights"),
        ({"algorithms": [Lasso(), Lasso()]}, "references has lasso 2 times"),
        ({"score": sampled(1)}, "there are 1 prompts in a set"),
        ({"fit": sampled(4).padded_after(3)}, "the prompts are padded, but all 6 examples of each are needed here"),
    ],
)
def test_bad_input_is_named(options, message):
    prompts = {name: sampled(4) for name in ("fit", "choose", "score")}
    with pytest.raises(InputError, match=message):
        algorithm_distances(model().float(), task=TASK, **(prompts | options))
