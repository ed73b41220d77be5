"""Alignment of networks that are the same in another basis, of ones that differ in a known way, and of random ones."""

import math

import pytest
import torch

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.functional.constructions import (
    ConstructedGD,
    ConstructedGDPlusPlus,
    ConstructedPreprocessThenGD,
    with_cancelling_pair,
    with_duplicate,
    with_flipped_sign,
    with_idle_head,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.instruments import alignment
from lightning_icl.instruments.alignment import state_alignment, weight_alignment
from lightning_icl.instruments.head_pattern import head_pattern

D = 4
P_GD = ConstructedPreprocessThenGD(2, 0.2)


def prompts(n_prompts=48, seed=0, n_points=24, n_queries=4):
    task = SparseLinearRegression(D, 2, noise_std=0.2, weight_law="sign")
    return task.sample(n_prompts, n_points, n_queries, torch.Generator().manual_seed(seed)).double()


FIT, SCORE = prompts(), prompts(seed=1)


def model_of(network):
    return alignment.written(network, D)


def written(construction, n_dims):
    return alignment.written(construction.network(n_dims), n_dims)


def invertible(size, generator):
    """Of condition number up to about a hundred."""
    left, right = (
        torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q for _ in range(2)
    )
    return left * torch.logspace(-1, 1, size, dtype=torch.float64) @ right


def in_another_basis(model, seed=0, extra=3):
    """The same function: a wider stream in another basis, with heads split, permuted and in bases of their own."""
    generator = torch.Generator().manual_seed(seed)
    options = model.options
    width = options["d_model"] + extra
    heads = [n + 1 if n else 0 for n in model.heads]
    changed = Transformer(
        **(options | {"d_model": width, "heads": heads, "head_dim": [size + 1 for size in model.head_dims]})
    ).double()
    basis = invertible(width, generator)
    into, back = basis[:, : options["d_model"]], torch.linalg.inv(basis)[: options["d_model"]]
    with torch.no_grad():
        changed.read_in.weight.copy_(into @ model.read_in.weight)
        changed.read_in.bias.copy_(into @ model.read_in.bias)
        changed.read_out.weight.copy_(model.read_out.weight @ back)
        changed.read_out.bias.copy_(model.read_out.bias)
        for new, old in zip(changed.layers, model.layers, strict=True):
            if new.attention is None:
                continue
            for part, stacked in zip(
                ("query", "key", "value", "output"), _heads(old.attention, generator), strict=True
            ):
                moved = into @ stacked if part == "output" else stacked @ back
                moved = moved.transpose(0, 1) if part == "output" else moved
                getattr(new.attention, part).weight.copy_(moved.flatten(1) if part == "output" else moved.flatten(0, 1))
    return changed


def _heads(attention, generator):
    """(heads + 1, head_dim + 1, d_model) each, and the output (heads + 1, d_model, head_dim + 1)."""
    size, n = attention.head_dim, attention.n_heads
    query, key, value = (
        torch.nn.functional.pad(part.weight.unflatten(0, (n, size)), (0, 0, 0, 1))
        for part in (attention.query, attention.key, attention.value)
    )
    output = torch.nn.functional.pad(attention.output.weight.unflatten(1, (n, size)).transpose(0, 1), (0, 1))
    part = torch.rand(1, generator=generator, dtype=torch.float64)
    output = torch.cat([part * output[:1], output[1:], (1 - part) * output[:1]])
    query, key, value = (torch.cat([rows, rows[:1]]) for rows in (query, key, value))
    query = query * ((size + 1) / size) ** 0.5
    scores, values = (torch.stack([invertible(size + 1, generator) for _ in range(n + 1)]) for _ in range(2))
    order = torch.randperm(n + 1, generator=generator)
    return [
        part[order]
        for part in (
            scores.mT @ query,
            torch.linalg.inv(scores) @ key,
            values @ value,
            output @ torch.linalg.inv(values),
        )
    ]


NETWORKS = {
    "gd": ConstructedGD(2, 0.2),
    "preconditioned": ConstructedGD(2, 0.2, (torch.eye(D) + 0.3 * torch.ones(D, D).triu(1)).tolist()),
    "preprocess_then_gd": P_GD,
    "some_coordinates": ConstructedPreprocessThenGD(2, 0.2, [1, 3]),
    "gd_plus_plus": ConstructedGDPlusPlus(2, 0.2, 0.1),
    "softmax": ConstructedPreprocessThenGD(2, 0.2, softmax_scale=0.05),
}


def cosines(model, other):
    return [found.cosine.value for found in weight_alignment(model, other, FIT, SCORE)]


def steps(model, other):
    return [found.step.value for found in weight_alignment(model, other, FIT, SCORE)]


def beyond_input(model, other):
    return [found.beyond_input.value for found in state_alignment(model, other, FIT, SCORE)[1:]]


# What is the same


@pytest.mark.parametrize("name", NETWORKS)
def test_a_copy_in_another_basis_is_the_same(name):
    network = written(NETWORKS[name], D)
    changed = in_another_basis(network)
    torch.testing.assert_close(changed.on_prompt(SCORE).prediction, network.on_prompt(SCORE).prediction)
    for model, other in ((changed, network), (network, changed)):
        for states in state_alignment(model, other, FIT, SCORE):
            assert states.r2.value == pytest.approx(1, abs=1e-6)
        for weights in weight_alignment(model, other, FIT, SCORE):
            assert (weights.cosine.value, weights.step.value) == (pytest.approx(1, abs=1e-6),) * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda network: with_idle_head(network, 2, torch.Generator().manual_seed(0)),
        lambda network: with_duplicate(network, 1, 3),
        lambda network: with_cancelling_pair(network, 3, 1, size=2.0),
    ],
    ids=["idle", "duplicate", "cancelling"],
)
def test_heads_that_add_nothing_in_all_are_not_seen(change):
    changed = model_of(change(P_GD.network(D)))
    assert cosines(changed, written(P_GD, D)) == pytest.approx([1, 1, 1], abs=1e-9)


def test_keys_exchanged_with_values_are_the_same():
    """y_i x_ij x_kj is a score x_ij x_kj times a value y_i as well as a score y_i x_kj times a value x_ij."""
    network = P_GD.network(D)
    exchanged = network.changed(1, [head._replace(key=head.value, value=head.key) for head in network.layers[0]])
    assert cosines(model_of(exchanged), model_of(network)) == pytest.approx([1, 1, 1], abs=1e-9)


VARIANTS = [
    {},
    {"norm": "post", "attention": "relu"},
    {"attention_bias": True, "activation": "gelu_tanh"},
    {"heads": [2, 0, 2], "mask": "full"},
    {"mask": "causal", "layout": "prefixes", "position": "learned", "max_points": 24},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_architecture_is_itself_in_float32_too(options):
    torch.manual_seed(0)
    model = Transformer(D, **({"d_model": 12, "heads": [3, 1, 2]} | options))
    assert cosines(model, model) == pytest.approx([1, 1, 1], abs=1e-6)
    assert beyond_input(model, model) == pytest.approx([1, 1, 1], abs=1e-6)
    assert model.read_out.weight.dtype == torch.float32


# What differs in a known way


@pytest.mark.parametrize(("layer", "expected"), [(2, [1, -1, 1]), (3, [1, 1, -1])])
def test_a_flipped_sign_is_found_in_its_layer_alone(layer, expected):
    other = written(P_GD, D)
    flipped = model_of(with_flipped_sign(P_GD.network(D), layer, 1))
    assert cosines(flipped, other) == pytest.approx(expected, abs=1e-6)
    assert steps(flipped, other) == pytest.approx(expected, abs=1e-6)
    after = beyond_input(flipped, other)
    assert max(after[layer - 1 :]) < 0.8 < min([1, *after[: layer - 1]])


def test_the_sign_of_a_rescaled_coordinate_is_a_basis():
    """The later layers read -R_hat x as R_hat x: as keys and queries alike."""
    network = P_GD.network(D)
    flipped = model_of(with_flipped_sign(network, 1, 2))
    torch.testing.assert_close(flipped.on_prompt(SCORE).prediction, model_of(network).on_prompt(SCORE).prediction)
    assert cosines(flipped, model_of(network)) == pytest.approx([1, 1, 1], abs=1e-9)


@pytest.mark.parametrize("size", [0.5, 1.5])
def test_a_larger_step_is_said_as_such(size):
    model, other = written(ConstructedGD(3, size * 0.2), D), written(ConstructedGD(3, 0.2), D)
    assert cosines(model, other) == pytest.approx([1, 1, 1], abs=1e-9)
    assert steps(model, other) == pytest.approx([size] * 3, rel=1e-9)


def test_some_coordinates_are_the_share_of_what_is_written_for_all():
    """What the model writes lies in the kept coordinates, so that cosine^2 and the states' R^2 are their share."""
    kept = [0, 2]
    model, other = written(ConstructedPreprocessThenGD(2, 0.2, [j + 1 for j in kept]), D), written(P_GD, D)
    r_hat = torch.einsum("bpd,bp->bd", SCORE.x, SCORE.y) / SCORE.x.shape[1]
    rescaled = torch.cat([SCORE.x, SCORE.x_query], dim=1) * r_hat[:, None]
    by_coordinate = rescaled.square().sum(dim=(0, 1))
    share = float(by_coordinate[kept].sum() / by_coordinate.sum())
    first = weight_alignment(model, other, FIT, SCORE)[0].cosine
    assert first.value == pytest.approx(share**0.5, abs=1e-9)
    states = state_alignment(model, other, FIT, SCORE)[1].beyond_input
    assert states.value == pytest.approx(share, abs=2 * states.standard_error)
    assert states.standard_error < 0.1


def test_noise_takes_alignment_away_bit_by_bit():
    other, found = written(P_GD, D), []
    for noise in (0.0, 0.01, 0.03, 0.1):
        values = []
        for seed in range(3):
            construction = ConstructedPreprocessThenGD(2, 0.2, weight_noise=noise, seed=seed)
            model = Transformer(D, **construction.options(D)).double()
            model.load_state_dict(construction.state(D))
            values.append(cosines(model, other) + beyond_input(model, other))
        found.append(torch.tensor(values, dtype=torch.float64).mean(dim=0))
    fall = torch.stack(found).diff(dim=0)
    assert found[0].min() > 1 - 1e-9
    assert fall.max() < 0


def test_gradient_descent_holds_nothing_of_the_rescaled_coordinates():
    """Its first step is a sum over them, so it tells of them what one direction of four does, and later no more."""
    found = state_alignment(written(ConstructedGD(3, 0.2), D), written(P_GD, D), FIT, SCORE)
    assert [states.beyond_input.value < 0.25 for states in found[1:]] == [True] * 3
    assert cosines(written(ConstructedGD(3, 0.2), D), written(P_GD, D))[0] < 0.5
    assert state_alignment(written(P_GD, D), written(ConstructedGD(3, 0.2), D), FIT, SCORE)[1].r2.value > 1 - 1e-9


# What has nothing in common


def test_a_model_that_only_carries_the_tokens_has_their_share_and_nothing_beyond():
    other = written(P_GD, D)
    idle = written(P_GD, D)
    for layer in idle.blocks:
        torch.nn.init.zeros_(layer.attention.output.weight)
    found = state_alignment(idle, other, FIT, SCORE)
    assert found[0].r2.value == pytest.approx(1)
    assert math.isnan(found[0].beyond_input.value)
    assert [states.r2.value > 0.4 for states in found] == [True] * 4
    assert beyond_input(idle, other) == pytest.approx([0, 0, 0], abs=1e-9)
    assert all(map(math.isnan, cosines(idle, other)))


def test_random_layers_are_as_often_opposite_as_alike():
    """The basis is that of the read-in, so a layer of opposite sign is as likely: the mean cosine is 0."""
    other = written(ConstructedGD(2, 0.2), D)
    found = torch.tensor([cosines(other.untrained(seed), other) for seed in range(24)])
    assert (found.mean(dim=0).abs() < 4 * found.std(dim=0) / 24**0.5).all()
    assert found.abs().mean() < 0.4


def test_random_states_hold_little_beyond_the_tokens():
    other = written(P_GD, D)
    found = torch.tensor([beyond_input(other.untrained(seed), other) for seed in range(6)])
    assert found.max() < 0.25


# Heads


def test_overlap_is_that_of_the_shares_by_hand(generator):
    worth, others = [3.0, 1.0, 0.0, 2.0, 2.0], [1.0, 1.0, 2.0, 4.0]
    values, other_values = (
        torch.tensor(means, dtype=torch.float64)[:, None]
        + 0.1 * torch.randn(len(means), 200, generator=generator, dtype=torch.float64)
        for means in (worth, others)
    )
    values, other_values = (
        of - of.mean(dim=1, keepdim=True) + torch.tensor(means, dtype=torch.float64)[:, None]
        for of, means in ((values, worth), (other_values, others))
    )
    in_order = head_pattern(values, other_values, [3, 2], [3, 1], in_order=True)
    # 3/4, 1/4, 0 and 1/4, 1/4, 1/2; then 1/2, 1/2 and 1, nothing.
    assert in_order.overlap.tolist() == pytest.approx([0.5, 0.5])
    by_size = head_pattern(values, other_values, [3, 2], [3, 1], in_order=False)
    assert by_size.overlap.tolist() == pytest.approx([0.75, 0.5])  # 3/4, 1/4, 0 and 1/2, 1/4, 1/4
    assert (in_order.interval[0] < in_order.overlap).all()
    assert (in_order.overlap < in_order.interval[1]).all()
    same = head_pattern(values, values, [3, 2], [3, 2], in_order=True)
    assert same.overlap.tolist() == [1, 1]
    assert same.interval.tolist() == [[1, 1], [1, 1]]
    assert same.model.effective_heads.value.tolist() == same.other.effective_heads.value.tolist()


def test_overlap_has_no_value_where_a_layer_has_no_shares(generator):
    values = torch.randn(3, 200, generator=generator, dtype=torch.float64)
    values += torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)[:, None]
    values[2] -= values[2].mean()
    found = head_pattern(values, values, [2, 0, 1], [2, 0, 1], in_order=True)
    assert found.overlap.isnan().tolist() == [False, True, True]
    assert found.interval.isnan().tolist() == [[False, True, True]] * 2


def test_the_overlap_s_interval_covers_what_more_prompts_say(generator):
    """40 samples of 100 prompts: at 95 %, 33 or fewer intervals that cover are 1 in 400."""
    means = torch.tensor([[2.0], [1.0], [1.0]], dtype=torch.float64)
    others = torch.tensor([[1.0], [1.0], [2.0]], dtype=torch.float64)
    covered = 0
    for _ in range(40):
        noise = torch.randn(3, 100, generator=generator, dtype=torch.float64)
        other_noise = torch.randn(3, 100, generator=generator, dtype=torch.float64)
        low, high = head_pattern(means + noise, others + other_noise, [3], [3], in_order=True).interval[:, 0]
        covered += bool(low <= 0.75 <= high)
    assert covered > 33


# What is refused, and what is left alone


def test_a_written_network_is_without_noise_and_draws_nothing():
    state = torch.get_rng_state()
    noisy = ConstructedPreprocessThenGD(2, 0.2, weight_noise=0.1)
    network = written(noisy, D)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in P_GD.state(D).items():
        assert torch.equal(network.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("model", "fit", "said"),
    [
        (written(ConstructedGD(2, 0.2), D), FIT, "the model has 2 layers and the other 3"),
        (written(P_GD, D + 1), FIT, "4 dimensions, the model 5 and the other 4"),
        (Transformer(D, heads=[1] * 3, mask="causal", layout="alternating"), FIT, "alternating"),
        (written(P_GD, D), FIT.padded_after(9), "padded"),
    ],
)
def test_what_cannot_be_compared_is_refused(model, fit, said):
    for compare in (state_alignment, weight_alignment):
        with pytest.raises(InputError, match=said):
            compare(model, written(P_GD, D), fit, SCORE)
