"""A wrong config gets one clear sentence that names the value and what would be right, and no work is done."""

import errno
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import ROOT, small_module, small_trainer

from lightning_icl.checkpoint import check_options
from lightning_icl.cli import main

CONFIG = """
data:
  task: {class_path: SparseLinearRegression, init_args: {n_dims: 8, sparsity: 2}}
  n_points: 8
model: {d_model: 16, heads: [4, 4]}
trainer: {max_steps: 4, accelerator: cpu, logger: false, enable_checkpointing: false}
"""
CALLBACK = '[{{"class_path": "{}", "init_args": {}}}]'


OWN = {
    "my_gru.py": "from lightning_icl import InContextNetwork\n\n\nclass GRU(InContextNetwork):\n    pass\n",
    "my_typo.py": "x = pint(1)\n",
    "my_syntax.py": "def sine(:\n",
}


def callbacks(class_path, init_args="{}"):
    return ["--trainer.callbacks", CALLBACK.format(class_path, init_args)]


TABLE = [
    # an option that does not exist
    (["--model.headz", "4"], "there is no option 'model.headz'; did you mean 'model.heads'?"),
    (["--modle.d_model", "3"], "there is no option 'modle.d_model'; did you mean 'model.d_model'?"),
    (["--data.task.sparsty", "2"], "SparseLinearRegression has no option 'sparsty'; did you mean 'sparsity'?"),
    ("model: {head: [4]}", "there is no option 'model.head'; did you mean 'model.heads'?"),
    ("trianer: {max_steps: 3}", "there is no option 'trianer.max_steps'; did you mean 'trainer.max_steps'?"),
    ("trainer: {max_step: 3}", "there is no option 'trainer.max_step'; did you mean 'trainer.max_steps'?"),
    (
        "data: {task: {class_path: SparseLinearRegression, init_args: {n_dims: 8, sparsity: 2, noise_sd: 1}}}",
        "data.task: SparseLinearRegression has no option 'noise_sd'; did you mean 'noise_std'?",
    ),
    (
        callbacks("HeadImportance", '{"n_prompt": 9}'),
        "trainer.callbacks: HeadImportance has no option 'n_prompt'; did you mean 'n_prompts'?",
    ),
    # an option that is missing
    (["--data.task.spectrum", "Eigenvalues"], "data.task: spectrum: Eigenvalues needs values among its init_args."),
    (
        "data: {validation: {dense: {task: LinearRegression}}}",
        "data.validation.dense.task: LinearRegression needs n_dims among its init_args.",
    ),
    # a class that does not exist
    (["--data.task", "SparseRegresion"], "no class 'SparseRegresion'; did you mean 'SparseLinearRegression'?"),
    (callbacks("HeadImportence"), "there is no class 'HeadImportence'; did you mean 'HeadImportance'?"),
    (
        callbacks("HeadPruning", '{"strategies": ["Greedy"]}'),
        "trainer.callbacks: strategies: there is no class 'Greedy'; did you mean 'GreedyRemoval'?",
    ),
    (
        callbacks("HeadPruning", '{"strategies": [{"class_path": "TopHeads", "init_args": {"n_heads": 99}}]}'),
        "top_99: n_heads is 99, but the model has 8 heads.",
    ),
    (
        callbacks("HeadPruning", '{"checkpoints": {"single": "nowhere.ckpt"}}'),
        "checkpoints: single is nowhere.ckpt, but there is no such file.",
    ),
    (callbacks("AlgorithmMatch", '{"algorithms": []}'), "algorithms is [], but it must have at least one entry"),
    (
        callbacks("PruningSchedule", '{"strategies": ["PaperPruning"], "steps": [4]}'),
        "steps has 4, but training goes on only after the first 3 of them",
    ),
    # a class of one's own that is not there (OWN is)
    (["--model.network", "my_gur.GRU"], "nor a file my_gur.py in this folder; did you mean 'my_gru.GRU'?"),
    (["--data.task", "my_tsk.Sine"], "data.task: there is no module 'my_tsk', nor a file my_tsk.py in this folder."),
    (
        callbacks("ReferenceRisk", '{"references": ["nowhere.Mine"]}'),
        "trainer.callbacks: references: there is no module 'nowhere', nor a file nowhere.py in this folder.",
    ),
    (["--model.network", "my_gru.GUR"], "model.network: my_gru has no class 'GUR'; did you mean 'GRU'?"),
    (["--model.network", "my_gru"], "model.network: my_gru is a file; name a class in it too, as in my_gru.MyClass."),
    (["--model.network", "GRU"], "model.network: there is no class 'GRU'; did you mean 'my_gru.GRU'?"),
    (["--model.network", "my_gru.GRU"], "model.network: GRU must define on_prompt."),
    (
        callbacks("lightning_icl.callbacks.HeadImprtance"),
        "lightning_icl.callbacks has no class 'HeadImprtance'; did you",
    ),
    (["--data.task", "lightning_icl.taks.Sine"], "data.task: there is no module 'taks' in lightning_icl."),
    (["--data.task", "my_gru.Sine"], "data.task: my_gru has no class 'Sine', nor any Law."),
    (
        ["--data.task", "my_typo.Sine"],
        "data.task: my_typo.Sine cannot be imported: NameError: name 'pint' is not defined",
    ),
    (
        ["--data.task", "my_syntax.Sine"],
        "my_syntax.Sine cannot be imported: SyntaxError: invalid syntax (my_syntax.py,",
    ),
    # a value of the wrong kind
    (["--model.d_model", "wide"], "model.d_model is 'wide', but it must be a whole number."),
    (["--model.heads", "4"], "model.heads is '4', but it must be a list, such as [8, 8]."),
    (["--model.attention", "softmx"], "model.attention is 'softmx', but it must be one of softmax, linear, relu."),
    (["--model.mlp", "maybe"], "model.mlp is 'maybe', but it must be true or false."),
    (["--data.n_points", "many"], "data.n_points is 'many', but it must be a whole number or a list, such as [8, 16]."),
    (["--seed_everything", "1.5"], "seed_everything is '1.5', but it must be a whole number."),
    (callbacks("HeadImportance", '{"n_prompts": "x"}'), "n_prompts is 'x', but it must be a whole number."),
    # a value that cannot work
    (["--trainer.devices", "2", "--trainer.strategy", "ddp_fork"], "trainer.strategy starts processes by fork, and a"),
    (["--model.heads", "[3]"], "heads is 3 in layer 1, which does not divide d_model, 16; choose a divisor of 16"),
    (["--model.heads", "[]"], "heads is [], but it must list at least one layer"),
    (["--model.learning_rate", ".nan"], "learning_rate is nan, but it must be a finite number above 0."),
    (["--model.position", "learned"], "max_points is None, but position='learned' needs the largest number of points."),
    (
        ["--model.position", "learned", "--model.max_points", "7"],
        "data.n_points has prompts of 8 examples, but model.max_points is 7: make it 8.",
    ),
    (
        "{model: {position: learned, max_points: 8}, data: {validation: {plain: {}, longer: {n_points: [4, 12]}}}}",
        "data.validation.longer has prompts of 12 examples, but model.max_points is 8: make it 12.",
    ),
    (["--data.task.sparsity", "9"], "sparsity is 9, but it must lie between 1 and n_dims, which is 8."),
    (["--data.task.n_dims", "0"], "n_dims is 0, but it must be at least 1."),
    (["--data.task.noise_std", "-1"], "noise_std is -1.0, but it must be a finite number that is 0 or larger."),
    (["--data.task.noise_std", ".nan"], "noise_std is nan, but it must be a finite number that is 0 or larger."),
    (["--data.task.correlation", "1"], "correlation is 1.0, but it must lie strictly between -1 and 1."),
    (["--data.n_points", "[9, 2]"], "n_points is [9, 2], but it must be a number from 1 up, or [smallest, largest]"),
    (["--data.eval_batch_size", "500"], "eval_batch_size is 500, but it must divide eval_prompts, 2048."),
    (["--data.batch_size", "0"], "batch_size is 0, but it must be at least 1."),
    (callbacks("HeadImportance", '{"n_prompts": 1}'), "n_prompts is 1, but it must be at least 2."),
    (callbacks("LinearProbe", '{"alpha": 0}'), "alpha is 0.0, but the probe's ridge strength must be a finite number"),
    (["--seed_everything", "true"], "seed_everything is 'true', but it must be a whole number."),
    # a number beyond what can be served
    (callbacks("HeadPruning", '{"n_random": 1000000000}'), "n_random is 1000000000, but it must be at most 16,384."),
    (
        callbacks("LinearProbe", '{"context_points": 1000000000}'),
        "context_points is 1000000000, but the prompts have 8 examples.",
    ),
    (
        callbacks("LinearProbe", '{"n_prompts": 1000000000000}'),
        "n_prompts is 1,000,000,000,000: so many prompts with n_points 8 and n_queries 16 would take",
    ),
    (
        ["--data.batch_size", "1000000000000"],
        "batch_size is 1,000,000,000,000: so many prompts with n_points 8 and n_queries 16 would take",
    ),
    (["--model.d_model", "1000000000"], "the weights of a model with d_model 1,000,000,000, heads [4, 4],"),
    (["--model.max_points", "-1"], "max_points is -1, but it must be at least 1."),
    (["--seed_everything", "-1"], "seed_everything is -1, but it must be at least 0."),
    (
        callbacks("ReferenceRisk", '{"references": [{"class_path": "FISTA", "init_args": {"alpha": 1e9}}]}'),
        "alpha is 1000000000.0, but its size must be at most 1,000,000.",
    ),
    (
        callbacks(
            "ReferenceRisk", '{"references": [{"class_path": "AdaptiveLasso", "init_args": {"pilot_alpha": 0}}]}'
        ),
        "pilot_alpha is 0.0, but it must be a finite number above 0.",
    ),
    (
        ["--trainer.max_steps", "0"],
        "trainer.max_steps is 0, but a fit without a step trains nothing; to measure use validate.",
    ),
    (["--cpu_threads", "1000000000"], "cpu_threads is 1000000000, but it must be at most 1,024."),
    (["--trainer.val_check_interval", "0"], "trainer.val_check_interval is 0, but it must be above 0."),
    (
        ["--trainer.gradient_clip_val", ".nan"],
        "trainer.gradient_clip_val is nan, but it must be a finite number that is 0 or larger.",
    ),
    # null, nothing and empty text
    ("model: null", "model is null, but it must be a mapping of its options."),
    ("model: {d_model: null}", "model.d_model is null, but it must be a whole number."),
    (["--model.d_model="], "model.d_model is '', but it must be a whole number."),
    ("data: {eval_batch_size: null}", "data.eval_batch_size is null, but it must be a whole number."),
    ("data: {task: ''}", "data.task: there is no class ''; valid are: DecisionTree,"),
    (
        "data: {task: {init_args: {noise_std: null}}}",
        "data.task: noise_std is null, but it must be a number or a list, such as [8, 8].",
    ),
    (
        callbacks("ReferenceRisk", '{"references": [{"class_path": "Lasso", "init_args": {"alpha": ""}}]}'),
        "trainer.callbacks: references: alpha is '', but it must be a number.",
    ),
    ("trainer: {callbacks: {}}", "trainer.callbacks is {}, but it must be a list of classes, such as [AlgorithmMatch]"),
    ("trainer: {callbacks: [null]}", "trainer.callbacks is null, but it must be a class, such as AlgorithmMatch."),
    (["--run_folder="], "run_folder is '', but it must be text that is not empty."),
    (["--seed_everything=null"], "seed_everything is null, but it must be a whole number."),
    # another project's config
    (
        "{optimizer: {name: adam, lr: 0.1}, dataset: {path: x}, epochs: 10}",
        "there are no options 'optimizer.name', 'optimizer.lr', 'dataset.path', 'epochs': is this a config of",
    ),
    # token layouts
    (["--model.layout", "triples"], "model.layout is 'triples', but it must be one of pairs, prefixes, alternating."),
    (["--model.layout", "prefixes"], "mask is 'context', but layout='prefixes' needs mask='causal'"),
    (["--model.init", "mimetic"], "model.init is 'mimetic', but it must be one of default, keys_equal_queries."),
    (
        ["--model.target", "posterior_mean", "--data.task", "DecisionTree", "--data.task.n_dims", "8"],
        "target is 'posterior_mean', but this DecisionTree has no exact posterior in closed form;",
    ),
    (
        ["--model.target", "posterior_mean", "--model.layout", "prefixes", "--model.mask", "causal"],
        "target is 'posterior_mean', but layout is 'prefixes': posterior means are computed at the queries alone;",
    ),
    (["--model.schedule", "linear"], "model.schedule is 'linear', but it must be one of cosine, constant."),
    # validation streams
    (
        "data: {validation: {a: {shfit: {}}}}",
        "data.validation.a: ValidationStream has no option 'shfit'; did you mean 'shift'?",
    ),
    (
        "data: {validation: {noisier: {shift: {noise_sd: 1}}}}",
        "validation.noisier: SparseLinearRegression has no option 'noise_sd'; did you mean 'noise_std'?",
    ),
    (
        "data: {validation: {denser: {shift: {sparsity: 9}}}}",
        "validation.denser: sparsity is 9, but it must lie between",
    ),
    (
        "data: {validation: {noisier: {shift: {noise_std: -1.0}}}}",
        "validation.noisier: noise_std is -1.0, but it must be a finite number that is 0 or larger.",
    ),
    (
        "data: {validation: {decaying: {shift: {spectrum: {class_path: Powerlaw}}}}}",
        "validation.decaying: shift.spectrum is {'class_path': 'Powerlaw'}, but there is no such class or",
    ),
    (
        "data: {validation: {decaying: {shift: {spectrum: {class_path: Eigenvalues}}}}}",
        "validation.decaying: shift.spectrum: Eigenvalues cannot be made with {}.",
    ),
    (
        ["--data.validation.noisier.n_points", "12"],
        "data.validation: 'noisier.n_points' cannot be set alone; give it as a whole, such as",
    ),
    (
        "data: {validation: {a: {task: {class_path: LinearRegression, init_args: {n_dims: 8, noise_sd: 1}}}}}",
        "data.validation.a.task: LinearRegression has no option 'noise_sd'; did you mean 'noise_std'?",
    ),
    (
        "data: {validation: {a: {task: {class_path: LinearRegresion}}}}",
        "data.validation.a.task: there is no class 'LinearRegresion'; did you mean 'LinearRegression'?",
    ),
    (
        "data: {validation: {wider: {task: {class_path: LinearRegression, init_args: {n_dims: 9}}}}}",
        "validation.wider: its task has n_dims 9, but the model is as wide as the training task's, 8.",
    ),
    (
        "data: {validation: {a: {shift: {sparsity: 3}, task: {class_path: LinearRegression, init_args: {n_dims: 8}}}}}",
        "validation.a has both a shift and a task; give one of them.",
    ),
    ("data: {validation: {longer: {n_points: 0}}}", "validation.longer: n_points is [0, 0], but it must be a number"),
    (
        "data: {validation: {longer: {n_points: many}}}",
        "data.validation.longer.n_points is 'many', but it must be a whole number or a list",
    ),
    ("data: {validation: {a/b: {}}}", "validation has a stream 'a/b', but a name is made of letters, digits, _ and -."),
    ("data: {validation: {a: }}", "data.validation.a is null, but it must be a mapping of shift, n_points, task."),
    (
        "data: {validation: 3}",
        "data.validation is 3, but it must be a mapping, such as {noisier: {shift: {noise_std: 1.0}}}.",
    ),
    # curricula
    (callbacks("Curriculum"), "Curriculum has nothing to grow: set dims_start, points_start or both."),
    (callbacks("Curriculum", '{"dims_start": 9}'), "dims_start is 9, but the task has only 8 dimensions."),
    (
        callbacks("Curriculum", '{"dims_start": 1}'),
        "the task cannot grow from 1 to 8 dimensions: sparsity is 2, but it must lie between 1 and n_dims, which is 1.",
    ),
    (callbacks("Curriculum", '{"points_start": 9}'), "points_start is 9, but n_points is only 8."),
    (callbacks("Curriculum", '{"points_start": 2, "every": 0}'), "every is 0, but it must be at least 1."),
    # tasks and references
    (
        callbacks("ReferenceRisk", '{"references": ["Ridg"]}'),
        "trainer.callbacks: references: there is no class 'Ridg'; did you mean 'Ridge'?",
    ),
    (
        callbacks("ReferenceRisk", '{"references": [{"class_path": "Lasso", "init_args": {"alfa": 1}}]}'),
        "trainer.callbacks: references: Lasso has no option 'alfa'; did you mean 'alpha'?",
    ),
    (
        callbacks("ReferenceRisk", '{"references": [{"class_path": "Lasso", "init_args": {"alpha": -1}}]}'),
        "alpha is -1.0, but it must be a finite number above 0.",
    ),
    (
        callbacks("ReferenceRisk", '{"references": ["Lasso", "Lasso"]}'),
        "references has lasso 2 times, but each must be there once.",
    ),
    (
        callbacks("ReferenceRisk", '{"references": ["PoolPosterior"]}'),
        "PoolPosterior needs a model trained on a TaskPool, but data.task is a SparseLinearRegression.",
    ),
    (
        ["--data.task.noise_std", "high"],
        "data.task: noise_std is 'high', but it must be a number or a list, such as [8, 8].",
    ),
    (
        ["--data.task.spectrum", "Spikd"],
        "data.task: spectrum: there is no class 'Spikd'; did you mean 'Spiked'?",
    ),
    (
        ["--data.task.featurs", "uniform"],
        "SparseLinearRegression has no option 'featurs'; did you mean 'features'?",
    ),
    # a trainer that cannot run this stream
    (["--trainer.accumulate_grad_batches", "3"], "batch_size is 64, but it must divide into processes x"),
    (["--trainer.val_check_interval", "9"], "trainer.val_check_interval is 9 batches, but the run has only 4"),
    (["--trainer.max_steps", "-1"], "trainer.max_steps is -1, but the stream is endless: set max_steps or max_time."),
    ("trainer: {max_time: {}}", "trainer.max_time is {}, but it must name a time, such as {minutes: 10}."),
    (["--trainer.precision", "bf16-true"], "trainer.precision is bf16-true, but prompts are sampled in float32"),
    (["--trainer.accelerator", "gpu"], "No supported gpu backend found!"),
    (["--trainer.strategy", "dpp"], "You selected an invalid strategy name: `strategy='dpp'`."),
    # the run's folder, its loggers and its record
    (
        ["--run_name", "a/b"],
        "run_name is a/b, but it must be of letters, digits, '_', '.' and '-', and not begin with the last two;",
    ),
    (["--run_name", ".."], "run_name is .., but it must be of letters, digits, '_', '.' and '-',"),
    (["--run_name="], "run_name is '', but it must be text that is not empty."),
    (
        ["--run_name", "a", "--run_folder", "b"],
        "run_name is a and run_folder is b, but a run has one folder; leave one out.",
    ),
    (["--run_folder", "."], "run_folder is ., but there is such a run already: go on with it by --ckpt_path last,"),
    (["--run_folder", "config.yaml"], "run_folder is config.yaml, but config.yaml is a file; name another folder."),
    (["--run_folder", "s3://b/run"], "run_folder is s3://b/run, but a run's folder must lie on this machine;"),
    (["--ckpt_path", "last"], "ckpt_path is last, but neither run_name nor run_folder says of which run."),
    (
        "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitor: val_loss}}]}",
        "monitor of EarlyStopping is 'val_loss', but nothing here is known to log it",
    ),
    (["--trainer.logger", "CSVLoger"], "trainer.logger: there is no class 'CSVLoger'; did you mean 'CSVLogger'?"),
    (["--trainer.logger", "CSVLogger"], "trainer.logger: CSVLogger needs save_dir among its init_args."),
    (["--record.scalars", "few"], "record.scalars is 'few', but it must be one of main, all."),
    # files
    (["--config", "nowhere.yaml"], "nowhere.yaml does not exist."),
    ("model: {heads: [4", "a config file is not valid YAML near line 2: did not find expected ',' or ']'."),
    (["--config", "binary.ckpt"], "a file given as --config is not text; give the YAML file there"),
    (["--ckpt_path", "nowhere.ckpt"], "ckpt_path is nowhere.ckpt, but there is no such file."),
    (["--ckpt_path", "config.yaml"], "ckpt_path is config.yaml, but that file is not a readable checkpoint"),
]


def shown(wrong):
    """A row's left side as DEVELOPERS.md shows it."""
    return wrong if isinstance(wrong, str) else " ".join(wrong)


def test_developers_md_shows_this_table():
    page = (ROOT / "DEVELOPERS.md").read_text()
    assert all(f"| `{shown(wrong)}` | {words} |" in page for wrong, words in TABLE)


@pytest.mark.parametrize(("wrong", "words"), TABLE, ids=[words[:40] for _, words in TABLE])
def test_a_wrong_config_gets_one_sentence(tmp_path, monkeypatch, capsys, wrong, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    if isinstance(wrong, str):
        (tmp_path / "wrong.yaml").write_text(wrong + "\n")
        wrong = ["--config", "wrong.yaml"]
    (tmp_path / "binary.ckpt").write_bytes(b"PK\x80\x81")
    for name, text in OWN.items():
        (tmp_path / name).write_text(text)
    said = refused(["fit", "--config", "config.yaml", *wrong], capsys)
    assert words in said
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".yaml"} - {"__pycache__"} == {
        "binary.ckpt",
        *OWN,
    }


def test_a_config_that_cannot_be_read_is_said_to_be_one(tmp_path, monkeypatch, capsys):
    """Root may read where a mode forbids it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)

    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "config.yaml")

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(Path, "read_text", forbidden)
    said = refused(["fit", "--config", "config.yaml"], capsys)
    assert said == "lightning-icl: the config file config.yaml cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("option", "name", "package"),
    [
        ("logger", "WandbLogger", "wandb"),
        ("logger", "MLFlowLogger", "mlflow"),
        ("callbacks", "RichProgressBar", "rich"),
    ],
)
def test_what_needs_a_package_that_is_not_here_says_which(tmp_path, monkeypatch, capsys, option, name, package):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    said = refused(["fit", "--config", "config.yaml", f"--trainer.{option}", name], capsys)
    assert package in said.partition("pip install")[2], said
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_an_option_of_a_shift_is_no_flag(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG + "data.validation: {noisier: {}}\n")
    said = refused(["fit", "--config", "config.yaml", "--data.validation.noisier.shift.noise_std", "2.0"], capsys)
    assert "data.validation: 'noisier.shift.noise_std' cannot be set alone; give it as a whole" in said


def refused(args, capsys):
    """The one line the command line says before it exits with status 2."""
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-icl: ")]
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "a command is missing, such as fit --config configs/quickstart.yaml."),
        (["fitt"], "there is no command 'fitt'; did you mean 'fit'?"),
        (["fit", "--dry_run"], "data.task is missing: name a task, or a --config that does"),
        (
            ["validate", "--config", "more.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"],
            "data.task is missing: put the config of the checkpoint's run before the others: --config ",
        ),
    ],
)
def test_a_command_line_that_says_too_little(args, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "more.yaml").write_text("trainer: {max_steps: 2}")
    for path in ("run/config.yaml", "run/checkpoints/last.ckpt"):
        (tmp_path / path).touch()
    assert words in refused(args, capsys)


@pytest.mark.parametrize(
    ("trained", "words"),
    [
        ({"heads": [8, 8]}, "was trained with model.heads = [8, 8], but the config asks for [4, 4]"),
        ({"n_dims": 4}, "was trained with model.n_dims = 4, but the config asks for 8"),
        ({"attention": "linear"}, "was trained with model.attention = linear, but the config asks for softmax"),
        ({"learning_rate": 0.5}, "was trained with model.learning_rate = 0.5, but the config asks for 0.001"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, monkeypatch, capsys, trained, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    trainer = small_trainer(tmp_path, max_steps=1)
    options = {"n_dims": 8, "heads": [4, 4], "warmup_steps": 100} | trained
    trainer.strategy.connect(small_module(**options))
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    command = ["--config", "config.yaml", "--ckpt_path", "other.ckpt"]
    said = refused(["fit", *command], capsys)
    assert words in said
    assert said.endswith(f"; use the config it was trained with, --config {tmp_path / 'config.yaml'}.")
    if "learning_rate" not in trained:
        assert words in refused(["validate", *command], capsys)


def test_a_model_with_default_heads_fits_its_own_checkpoint():
    """Saved as a list, a tuple by default."""
    saved, asked = {"heads": [8, 8, 8, 8], "mlp": True}, {"heads": (8, 8, 8, 8), "mlp": True}
    check_options("some.ckpt", saved, asked, resuming=True)


def test_a_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    torch.save({"weights": torch.ones(2)}, tmp_path / "foreign.ckpt")
    said = refused(["validate", "--config", "config.yaml", "--ckpt_path", "foreign.ckpt"], capsys)
    assert "ckpt_path is foreign.ckpt, but that file is not a checkpoint of lightning_icl." in said
