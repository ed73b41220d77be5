"""What the shell around a command gives it, and is given."""

import subprocess

import pytest
from conftest import run_command

from lightning_icl.shell import bash_completion, with_environment

CONFIG = """
data: {task: {class_path: LinearRegression, init_args: {n_dims: 3}}, n_points: 4}
model: {d_model: 8, heads: [2]}
trainer: {max_steps: 7, accelerator: cpu}
"""


def test_variables_are_arguments_before_all_others_and_the_config_among_them_comes_first():
    environment = {"PL_FIT__MODEL__HEADS": "[1, 8]", "PL_FIT__CONFIG": "a.yaml", "PL_TEST__CONFIG": "b", "PLAIN": "1"}
    given = with_environment(["fit", "--config", "mine.yaml"], environment)
    assert given == ["fit", "--config=a.yaml", "--model.heads=[1, 8]", "--config", "mine.yaml"]
    assert with_environment([], environment) == []
    assert with_environment(["fit"], {"PL_FIT__data__task__T": "5"}) == ["fit", "--data.task.T=5"]


@pytest.mark.parametrize(
    ("name", "flags", "steps"),
    [("PL_FIT__TRAINER__MAX_STEPS", (), 7), ("PL_FIT__TRAINER__LOG_EVERY_N_STEPS", ("--trainer.max_steps", "4"), 4)],
    ids=["a config beats a variable", "a flag beats both"],
)
def test_the_nearer_word_counts(tmp_path, monkeypatch, capsys, name, flags, steps):
    from lightning_icl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "5")
    monkeypatch.setenv("PL_FIT__DRY_RUN", "true")  # which neither says
    (tmp_path / "config.yaml").write_text(CONFIG)
    main(["fit", "--config", "config.yaml", *flags])
    assert f"for {steps} steps" in capsys.readouterr().out


def test_a_variable_that_is_no_option_is_named(tmp_path, monkeypatch, capsys):
    from lightning_icl.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_FIT__TRIANER__MAX_STEPS", "5")
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "config.yaml"])
    assert stopped.value.code == 2
    assert "there is no option 'trianer.max_steps'; did you mean 'trainer.max_steps'?" in capsys.readouterr().err


def completed(script, words):
    """What bash would offer for the last of these words."""
    ask = f"{script}\nCOMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words) - 1}; _lightning_icl\n"
    done = subprocess.run(["bash", "-c", ask + 'echo "${COMPREPLY[@]}"'], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_and_their_options():
    script = bash_completion({"fit": ["--config", "--model.heads", "--model.mlp"], "study": ["--seeds"]})
    assert completed(script, ["lightning-icl", "st"]) == ["study"]
    assert completed(script, ["lightning-icl", "fit", "--model"]) == ["--model.heads", "--model.mlp"]
    assert completed(script, ["lightning-icl", "study", "--model"]) == []


@pytest.mark.slow
def test_the_completion_that_is_printed_knows_every_command(tmp_path):
    script = run_command("--print_completion", "bash", cwd=tmp_path).stdout
    assert completed(script, ["lightning-icl", "fit", "--model.h"]) == ["--model.heads", "--model.head_dim"]
    assert "--seeds" in completed(script, ["lightning-icl", "study", "--s"])
    assert "--ckpt_path" in completed(script, ["lightning-icl", "prune", "--c"])
