"""Growing prompts: which size at which step, and that a step alone decides it."""

import pytest
import torch
from conftest import Kept, run_command, small_data, small_module, small_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from recorder import Recorder

from lightning_icl import LinearRegression, PromptDataModule, SparseLinearRegression
from lightning_icl.callbacks import Curriculum
from lightning_icl.functional.curriculum import Growth, Sizes
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks import TaskPool


def test_the_schedule_of_garg_et_al_by_hand():
    dims, points = Growth(5, 1, 2000, 20), Growth(11, 2, 2000, 41)
    expected = {0: (5, 11), 1999: (5, 11), 2000: (6, 13), 7999: (8, 17), 29_999: (19, 39), 30_000: (20, 41)}
    expected[500_000] = (20, 41)
    assert {step: (dims.at(step), points.at(step)) for step in expected} == expected
    assert dims.sizes() == list(range(5, 21))


@pytest.mark.parametrize(
    ("growth", "sizes"),
    [
        (Growth(3, 4, 2, 8), [3, 3, 7, 7, 8, 8, 8]),
        (Growth(8, 4, 2, 8), [8] * 7),
        (Growth(1, 1, 1, 3), [1, 2, 3, 3, 3, 3, 3]),
    ],
)
def test_growth_stops_at_its_end(growth, sizes):
    assert [growth.at(step) for step in range(7)] == sizes
    assert growth.sizes() == sorted(set(sizes))


def data_with(dims=None, points=None, task=None, **options):
    data = PromptDataModule(task or SparseLinearRegression(6, 2, noise_std=0.3), 7, 3, 16, 16, 8, seed=3, **options)
    data.curriculum = Sizes(dims, points)
    return data


@pytest.mark.parametrize("step", [0, 3, 4, 8, 11, 12, 16, 400])
def test_a_batch_has_the_step_s_dimensions_and_examples_and_no_others(step):
    prompt = data_with(Growth(2, 1, 4, 6), Growth(1, 2, 4, 7)).sample("train", step)
    n_dims, n_points = min(6, 2 + step // 4), min(7, 1 + 2 * (step // 4))
    assert prompt.x.shape == (16, 7, 6)  # the shapes stay
    for x in (prompt.x[:, :n_points], prompt.x_query):
        assert (x[..., :n_dims] != 0).all()
        assert not x[..., n_dims:].any()
    assert not prompt.w[:, n_dims:].any()
    assert ((prompt.w != 0).sum(dim=1) == 2).all()
    assert prompt.point_mask.tolist() == [[i < n_points for i in range(7)]] * 16
    assert not prompt.x[:, n_points:].any()
    assert not prompt.y[:, n_points:].any()
    torch.testing.assert_close(torch.einsum("bpd,bd->bp", prompt.x, prompt.w), prompt.f, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.einsum("bpd,bd->bp", prompt.x_query, prompt.w), prompt.f_query, rtol=0, atol=1e-5)


def test_each_axis_grows_alone():
    plain = data_with().sample("train", 0)
    dims, points = data_with(dims=Growth(2, 1, 4, 6)), data_with(points=Growth(1, 2, 4, 7))
    assert dims.sample("train", 0).point_mask is None
    torch.testing.assert_close(points.sample("train", 0).x, plain.padded_after(1).x, rtol=0, atol=0)
    torch.testing.assert_close(dims.sample("train", 100).x, plain._replace(x=data_with().sample("train", 100).x).x)


def test_dimensions_grow_where_the_number_of_examples_varies():
    data = small_data(n_points=(2, 5))
    before = [data.sample("train", step).point_mask for step in range(6)]
    data.curriculum = Sizes(dims=Growth(2, 1, 3, 4))
    for step, mask in enumerate(before):
        prompt = data.sample("train", step)
        torch.testing.assert_close(prompt.point_mask, mask)
        assert ((prompt.x != 0).any(dim=1).sum(dim=1) == 2 + step // 3).all()


def test_evaluation_is_at_full_size():
    plain, growing = data_with(), data_with(Growth(2, 1, 4, 6), Growth(1, 2, 4, 7))
    for stream in ("validate", "test", "predict"):
        torch.testing.assert_close(growing.sample(stream, 0), plain.sample(stream, 0), rtol=0, atol=0)
    torch.testing.assert_close(growing.held_out("a", 8), plain.held_out("a", 8), rtol=0, atol=0)


def curriculum():
    return Curriculum(dims_start=2, dims_step=1, points_start=1, points_step=2, every=2)


def trained(folder, steps=8, callback=None, ckpt_path=None, accumulate=1, **options):
    recorder, logger = Recorder(), Kept()
    keep = ModelCheckpoint(folder, "{step}", every_n_train_steps=3, save_top_k=-1)
    callbacks = [recorder, keep, callback or curriculum()]
    options = {"enable_checkpointing": True, "accumulate_grad_batches": accumulate, "log_every_n_steps": 1} | options
    trainer = small_trainer(folder, callbacks, max_steps=steps, val_check_interval=0.5, logger=logger, **options)
    module = small_module()
    trainer.fit(module, datamodule=small_data(), ckpt_path=ckpt_path)
    sizes = dict(logger.series("curriculum/dims")), dict(logger.series("curriculum/points"))
    recorder.logged = [tuple(size.get(step, -1) for size in sizes) for step in range(1, trainer.global_step + 1)]
    return recorder, module.state_dict()


def test_training_gets_and_logs_the_sizes_of_its_steps(tmp_path):
    recorder, _ = trained(tmp_path)
    sizes = [(min(4, 2 + step // 2), min(5, 1 + 2 * (step // 2))) for step in range(8)]
    assert recorder.logged == sizes
    for (step, _), x in recorder.batches.items():
        used = x != 0
        assert (int(used.any(dim=1).sum(dim=1).max()), int(used.any(dim=2).sum(dim=1).max())) == sizes[step]


def test_only_what_grows_is_logged(tmp_path):
    recorder, _ = trained(tmp_path, 4, Curriculum(points_start=4, points_step=1, every=2))
    assert recorder.logged == [(-1, 4), (-1, 4), (-1, 5), (-1, 5)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resume_across_a_boundary_goes_on_bit_for_bit(tmp_path, accumulate):
    """Step 3, where the run is cut, lies between two boundaries; 4 and 6 are the next."""
    whole, weights = trained(tmp_path, accumulate=accumulate)
    resumed, resumed_weights = trained(tmp_path, ckpt_path=tmp_path / "step=3.ckpt", accumulate=accumulate)
    assert min(resumed.batches)[0] == 3
    for place, x in resumed.batches.items():
        torch.testing.assert_close(x, whole.batches[place], rtol=0, atol=0)
    for name, value in weights.items():
        torch.testing.assert_close(resumed_weights[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("after", [Curriculum(dims_start=2, points_start=1, every=3), Curriculum(dims_start=3)])
def test_a_resume_with_another_curriculum_is_refused(tmp_path, after):
    trained(tmp_path, 4)
    with pytest.raises(InputError, match=r"the checkpoint was trained with curriculum = .*'every': 2"):
        trained(tmp_path, 8, after, tmp_path / "step=3.ckpt")


def test_a_resume_without_the_curriculum_or_with_a_new_one_is_refused(tmp_path):
    trained(tmp_path, 4)
    options = {"max_steps": 8, "enable_checkpointing": True}
    with pytest.raises(InputError, match="the checkpoint was trained with curriculum = "):
        small_trainer(tmp_path, **options).fit(
            small_module(), datamodule=small_data(), ckpt_path=tmp_path / "step=3.ckpt"
        )
    keep = ModelCheckpoint(tmp_path / "plain", "{step}", every_n_train_steps=3, save_top_k=-1)
    small_trainer(tmp_path, [keep], **options).fit(small_module(), datamodule=small_data())
    with pytest.raises(InputError, match=r"the checkpoint was trained with curriculum = .*None"):
        trained(tmp_path, 8, ckpt_path=tmp_path / "plain" / "step=3.ckpt")


def test_a_data_module_used_again_without_the_callback_grows_no_more(tmp_path):
    data = small_data()
    small_trainer(tmp_path, [curriculum()], max_steps=2).fit(small_module(), datamodule=data)
    assert data.curriculum.dims == Growth(2, 1, 2, 4)
    small_trainer(tmp_path, max_steps=2).fit(small_module(), datamodule=data)
    assert data.curriculum == Sizes()


@pytest.mark.parametrize("layout", ["pairs", "prefixes", "alternating"])
def test_every_layout_trains_on_growing_prompts(tmp_path, layout):
    module = small_module(layout=layout, mask="causal", position="learned", max_points=5)
    small_trainer(tmp_path, [curriculum()]).fit(module, datamodule=small_data())
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("callbacks", "data", "words"),
    [
        ([Curriculum(dims_start=5)], small_data(), "dims_start is 5, but the task has only 4 dimensions"),
        ([Curriculum(points_start=6)], small_data(), "points_start is 6, but n_points is only 5"),
        ([Curriculum(points_start=2)], small_data(n_points=(2, 5)), "n_points is [2, 5], but points_start needs one"),
        ([Curriculum(dims_start=1)], small_data(), "the task cannot grow from 1 to 4 dimensions: sparsity is 2"),
        (
            [Curriculum(dims_start=2)],
            PromptDataModule(TaskPool(LinearRegression(4), 3), 5),
            "the task cannot grow from 2 to 4 dimensions: the tasks of a pool have all 4",
        ),
        (
            [Curriculum(dims_start=2)],
            PromptDataModule(LinearRegression(4, rotation="fixed"), 5),
            "the task cannot grow from 2 to 4 dimensions: rotation is 'fixed'",
        ),
        ([Curriculum(dims_start=2), Curriculum(points_start=2)], small_data(), "two Curriculum callbacks"),
    ],
)
def test_what_cannot_grow_is_refused_before_training(tmp_path, callbacks, data, words):
    module = small_module()
    with pytest.raises(InputError) as error:
        small_trainer(tmp_path, callbacks).fit(module, datamodule=data)
    assert words in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to grow"),
        ({"dims_start": 0}, "dims_start is 0"),
        ({"points_start": 0}, "points_start is 0"),
        ({"dims_start": 1, "dims_step": 0}, "dims_step is 0"),
        ({"points_start": 1, "points_step": 0}, "points_step is 0"),
        ({"points_start": 1, "every": 0}, "every is 0"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        Curriculum(**options)


CONFIG = """
seed_everything: 3
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 6, sparsity: 2, noise_std: 0.3}}
  n_points: 7
  n_queries: 3
  batch_size: 16
  eval_prompts: 16
  eval_batch_size: 8
  validation: {in_distribution: {}, denser: {shift: {sparsity: 4}}}
model: {d_model: 16, heads: [4, 2], layout: alternating, mask: causal}
trainer:
  max_steps: 5
  accelerator: cpu
  enable_progress_bar: false
  callbacks:
    - {class_path: recorder.Recorder, init_args: {folder: batches}}
    - {class_path: Curriculum, init_args: {dims_start: 2, points_start: 1, every: 2}}
"""


@pytest.mark.slow
def test_two_processes_share_the_growing_batch_of_one(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    ddp = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    run_command("fit", "--config", "config.yaml", *ddp, cwd=tmp_path)
    data = data_with(Growth(2, 1, 2, 6), Growth(1, 2, 2, 7))
    for step in range(5):
        parts = [torch.load(tmp_path / "batches" / f"{step}-{part}.pt") for part in range(2)]
        torch.testing.assert_close(torch.cat(parts), data.sample("train", step).x, rtol=0, atol=0)
