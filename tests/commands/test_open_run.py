"""A run opened without a trainer is the run that was trained."""

import shutil

import pytest
import torch
import yaml

from lightning_icl.cli import main
from lightning_icl.commands.run import open_run
from lightning_icl.functional.errors import InputError

CONFIG = """
seed_everything: 7
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 3, sparsity: 1}}
  n_points: 4
  n_queries: 2
  batch_size: 4
  eval_prompts: 8
  eval_batch_size: 8
  validation: {plain: {}, noisier: {shift: {noise_std: 1.0}}}
model: {d_model: 8, heads: [2, 2], warmup_steps: 1}
trainer: {max_steps: 2, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG)
    main(["fit", "--config", str(folder / "config.yaml"), "--trainer.default_root_dir", str(folder)])
    return folder / "lightning_logs" / "version_0"


def checkpoint(run):
    return run / "checkpoints" / "last.ckpt"


def test_the_weights_the_data_and_the_seed_are_the_runs(run):
    opened = open_run(checkpoint(run))
    for name, values in torch.load(checkpoint(run), weights_only=True)["state_dict"].items():
        assert torch.equal(opened.module.state_dict()[name], values)
    assert (opened.datamodule.seed, opened.datamodule.largest_n, opened.module.trained_steps) == (7, 4, 2)
    assert [stream.name for stream in opened.datamodule.streams] == ["plain", "noisier"]
    assert opened.config == run / "config.yaml"
    assert not opened.module.training
    prompt = opened.datamodule.held_out("some", 5)
    assert opened.module(prompt).shape == (5, 2)


def test_opening_draws_no_random_number(run):
    before = torch.random.get_rng_state()
    open_run(checkpoint(run))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_config_is_found_beside_a_checkpoint_that_was_moved(run, tmp_path):
    shutil.copy(checkpoint(run), tmp_path / "model.ckpt")
    with pytest.raises(InputError, match=r"there is no config of .*model.ckpt at .*config.yaml; name the config"):
        open_run(tmp_path / "model.ckpt")
    assert open_run(tmp_path / "model.ckpt", run / "config.yaml").datamodule.seed == 7
    shutil.copy(run / "config.yaml", tmp_path)
    assert open_run(str(tmp_path / "model.ckpt")).datamodule.seed == 7


def test_what_cannot_be_opened_gets_one_sentence_in_python_too(run, tmp_path):
    with pytest.raises(InputError, match=r"ckpt_path is nowhere\.ckpt, but there is no such file\."):
        open_run("nowhere.ckpt")
    with pytest.raises(InputError, match=r"config is nowhere\.yaml, but there is no such file\."):
        open_run(checkpoint(run), "nowhere.yaml")
    for wrong, said in (
        ({"heads": [2, 1]}, r"was trained with model.heads = \[2, 2\], but the config asks for \[2, 1\]"),
        ({"headz": [2, 1]}, "there is no option 'model.headz'; did you mean 'model.heads'?"),
        ({"heads": "two"}, "model.heads is 'two', but it must be a list"),
    ):
        other = yaml.safe_load(CONFIG)
        other["model"] |= wrong
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
        with pytest.raises(InputError, match=said):
            open_run(checkpoint(run), tmp_path / "other.yaml")
    with pytest.raises(InputError, match="is not a readable checkpoint"):
        open_run(run / "config.yaml", run / "config.yaml")
