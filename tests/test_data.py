"""The stream: what a batch depends on, and what it does not."""

import itertools
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import run_command, small_data, small_module, small_trainer
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, ModelCheckpoint
from recorder import Recorder

from lightning_icl import LinearRegression, PromptDataModule, SparseLinearRegression, callbacks
from lightning_icl.functional.curriculum import Growth, Sizes
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import TaskPool
from lightning_icl.record.folder import set_run_folder
from lightning_icl.record.loading import read_record
from lightning_icl.streams import MAX_BLOCKS, MAX_STEPS, STREAMS, StreamToken, block_seed, stream_generator


def test_no_two_blocks_of_any_stream_share_a_seed():
    steps = [*range(500), *range(MAX_STEPS - 500, MAX_STEPS)]
    seeds = {block_seed(7, stream, step, block) for stream in STREAMS for step in steps for block in range(MAX_BLOCKS)}
    assert len(seeds) == len(STREAMS) * len(steps) * MAX_BLOCKS
    assert 0 <= min(seeds) <= max(seeds) < 2**32  # all that torch's CPU generator looks at


def test_generators_look_only_at_the_low_32_bits_of_a_seed():
    """The reason for block_seed; should torch change, 64-bit hashes would do."""
    low, high = (torch.rand(3, generator=torch.Generator().manual_seed(s)) for s in (5, 5 + 2**32))
    torch.testing.assert_close(low, high, rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [8, 96, 600, 1000, 4096])
@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_of_a_batch_make_up_the_whole(batch_size, parts):
    data = small_data(batch_size=batch_size, n_points=(2, 5))
    whole = data.sample("train", 11)
    shares = [data.sample("train", 11, part, parts) for part in range(parts)]
    assert whole.x.shape[0] == batch_size
    for name in whole._fields:
        together = torch.cat([getattr(share, name) for share in shares])
        torch.testing.assert_close(together, getattr(whole, name), rtol=0, atol=0)


def test_batches_differ_by_step_stream_and_seed_and_repeat_by_all_three():
    first = small_data().sample("train", 0).x
    torch.testing.assert_close(small_data().sample("train", 0).x, first, rtol=0, atol=0)
    others = [
        small_data().sample("train", 1),
        small_data().sample("validate", 0),
        small_data(seed=4).sample("train", 0),
    ]
    others += [small_data().held_out(name, 8) for name in ("a", "b")]
    features = [first, *(other.x for other in others)]
    for i, one in enumerate(features):
        assert not any(torch.isin(one, other).any() for other in features[:i])


def test_number_of_examples_is_uniform_over_steps_and_even_over_evaluation():
    data = small_data(n_points=(2, 5), eval_prompts=32)
    drawn = torch.stack([data.sample("train", step).point_mask[0].sum() for step in range(400)])
    counts = torch.bincount(drawn, minlength=6)[2:].double()
    assert counts.sum() == 400
    assert ((counts - 100).abs() < 4 * (400 * 0.25 * 0.75) ** 0.5).all()  # 4 binomial standard deviations
    assert [data.sample("validate", step).x.shape[1] for step in range(4)] == [2, 3, 4, 5]
    assert data.held_out("a", 8).x.shape[1] == 5


def test_sampling_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    small_data(n_points=(2, 5)).sample("train", 0)
    assert torch.equal(before, torch.get_rng_state())


def test_generators_are_on_the_device_that_samples():
    assert stream_generator(0, "train", 0, 0, "cpu").device == torch.device("cpu")
    token = small_data().transfer_batch_to_device(StreamToken("test", 1), torch.device("cpu"), 0)
    torch.testing.assert_close(token.x, small_data().sample("test", 1).x, rtol=0, atol=0)


def recorded(folder, data, steps=6, ckpt_path=None, callbacks=(), **trainer_options):
    recorder = Recorder()
    trainer = small_trainer(folder, [recorder, *callbacks], max_steps=steps, **trainer_options)
    module = small_module()
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    by_step = {}
    for (step, _), x in sorted(recorder.batches.items()):
        by_step[step] = torch.cat([by_step[step], x]) if step in by_step else x
    return by_step, module


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_the_global_batch_ignores_accumulation(tmp_path, accumulate):
    data = small_data(n_points=(2, 5))
    batches, _ = recorded(tmp_path, data, accumulate_grad_batches=accumulate, val_check_interval=0.5)
    assert list(batches) == list(range(6))
    for step, x in batches.items():
        torch.testing.assert_close(x, data.sample("train", step).x, rtol=0, atol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "muon_per_head"])
def test_a_resume_in_mid_epoch_goes_on_bit_for_bit(tmp_path, accumulate, optimizer):
    data = small_data()
    options = {"accumulate_grad_batches": accumulate, "enable_checkpointing": True, "val_check_interval": 0.5}

    def run(ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
        recorder = Recorder()
        trainer = small_trainer(tmp_path, [recorder, keep], max_steps=10, **options)
        module = small_module(optimizer=optimizer)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return recorder.batches, module.state_dict()

    batches, weights = run()
    resumed_batches, resumed_weights = run(tmp_path / "step=4.ckpt")
    assert min(resumed_batches)[0] == 4
    for place, x in resumed_batches.items():
        torch.testing.assert_close(x, batches[place], rtol=0, atol=0)
    for name, value in weights.items():
        torch.testing.assert_close(resumed_weights[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_a_resume_may_change_the_accumulation(tmp_path, before, after):
    """As when fewer GPUs are left: the stream goes on with the next step's batch."""
    data = small_data()
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    options = {"enable_checkpointing": True}
    recorded(tmp_path, data, 6, callbacks=[keep], accumulate_grad_batches=before, **options)
    batches, _ = recorded(tmp_path, data, 8, tmp_path / "step=4.ckpt", accumulate_grad_batches=after, **options)
    assert list(batches) == [4, 5, 6, 7]
    for step, x in batches.items():
        torch.testing.assert_close(x, data.sample("train", step).x, rtol=0, atol=0)


def test_a_resume_between_two_optimizer_steps_is_refused(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    recorded(tmp_path, small_data(), 4, callbacks=[keep], enable_checkpointing=True)
    with pytest.raises(InputError, match=r"saved after 3 batches, which trainer\.accumulate_grad_batches, 2"):
        recorded(tmp_path, small_data(), 8, tmp_path / "step=3.ckpt", accumulate_grad_batches=2)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 4}, "data.seed = 3, but the config asks for 4"),
        ({"batch_size": 16}, "data.batch_size = 8, but the config asks for 16"),
        ({"n_points": (2, 5)}, r"data.n_points = \[5, 5\], but the config asks for \[2, 5\]"),
    ],
)
def test_a_resume_on_another_stream_is_refused(tmp_path, changed, words):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    recorded(tmp_path, small_data(), 4, callbacks=[keep], enable_checkpointing=True)
    with pytest.raises(InputError, match=words):
        recorded(tmp_path, small_data(**changed), 8, tmp_path / "step=4.ckpt")


def test_the_streams_of_two_seeds_do_not_share_blocks_wholesale():
    """With the seed mixed in only once, the streams of seeds 10 and 446 were translates of each other."""
    one, other = ({block_seed(seed, "train", step, 0) for step in range(50_000)} for seed in (10, 446))
    # Two random sets of 50,000 among 2^32 share 0.6 on average.
    assert len(one & other) < 10


def test_a_resume_from_a_validation_checkpoint_goes_on_bit_for_bit(tmp_path):
    def run(ckpt_path=None):
        keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1)
        trainer = small_trainer(tmp_path, [keep], max_steps=10, val_check_interval=0.3, enable_checkpointing=True)
        trainer.fit(module := small_module(), datamodule=small_data(), ckpt_path=ckpt_path)
        return module.state_dict()

    weights, resumed = run(), run(tmp_path / "step=6.ckpt")
    for name, value in weights.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_validation_replays_its_prompts(tmp_path):
    seen = []

    class Watch(Recorder):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            seen.append(batch.x)

    trainer = small_trainer(tmp_path, [Watch()], val_check_interval=0.5, num_sanity_val_steps=0)
    trainer.fit(small_module(), datamodule=small_data())
    assert len(seen) == 4
    torch.testing.assert_close(seen[0], seen[2], rtol=0, atol=0)
    torch.testing.assert_close(seen[1], seen[3], rtol=0, atol=0)
    assert not torch.isin(seen[0], seen[1]).any()


SHIFTS = {
    "in_distribution": {},
    "noisier": {"shift": {"noise_std": 1.5}},
    "denser": {"shift": {"sparsity": 4}},
    "longer": {"n_points": (5, 9)},
    "other": {"task": LinearRegression(4), "n_points": 2},
}


def test_without_names_there_is_one_stream_of_the_fresh_law():
    pool = TaskPool(SparseLinearRegression(4, 2, noise_std=0.3), n_tasks=3)
    (stream,) = PromptDataModule(pool, 5).streams
    assert stream == (None, pool.task, 5, 5)
    assert small_data(n_points=(2, 5)).streams[0][2:] == (2, 5)


def test_a_pool_of_tasks_is_for_training_and_validation_may_name_it_too():
    pool = TaskPool(SparseLinearRegression(4, 2, noise_std=0.3), n_tasks=3)
    data = PromptDataModule(
        pool, 5, validation={"fresh": {}, "pool": {"task": pool}, "clean": {"shift": {"noise_std": 0.0}}}
    )

    def from_the_pool(prompt):
        return (prompt.w[:, None] == pool.pool).all(dim=-1).any(dim=-1)

    assert from_the_pool(data.sample("train", 0)).all()
    assert [bool(from_the_pool(data.sample("validate", 0, law=law)).any()) for law in range(3)] == [False, True, False]
    clean = data.sample("validate", 0, law=2)
    torch.testing.assert_close(clean.y, clean.f, rtol=0, atol=0)


def test_named_streams_are_the_shifted_laws_on_paired_prompts():
    data = small_data(validation=SHIFTS, n_queries=4)
    assert [stream.name for stream in data.streams] == list(SHIFTS)
    plain, noisier, denser, longer, other = (data.sample("validate", 0, law=law) for law in range(5))
    for name in ("x", "x_query", "f", "f_query", "w"):
        torch.testing.assert_close(getattr(noisier, name), getattr(plain, name), rtol=0, atol=0)
    torch.testing.assert_close(noisier.y - noisier.f, 5 * (plain.y - plain.f))  # 1.5 / 0.3
    torch.testing.assert_close(denser.x, plain.x, rtol=0, atol=0)
    assert (denser.w != 0).all()
    assert ((plain.w != 0).sum(dim=1) == 2).all()
    assert longer.x.shape[1] == 5
    assert data.sample("validate", 1, law=3).x.shape[1] == 9
    assert other.x.shape[1] == 2
    torch.testing.assert_close(other.y, other.f, rtol=0, atol=0)
    torch.testing.assert_close(small_data(n_queries=4).sample("validate", 0).x, plain.x, rtol=0, atol=0)


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_parts_of_a_shifted_batch_make_up_the_whole(parts):
    data = small_data(validation=SHIFTS)
    for law in range(5):
        whole = data.sample("test", 1, law=law)
        shares = [data.sample("test", 1, part, parts, law=law).y for part in range(parts)]
        torch.testing.assert_close(torch.cat(shares), whole.y, rtol=0, atol=0)


def test_held_out_prompts_are_of_the_first_stream_unless_told():
    data = small_data(validation=SHIFTS)
    assert data.held_out("a", 8).x.shape == (8, 5, 4)
    longer, other = data.streams[3:]
    assert data.held_out("a", 8, stream=longer).x.shape == (8, 9, 4)
    assert data.held_out("a", 8, n_points=3, stream=longer).x.shape == (8, 3, 4)
    prompt = data.held_out("a", 8, stream=other)
    torch.testing.assert_close(prompt.y, prompt.f, rtol=0, atol=0)
    swapped = small_data(validation={"other": SHIFTS["other"], "in_distribution": {}}).held_out("a", 8)
    torch.testing.assert_close(swapped.y, prompt.y, rtol=0, atol=0)


def risk(module, data, stream, law):
    """The mean over every batch of a stream, by hand."""
    prompts = [data.sample(stream, step, law=law) for step in range(2)]
    with torch.no_grad():
        return torch.cat([(module(p) - p.f_query).double().square() for p in prompts]).mean().item()


@pytest.mark.parametrize("names", [["noisier"], ["noisier", "longer"], list(SHIFTS)])
@pytest.mark.parametrize(("command", "stage", "stream"), [("validate", "val", "validate"), ("test", "test", "test")])
def test_every_named_stream_logs_its_risk_and_the_first_the_unnamed_key_too(tmp_path, command, stage, stream, names):
    data, module = small_data(validation={name: SHIFTS[name] for name in names}), small_module()
    trainer = small_trainer(tmp_path)
    getattr(trainer, command)(module, datamodule=data, verbose=False)
    expected = {
        f"{stage}/{name}/excess_risk/transformer": risk(module, data, stream, i) for i, name in enumerate(names)
    }
    expected[f"{stage}/excess_risk/transformer"] = expected[f"{stage}/{names[0]}/excess_risk/transformer"]
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_without_names_only_the_plain_key_is_logged(tmp_path):
    trainer, data, module = small_trainer(tmp_path), small_data(), small_module()
    trainer.validate(module, datamodule=data, verbose=False)
    expected = {"val/excess_risk/transformer": risk(module, data, "validate", 0)}
    assert {k: float(v) for k, v in trainer.callback_metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_checkpoints_can_be_kept_by_the_first_stream_s_risk_or_another_s(tmp_path):
    data = small_data(validation={"in_distribution": {}, "denser": SHIFTS["denser"]})
    for key in ("val/excess_risk/transformer", "val/denser/excess_risk/transformer"):
        keep = ModelCheckpoint(tmp_path, monitor=key)
        trainer = small_trainer(tmp_path, [keep], val_check_interval=0.5, enable_checkpointing=True)
        trainer.fit(small_module(), datamodule=data)
        assert keep.best_model_score is not None


def test_a_shifted_stream_without_a_finite_risk_does_not_stop_the_run(tmp_path):
    shift = {"absurd": {"shift": {"noise_std": 1e6}}}
    for order, stops in (({"plain": {}} | shift, False), (shift | {"plain": {}}, True)):
        trainer = small_trainer(tmp_path, num_sanity_val_steps=0)
        module = small_module(attention="linear", norm="none")
        if stops:
            with pytest.raises(InputError, match="training has diverged"):
                trainer.fit(module, datamodule=small_data(validation=order))
        else:
            trainer.fit(module, datamodule=small_data(validation=order))
            assert not trainer.callback_metrics["val/absurd/excess_risk/transformer"].isfinite()
            assert trainer.callback_metrics["val/excess_risk/transformer"].isfinite()


def test_predictions_are_of_the_first_stream(tmp_path):
    data, module = small_data(validation={"noisier": SHIFTS["noisier"], "longer": SHIFTS["longer"]}), small_module()
    predictions = small_trainer(tmp_path).predict(module, datamodule=data)
    assert len(predictions) == 2
    for step, prediction in enumerate(predictions):
        torch.testing.assert_close(prediction, module(data.sample("predict", step)), rtol=0, atol=1e-6)


def test_a_resume_may_validate_on_other_streams(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    recorded(tmp_path, small_data(), 4, callbacks=[keep], enable_checkpointing=True)
    batches, _ = recorded(tmp_path, small_data(validation=SHIFTS), 6, tmp_path / "step=4.ckpt")
    assert list(batches) == [4, 5]


def test_a_callback_of_the_user_s_may_name_its_arguments_as_ours_do(tmp_path):
    class Prompts(Callback):
        def __init__(self, n_prompts=None, more_prompts="all"):
            self.n_prompts, self.more_prompts = n_prompts, more_prompts

    small_trainer(tmp_path, [Prompts()], max_steps=1).fit(small_module(), datamodule=small_data())
    with pytest.raises(InputError, match="n_prompts is 10,000,000,000: so many prompts"):
        small_trainer(tmp_path, [Prompts(10**10)]).fit(small_module(), datamodule=small_data())


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ({"shift": {"noise_sd": 1}}, "validation.odd: SparseLinearRegression has no option 'noise_sd'"),
        ({"shift": {"sparsity": 5}}, "validation.odd: sparsity is 5, but it must lie between 1 and n_dims"),
        ({"shift": {"n_dims": 3}}, "validation.odd: its task has n_dims 3, but the model is as wide"),
        ({"shift": {"noise_std": "high"}}, "validation.odd: shift is {'noise_std': 'high'}, but"),
        ({"task": LinearRegression(3)}, "validation.odd: its task has n_dims 3, but the model is as wide"),
        ({"task": LinearRegression(4), "shift": {"noise_std": 1}}, "validation.odd has both a shift and a task"),
        ({"n_points": (4, 2)}, "validation.odd: n_points is [4, 2]"),
    ],
)
def test_bad_streams_are_named(stream, words):
    with pytest.raises(InputError) as error:
        small_data(validation={"odd": stream})
    assert words in str(error.value)


CONFIG = """
seed_everything: 3
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 4, sparsity: 2}}
  n_points: [2, 5]
  batch_size: 16
  eval_prompts: 16
  eval_batch_size: 8
model: {d_model: 16, heads: [4, 2]}
trainer: {max_steps: 5, accelerator: cpu, enable_progress_bar: false}
"""


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_share_the_batch_of_one_and_write_into_one_folder(tmp_path, accumulate):
    (tmp_path / "config.yaml").write_text(CONFIG)
    callback = '[{"class_path": "recorder.Recorder", "init_args": {"folder": "batches"}}]'
    ddp = ["--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.accumulate_grad_batches", accumulate]
    ddp += ["--trainer.logger", "false"]  # which would have told the second rank the folder
    run_command("fit", "--config", "config.yaml", "--trainer.callbacks", callback, *ddp, cwd=tmp_path)
    data = small_data(n_points=(2, 5), batch_size=16, n_queries=16)
    for step in range(5):
        parts = [torch.load(tmp_path / "batches" / f"{step}-{part}.pt") for part in range(2 * accumulate)]
        torch.testing.assert_close(torch.cat(parts), data.sample("train", step).x, rtol=0, atol=0)
    (run,) = (tmp_path / "lightning_logs").iterdir()
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "checkpoints", "record.jsonl"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_points": 0}, "n_points is [0, 0]"),
        ({"n_points": (5, 2)}, "n_points is [5, 2]"),
        ({"n_queries": 0}, "n_queries is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"eval_batch_size": 5}, "eval_batch_size is 5, but it must divide eval_prompts, 16"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(InputError) as error:
        small_data(**options)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        ({"world_size": 3}, "eval_batch_size is 8, but it must divide into 3 equal parts"),
        ({"accumulate_grad_batches": 3}, "processes x trainer.accumulate_grad_batches = 1 x 3 equal parts; try 9"),
        ({"max_steps": -1}, "trainer.max_steps is -1"),
        ({"val_check_interval": 50}, "val_check_interval is 50 batches, but the run has only 6"),
        ({"max_steps": MAX_STEPS + 1}, "but a stream has"),
        (
            {"accumulate_grad_batches": 4, "val_check_interval": 0.25},
            "val_check_interval comes to 6 batches, but",
        ),
        (
            {"accumulate_grad_batches": 2, "limit_train_batches": 3},
            "limit_train_batches comes to 3 batches, but",
        ),
        ({"precision": "bf16-true"}, "trainer.precision is bf16-true, but prompts are sampled in float32"),
        ({"strategy": SimpleNamespace(root_device=torch.device("mps"))}, "trainer.accelerator is mps"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_before_training(trainer, words):
    data = small_data()
    fine = {"world_size": 1, "accumulate_grad_batches": 1, "max_steps": 6, "callbacks": [], "val_check_interval": 1.0}
    fine |= {"limit_train_batches": 1.0, "precision": "32-true", "check_val_every_n_epoch": 1}
    fine |= {"strategy": SimpleNamespace(root_device=torch.device("cpu")), "lightning_module": small_module()}
    data.trainer = Mock(spec=Trainer, **(fine | trainer))
    with pytest.raises(InputError) as error:
        data.setup("fit")
    assert words in str(error.value)


def test_a_run_may_validate_by_the_clock(tmp_path):
    trainer = small_trainer(tmp_path, max_steps=2, val_check_interval="00:00:01:00")
    trainer.fit(small_module(), datamodule=small_data())
    assert trainer.global_step == 2


def support_by_support(prompt, noise_stds, n_points, n_dims):
    """E[f | examples] at the queries by the evidence of every support and noise level, one normal density each."""
    found = []
    for x, y, x_query in zip(prompt.x.double(), prompt.y.double(), prompt.x_query.double(), strict=True):
        x, y, x_query = x[:n_points, :n_dims], y[:n_points], x_query[:, :n_dims]
        evidence, means = [], []
        for noise_std in noise_stds:
            for support in itertools.combinations(range(n_dims), 2):
                of_support = x[:, list(support)]
                covariance = of_support @ of_support.T + noise_std**2 * torch.eye(n_points, dtype=torch.float64)
                law = torch.distributions.MultivariateNormal(torch.zeros(n_points, dtype=torch.float64), covariance)
                evidence.append(law.log_prob(y))
                means.append(x_query[:, list(support)] @ of_support.T @ torch.linalg.solve(covariance, y))
        found.append(torch.stack(evidence).softmax(0) @ torch.stack(means))
    return torch.stack(found)


@pytest.mark.parametrize("noise_std", [[0.3], [0.2, 0.7]])
@pytest.mark.parametrize("n_points", [5, (2, 5)])
def test_the_posterior_mean_of_training_prompts_is_bayes_rule(noise_std, n_points):
    """Also where prompts are padded: padding that is taken for examples would tell of little noise."""
    data = PromptDataModule(
        SparseLinearRegression(4, 2, noise_std=noise_std), n_points=n_points, n_queries=3, batch_size=6
    )
    prompt = data.sample("train", 1)
    n = 5 if prompt.point_mask is None else int(prompt.point_mask[0].sum())
    assert n_points == 5 or n < 5
    expected = support_by_support(prompt, noise_std, n, 4)
    torch.testing.assert_close(data.posterior_mean(prompt).double(), expected, rtol=1e-5, atol=1e-5)


def test_under_a_curriculum_the_posterior_mean_is_that_of_the_steps_dimensions():
    data = PromptDataModule(SparseLinearRegression(5, 2, noise_std=0.3), n_points=6, n_queries=3, batch_size=4)
    data.curriculum = Sizes(dims=Growth(3, 1, 100, 5))
    prompt = data.sample("train", 0)
    expected = support_by_support(prompt, [0.3], 6, 3)
    torch.testing.assert_close(data.posterior_mean(prompt).double(), expected, rtol=1e-5, atol=1e-5)


def test_lightnings_batch_size_finder_leaves_the_run_as_it_would_be_with_what_it_found(tmp_path):
    trainer = small_trainer(
        tmp_path, [BatchSizeFinder(init_val=4, max_trials=2), callbacks.Recorder()], val_check_interval=6
    )
    set_run_folder(trainer, tmp_path)
    trainer.fit(found := small_module(), data := small_data(batch_size=2))
    assert data.batch_size == 8
    small_trainer(tmp_path, val_check_interval=6).fit(told := small_module(), small_data(batch_size=8))
    for name, weight in told.state_dict().items():
        assert torch.equal(found.state_dict()[name], weight)
    assert [event["event"] for event in read_record(tmp_path)[1]] == ["started", "finished"]
