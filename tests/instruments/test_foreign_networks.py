"""Instruments on networks that are no Transformer: a wrapped one, one that is an algorithm, and a recurrent one."""

import pytest
import torch
from networks import LSTM, ShownLSTM
from torch import nn

from lightning_icl import SparseLinearRegression, Transformer
from lightning_icl.commands.p_probe import arm_labels, report
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import GD, LeastSquares, Ridge
from lightning_icl.instruments.algorithms import PROBE, READ_OUT, algorithm_distances, closest, own_readers, readings
from lightning_icl.instruments.p_probing import UNTRAINED, Training, p_probing
from lightning_icl.instruments.probing import probe_layers
from lightning_icl.network import InContextNetwork, TransformerOutput

TASK = SparseLinearRegression(3, 2, noise_std=0.3)
ALGORITHMS = [GD(step_size="shared", max_steps=5), Ridge(0.7), LeastSquares()]


def sampled(n_prompts, seed=0, n_points=6):
    return TASK.sample(n_prompts, n_points, 2, torch.Generator().manual_seed(seed))


def sets(n_prompts, n_points=6):
    return [sampled(n_prompts, seed, n_points) for seed in (1, 2, 3)]


def transformer(**options):
    torch.manual_seed(0)
    return Transformer(3, 8, [2, 1], **options)


class Wrapped(InContextNetwork):
    """A Transformer of which nothing is known but what a user's network may show."""

    def __init__(self, inner: InContextNetwork, context: bool = True):
        super().__init__()
        self.inner, self.context, self.n_dims, self.heads = inner, context, 3, []

    def on_prompt(self, prompt, head_mask=None):
        output = self.inner.on_prompt(prompt)
        return output if self.context else output._replace(context_states=())

    def read(self, states):
        return self.inner.read(states)


class Descent(InContextNetwork):
    """GD on (1/2n) ||y - X w||^2 from 0, a step a layer; the state is (x, <w_t, x>)."""

    def __init__(self, step_size: float = 0.21, layers: int = 3):
        super().__init__()
        self.n_dims, self.heads, self.layers = 3, [], layers
        self.step_size = nn.Parameter(torch.tensor(step_size))

    def on_prompt(self, prompt, head_mask=None):
        w = torch.zeros_like(prompt.x[:, 0])
        states = [torch.cat([prompt.x_query, torch.zeros_like(prompt.x_query[..., :1])], dim=-1)]
        for _ in range(self.layers):
            residual = prompt.y - torch.einsum("bnd,bd->bn", prompt.x, w)
            w = w + self.step_size * torch.einsum("bnd,bn->bd", prompt.x, residual) / prompt.x.shape[1]
            predicted = torch.einsum("bqd,bd->bq", prompt.x_query, w)[..., None]
            states.append(torch.cat([prompt.x_query, predicted], dim=-1))
        return TransformerOutput(self.read(states[-1]), tuple(states))

    def read(self, states):
        return states[..., -1]


class Unread(Descent):
    """Does not say how its states are read."""

    read = None

    def on_prompt(self, prompt, head_mask=None):
        self.read = lambda states: states[..., -1]
        output = super().on_prompt(prompt)
        del self.read
        return output


# Which algorithm


def test_a_wrapped_transformer_has_the_distances_of_its_own():
    inner = transformer()
    native, wrapped = (algorithm_distances(n, *sets(8), TASK, ALGORITHMS, [6]) for n in (inner, Wrapped(inner)))
    assert [str(d) for d in wrapped] == [str(d) for d in native]
    assert {(d.reading, d.layer) for d in wrapped} == {(reading, n) for reading in (READ_OUT, PROBE) for n in (1, 2)}


def test_a_network_that_is_an_algorithm_is_recognised_in_every_layer_and_an_untrained_one_is_not():
    found = algorithm_distances(Descent(), *sets(24), TASK, ALGORITHMS, [6])
    for layer in (1, 2, 3):
        named = closest(found, READ_OUT, layer, 6)[0]
        assert named.algorithm == ALGORITHMS[0].key
        assert named.setting["steps"] == layer
        assert named.setting["step"] == pytest.approx(0.21, rel=1e-4)
        assert (named.relative_spd, named.relative_ilwd) == (pytest.approx(0, abs=1e-9), pytest.approx(0, abs=1e-9))
    torch.manual_seed(0)
    found = algorithm_distances(LSTM(3), *sets(24), TASK, ALGORITHMS, [6])
    assert {(d.reading, d.layer) for d in found} == {(READ_OUT, 1)}
    assert min(d.relative_ilwd for d in found) > 0.1


def test_without_read_the_prediction_alone_is_compared_and_states_are_probed():
    found = algorithm_distances(Unread(), *sets(24), TASK, ALGORITHMS, [6])
    assert {(d.reading, d.layer) for d in found} == {(READ_OUT, 3), *((PROBE, layer) for layer in (1, 2, 3))}
    assert closest(found, READ_OUT, 3, 6)[0].setting["steps"] == 3


def test_implied_weights_of_a_recurrent_network_are_finite_differences():
    torch.manual_seed(0)
    network, prompt = LSTM(3).double().eval(), sampled(3).double()
    found = readings(network, prompt, own_readers(network, network.on_prompt(prompt)))
    torch.testing.assert_close(found.prediction[0], network.on_prompt(prompt).prediction.detach())
    for i in range(3):
        change = torch.zeros(3, dtype=torch.float64)
        change[i] = 1e-5
        ahead, behind = (
            network.on_prompt(prompt._replace(x_query=prompt.x_query + sign * change)).prediction for sign in (1, -1)
        )
        slope = ((ahead - behind) / 2e-5).detach()
        assert torch.allclose(found.weights[0, ..., i], slope, rtol=1e-5, atol=1e-9)


class Without(LSTM):
    """Has no gradient."""

    def on_prompt(self, prompt, head_mask=None):
        with torch.no_grad():
            return super().on_prompt(prompt)


def test_a_prediction_without_gradient_gets_one_sentence():
    with pytest.raises(InputError, match=r"none runs through the prediction of Without; is it made under"):
        algorithm_distances(Without(3), *sets(4), TASK, ALGORITHMS, [6])


def test_recurrent_layers_are_differentiated_without_cudnn(monkeypatch):
    """Which has no backward pass in evaluation mode; what the user has set is as it was after it."""
    seen, real = [], LSTM.on_prompt
    monkeypatch.setattr(LSTM, "on_prompt", lambda *args: seen.append(torch.backends.cudnn.enabled) or real(*args))
    network, prompt = LSTM(3), sampled(2)
    readings(network, prompt, own_readers(network, network.on_prompt(prompt)))
    assert seen == [True, False]
    assert torch.backends.cudnn.enabled


# Probes


def test_a_wrapped_transformer_has_the_probes_of_its_own():
    inner = transformer(layout="alternating", mask="causal")
    native, wrapped = (probe_layers(n, TASK, *sets(16), n.untrained(), alpha=1.0) for n in (inner, Wrapped(inner)))
    assert wrapped.rows == native.rows
    assert {(row.token, row.layer) for row in wrapped.rows} == {(t, n) for t in ("query", "context") for n in range(3)}


def test_without_context_states_the_query_alone_is_probed():
    inner = transformer()
    native, wrapped = (probe_layers(n, TASK, *sets(16), alpha=1.0) for n in (inner, Wrapped(inner, context=False)))
    assert wrapped.rows == tuple(row for row in native.rows if row.token == "query")


def test_a_state_that_holds_the_prediction_gives_it_away():
    """After each layer of GD its state is (x, <w_t, x>), which comes closer to least squares with every step."""
    table = probe_layers(Descent(step_size=0.05), TASK, *sets(64, n_points=12), alpha=1e-6)
    least_squares = [row.trained.r2.value for row in table.by_layer("least_squares")]
    assert least_squares == sorted(least_squares)
    assert least_squares[0] < 0.1 < least_squares[3]


def test_a_network_without_states_cannot_be_probed():
    with pytest.raises(InputError, match="probes read states, but this LSTM shows none"):
        probe_layers(LSTM(3), TASK, *sets(4))


class Given(LSTM):
    """Is given a module of which nothing is known."""

    def __init__(self, part: nn.Module):
        super().__init__(3)
        self.part = part


def test_untrained_networks_are_made_of_what_is_known():
    torch.manual_seed(3)
    network = ShownLSTM(3, width=5, layers=2)
    fresh, again, other = network.untrained(), network.untrained(), network.untrained(1)
    assert fresh.state_dict().keys() == network.state_dict().keys()
    for name, values in fresh.state_dict().items():
        assert torch.equal(values, again.state_dict()[name])
        assert not torch.equal(values, other.state_dict()[name])
        assert not torch.equal(values, network.state_dict()[name])
    inner = transformer()
    assert torch.equal(Wrapped(inner).untrained(2).inner.read_in.weight, inner.untrained(2).read_in.weight)
    assert Given(nn.Linear(1, 1)).untrained() is None
    assert Wrapped(Given(nn.Linear(1, 1))).untrained() is None


# P-probing

SHORT = Training(n_steps=2, batch_size=2, n_queries=2, n_seeds=2, n_choose=8, n_score=4)


def test_a_wrapped_transformer_has_the_errors_of_its_own():
    inner = transformer()
    native, wrapped = (p_probing({"a": n}, TASK, 5, depths=1, training=SHORT) for n in (inner, Wrapped(inner)))
    for optimiser, errors in native.errors.items():
        for arm, found in errors.items():
            assert torch.allclose(wrapped.errors[optimiser][arm], found, rtol=1e-4), arm
    assert (native.heads, wrapped.heads) == ({"layer_1/a": 2}, {"layer_1/a": 0})


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (lambda: LSTM(3), r"LSTM has context_states of \[\] tokens for 5 examples"),
        (lambda: Wrapped(transformer(layout="alternating", mask="causal")), r"context_states of \[10, 10\] tokens"),
    ],
)
def test_p_probing_needs_a_token_for_each_example(network, sentence):
    with pytest.raises(InputError, match=sentence):
        p_probing({"a": network()}, TASK, 5, depths=1, training=SHORT)


class Fresh(ShownLSTM):
    def untrained(self, seed=0):
        return None


def test_p_probing_without_an_untrained_network_has_no_such_arm():
    torch.manual_seed(0)
    found = p_probing({"a": Fresh(3)}, TASK, 5, depths=1, training=SHORT)
    assert all(UNTRAINED not in errors for errors in found.errors.values())
    assert UNTRAINED not in {one.rival for one in found.comparisons()}
    labels = arm_labels(found)
    assert labels["heads_0"] == "layer 1"
    assert "Is layer 1 better? Risk minus the other's, paired:" in report(found, labels, 5)
