"""LinearProbe against scikit-learn on states captured by hooks."""

import numpy as np
import pytest
import torch
from conftest import small_data, small_module, small_trainer
from sklearn.linear_model import Ridge

from lightning_icl.callbacks import LinearProbe
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import shuffled_prompts
from lightning_icl.functional.prompts import pair_tokens
from lightning_icl.functional.tasks import Task


def hooked_states(module, prompt):
    """Query states after the read-in and each layer, by forward hooks rather than the named output."""
    captured = []
    modules = [module.transformer.read_in, *module.transformer.layers]
    hooks = [m.register_forward_hook(lambda _m, _i, output: captured.append(output)) for m in modules]
    with torch.no_grad():
        module.transformer(pair_tokens(prompt), n_queries=3)
    for hook in hooks:
        hook.remove()
    return [states[:, -3:].reshape(-1, states.shape[-1]).double().numpy() for states in captured]


def targets(prompt):
    x, y = prompt.x.double().numpy(), prompt.y.double().numpy()
    r_hat = np.array([xi.T @ yi / len(yi) for xi, yi in zip(x, y, strict=True)])
    return {
        "f_query": prompt.f_query.double().numpy().reshape(-1, 1),
        "w": np.repeat(prompt.w.double().numpy(), 3, axis=0),
        "preprocessed_query": (prompt.x_query.double().numpy() * r_hat[:, None]).reshape(-1, 4),
    }


def test_probes_equal_scikit_learn(tmp_path):
    module, data = small_module(), small_data()
    trainer = small_trainer(tmp_path, [LinearProbe(n_prompts=60, alpha=2.0, chunk_size=32)])
    trainer.validate(module, datamodule=data, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    fit, score = data.held_out("probe_fit", 60), data.held_out("probe_score", 60)
    index = torch.arange(60.0)[:, None, None]
    order = shuffled_prompts(index, torch.Generator().manual_seed(0)).flatten().long().numpy()
    for layer, (seen, fresh) in enumerate(zip(hooked_states(module, fit), hooked_states(module, score), strict=True)):
        for name, labels in targets(fit).items():
            truth = targets(score)[name]
            shuffled = labels.reshape(60, 3, -1)[order].reshape(180, -1)
            errors = {}
            for key, used in ((name, labels), (f"shuffled/{name}", shuffled)):
                predicted = Ridge(alpha=2.0).fit(seen, used).predict(fresh).reshape(truth.shape)
                errors[key] = ((predicted - truth) ** 2).sum(axis=1).mean()
                assert logged[f"probe/{key}/layer{layer}"] == pytest.approx(errors[key], rel=1e-5)
            r2 = 1 - errors[name] / truth.var(axis=0).sum()
            assert logged[f"probe/r2/{name}/layer{layer}"] == pytest.approx(r2, abs=1e-5)


def test_shuffled_labels_are_worth_no_more_than_the_mean(tmp_path):
    data = small_data()
    probe = LinearProbe(n_prompts=512)
    small_trainer(tmp_path, [probe]).validate(small_module(), datamodule=data, verbose=False)
    best_constant = float(data.held_out("probe_score", 512).f_query.double().var())
    for risk, error in probe.risks["shuffled/f_query"]:
        assert risk > best_constant - 4 * error


class Quadratic(Task):
    """Targets without weights."""

    def sample_targets(self, x, generator):
        a = torch.randn(x.shape[0], 1, self.n_dims, generator=generator)
        return (a * x**2).sum(-1), None


def test_a_task_without_weights_has_no_target_w(tmp_path):
    data = small_data(Quadratic(4, 0.1))
    trainer = small_trainer(tmp_path, [LinearProbe(n_prompts=32)])
    trainer.validate(small_module(), datamodule=data, verbose=False)
    assert "probe/f_query/layer2" in trainer.callback_metrics
    assert not [name for name in trainer.callback_metrics if "/w/" in name]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_alpha_is_named(alpha):
    with pytest.raises(InputError, match="alpha is"):
        LinearProbe(alpha=alpha)
