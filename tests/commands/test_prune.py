"""lightning-icl prune, from a trained run to one that goes on without some of its heads."""

import copy
import itertools
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, small_data, small_module

from lightning_icl import GPT2, ICLModule
from lightning_icl.callbacks import analysis
from lightning_icl.cli import main
from lightning_icl.commands import prune as command
from lightning_icl.commands.prune import keep_mask
from lightning_icl.commands.pruned_checkpoint import pruned_checkpoint
from lightning_icl.commands.run import open_run
from lightning_icl.instruments.removal import remove_heads
from lightning_icl.record import load_run

SHORT = """
data: {n_queries: 2, batch_size: 4, eval_prompts: 16, eval_batch_size: 8}
model: {heads: [2, 4, 2], optimizer: muon}
trainer:
  max_steps: 2
  val_check_interval: 1.0
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{class_path: HeadImportance, init_args: {n_prompts: 8}}]
"""
CALLBACKS = """
trainer:
  callbacks:
    - {class_path: ReferenceRisk, init_args: {tuning_prompts: 8, curve_prompts: 8}}
    - {class_path: HeadImportance, init_args: {n_prompts: 8}}
    - class_path: HeadPruning
      init_args: {n_prompts: 8, n_random: 1, fit_prompts: 8, finetune_steps: 0, strategies: [PaperPruning]}
    - {class_path: LinearProbe, init_args: {n_prompts: 8}}
"""


def without_drawing(*args):
    """In place of write_figure, which takes far longer than the analyses here."""
    return np.zeros((1, 1, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of debug.yaml, made shorter."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "short.yaml").write_text(SHORT)
    config = ["--config", str(ROOT / "configs" / "debug.yaml"), "--config", str(folder / "short.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "write_figure", without_drawing)
        main(["fit", *config, "--trainer.default_root_dir", str(folder)])
    return folder / "lightning_logs" / "version_0"


def checkpoint(run):
    return run / "checkpoints" / "last.ckpt"


def pruned(run, folder, keep, **options):
    more = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    main(["prune", "--ckpt_path", str(checkpoint(run)), "--keep", keep, "--output", str(folder), *more])
    return ["--config", str(folder / "config.yaml"), "--ckpt_path", str(checkpoint(folder))]


def test_a_pruned_run_validates_and_goes_on_training_with_its_callbacks(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(analysis, "write_figure", without_drawing)
    (tmp_path / "callbacks.yaml").write_text(CALLBACKS)
    smaller = pruned(run, tmp_path / "smaller", "[all, [], [2]]")
    said = capsys.readouterr().out
    for line in ("layer 1: 2 heads -> 2", "layer 2: 4 heads -> 0", "layer 3: 2 heads -> 1 (head 2)"):
        assert line in said
    callbacks = ["--config", str(tmp_path / "callbacks.yaml")]
    main(
        [
            "validate",
            *smaller,
            *callbacks,
        ]
    )
    measured = load_run(tmp_path / "smaller" / "validate_0").table
    assert {"HeadImportance", "HeadPruning", "LinearProbe"} <= set(measured["analysis"])
    main(["fit", *smaller, "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "5"])
    saved = torch.load(checkpoint(tmp_path / "lightning_logs" / "version_0"), weights_only=True)
    assert saved["global_step"] == 5
    assert saved["hyper_parameters"]["heads"] == [2, 0, 1]
    assert saved["hyper_parameters"]["head_dim"] == [8, 4, 8]
    assert saved["lightning_icl"]["validations"] > 1


def test_a_pruned_run_predicts_what_the_masked_model_does(run, tmp_path):
    pruned(run, tmp_path / "smaller", "[[2], [1, 4], all]")
    full, smaller = open_run(checkpoint(run)), open_run(checkpoint(tmp_path / "smaller"))
    prompt = smaller.datamodule.held_out("another", 64)
    mask = torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 0]])
    torch.testing.assert_close(smaller.module(prompt), full.module(prompt, mask), atol=1e-5, rtol=0)
    assert smaller.module.network.heads == [1, 2, 2]
    assert checkpoint(tmp_path / "smaller").stat().st_size < checkpoint(run).stat().st_size


def test_a_pruned_checkpoint_leaves_what_was_found_in_the_unpruned_model(run, tmp_path):
    full = torch.load(checkpoint(run), weights_only=True)
    # As checkpoints were before 0.2, which had each analysis' series in them.
    full["callbacks"]["HeadImportance"] = {"validations": 2, "records": [{"step": 2, "heads": [2, 4, 2]}]}
    smaller = pruned_checkpoint(full, open_run(checkpoint(run)).module, torch.tensor([[1.0, 1, 0, 0]] * 3))
    assert smaller["callbacks"]["HeadImportance"] == {"validations": 2}
    assert smaller["lightning_icl"] == full["lightning_icl"]
    assert not any(name.startswith("ModelCheckpoint") for name in smaller["callbacks"])
    assert smaller["loops"] == full["loops"]


def test_nothing_is_overwritten(run, capsys):
    keep = ["prune", "--ckpt_path", str(checkpoint(run)), "--keep", "[[1], [], []]"]
    for name in ("version_0_pruned", "version_0_pruned_2"):
        main(keep)
        assert str(run.with_name(name) / "config.yaml") in capsys.readouterr().out
        assert open_run(checkpoint(run.with_name(name))).module.network.heads == [1, 0, 0]
    assert {path.name for path in run.parent.iterdir()} == {"version_0", "version_0_pruned", "version_0_pruned_2"}


def test_an_old_checkpoint_that_knows_no_head_dim_can_be_pruned(run, tmp_path):
    """And a config that names none, or a resumed checkpoint."""
    old = torch.load(checkpoint(run), weights_only=True)
    del old["hyper_parameters"]["head_dim"], old["hyper_parameters"]["layout"]
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"ckpt_path": "an/earlier.ckpt"}
    del config["model"]["head_dim"], config["model"]["layout"]
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    torch.save(old, checkpoint(tmp_path / "old"))
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(config))
    pruned(tmp_path / "old", tmp_path / "smaller", "[[1], [1], [1]]")
    assert open_run(checkpoint(tmp_path / "smaller")).module.network.head_dims == [8, 4, 8]
    assert yaml.safe_load((tmp_path / "smaller" / "config.yaml").read_text())["ckpt_path"] is None


def test_a_difference_from_the_masked_model_is_an_error_and_leaves_no_folder(run, tmp_path, monkeypatch):
    def forgetful(*args):
        wrong = pruned_checkpoint(*args)
        wrong["state_dict"]["network.read_out.bias"] += 0.01
        return wrong

    monkeypatch.setattr(command, "pruned_checkpoint", forgetful)
    with pytest.raises(RuntimeError, match=r"the pruned model's predictions differ by .* more than 1e-05"):
        pruned(run, tmp_path / "smaller", "[[1], [1], [1]]")
    assert not (tmp_path / "smaller").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"keep": "[[1], [1]]"}, "keep has 2 layers, but the model has 3, with [2, 4, 2] heads."),
        ({"keep": "[[1], [5], [1]]"}, "keep has head 5 in layer 2, whose heads are 1 to 4."),
        ({"keep": "[[1], [0], [1]]"}, "keep has head 0 in layer 2, whose heads are 1 to 4."),
        ({"keep": "[[1], [2, 3, 2], [1]]"}, "keep has head 2 of layer 2 2 times."),
        ({"keep": "[[], [], []]"}, "keep names no head in any layer, but a model needs at least one."),
        (
            {"keep": "[some, [1], [1]]"},
            "an entry of keep is 'some', but it must be one of all or a list, such as [8, 8].",
        ),
        ({"keep": "3"}, "keep is '3', but it must be a list"),
        ({"keep": None}, "the following arguments are required: keep"),
        ({"ckpt_path": "nowhere.ckpt"}, "ckpt_path is nowhere.ckpt, but there is no such file."),
        (
            {"ckpt_path": "s3://bucket/last.ckpt"},
            "ckpt_path is s3://bucket/last.ckpt, but only a file on this machine can",
        ),
        ({"ckpt_path": "moved.ckpt"}, "there is no config of moved.ckpt at "),
        ({"config": "nowhere.yaml"}, "config is nowhere.yaml, but there is no such file."),
        ({"config": str(ROOT / "configs" / "debug.yaml")}, "was trained with model.heads = [2, 4, 2], but the config"),
        ({"output": "."}, "output is ., but that exists already; name a folder that does not."),
        ({"kepe": "[]"}, "there is no option 'kepe'; did you mean 'keep'?"),
    ],
)
def test_a_wrong_option_gets_one_sentence(run, tmp_path, monkeypatch, capsys, changed, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moved.ckpt").write_bytes(checkpoint(run).read_bytes())
    options = {"ckpt_path": checkpoint(run), "keep": "[[1], [1], [1]]", "output": "smaller"} | changed
    with pytest.raises(SystemExit) as stopped:
        main(["prune", *(f"--{name}={value}" for name, value in options.items() if value is not None)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"moved.ckpt"}


def test_help_knows_our_commands_and_their_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lightning-icl"])
    for args, words in (
        (["--help"], "prune"),
        (["prune", "--help"], "--keep"),
        (["prune", "--help"], "counted from 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(args)
        assert stopped.value.code == 0
        assert words in capsys.readouterr().out


def test_a_layer_of_none_can_keep_all():
    assert keep_mask(["all", "all", [2]], [2, 0, 3]).tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 0]]


class Trained:
    """A module and its optimizer, stepped by hand in float64 on the batches of one stream."""

    def __init__(self, module, optimizer_state=None):
        self.module, self.optimizer = module.double(), module.fresh_optimizer()
        if optimizer_state is not None:
            self.optimizer.load_state_dict(optimizer_state)

    def after(self, steps):
        for step in steps:
            self.optimizer.zero_grad()
            self.module.loss(small_data().sample("train", step).double()).backward()
            self.optimizer.step()
        return self

    def checkpoint(self):
        saved = {
            "state_dict": self.module.state_dict(),
            "hyper_parameters": dict(self.module.hparams),
            "optimizer_states": [self.optimizer.state_dict()],
            "callbacks": {},
        }
        return copy.deepcopy(saved)  # as a file would


def with_dead_heads(keep, **options):
    """Heads that read and write nothing, so they neither matter nor learn."""
    of_training = {"weight_decay": 0.1, "learning_rate": 0.01, "optimizer": options.pop("optimizer")}
    if network := options.pop("network", None):
        torch.manual_seed(0)
        module = ICLModule(4, network=network(4, 16, [4, 2, 4]), warmup_steps=2, **of_training)
    else:
        module = small_module(heads=[4, 2, 4], **of_training, **options)
    with torch.no_grad():
        for block, row in zip(module.network.blocks, keep, strict=True):
            size, n_heads = block.attention.head_dim, block.attention.n_heads
            gone = (row[:n_heads] == 0).repeat_interleave(size)
            block.attention.value.weight[gone] = 0
            block.attention.output.weight[:, gone] = 0
            if block.attention.value.bias is not None:
                block.attention.value.bias[gone] = 0
    return module


KEEP = torch.tensor([[0.0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        *itertools.product(("adamw", "muon", "muon_per_head"), ({}, {"mlp": False, "norm": "post"}, {"norm": "none"})),
        ("muon_per_head", {"head_dim": [8, 4, 8]}),  # where Muon's step on the whole matrix would shrink
        ("adamw", {"attention_bias": True}),
        ("muon", {"network": GPT2}),
    ],
    ids=str,
)
def test_training_goes_on_as_if_the_dead_heads_were_still_there(optimizer, options, monkeypatch):
    """Newton-Schulz leaves zero rows zero and the others alone, so this holds for Muon too, but for its bfloat16."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    full = Trained(with_dead_heads(KEEP, optimizer=optimizer, **options)).after(range(4))
    smaller = pruned_checkpoint(full.checkpoint(), full.module, KEEP)
    resumed, forgetful = (ICLModule(**smaller["hyper_parameters"]).double() for _ in range(2))
    for module, state in ((resumed, smaller["optimizer_states"][0]), (forgetful, None)):
        module.load_state_dict(smaller["state_dict"])
        Trained(module, state).after(range(4, 8))
    expected = remove_heads(full.after(range(4, 8)).module.network, KEEP).state_dict()
    found, without_state = (which.network.state_dict() for which in (resumed, forgetful))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-9, msg=name)
    assert max((without_state[name] - values).abs().max() for name, values in expected.items()) > 1e-3


def test_a_pruned_soap_checkpoint_keeps_the_state_of_whole_matrices_and_trains_on():
    full = Trained(with_dead_heads(KEEP, optimizer="soap", mlp=True)).after(range(4))
    smaller = pruned_checkpoint(full.checkpoint(), full.module, KEEP)
    module = ICLModule(**smaller["hyper_parameters"]).double()
    module.load_state_dict(smaller["state_dict"])
    resumed = Trained(module, smaller["optimizer_states"][0])
    state = {name: resumed.optimizer.state[p] for name, p in module.named_parameters()}
    assert not state["network.layers.0.attention.value.weight"]
    assert state["network.layers.0.mlp.0.weight"]["steps"] == 4
    before = copy.deepcopy(module.state_dict())
    resumed.after(range(4, 8))
    moved = max(float((value - before[name]).abs().max()) for name, value in module.state_dict().items())
    assert 0 < moved < 0.5
