"""What --help says, of the command, of its subcommands and of one class."""

import inspect

import pytest

from lightning_icl import Transformer, cli
from lightning_icl.commands.p_probe import p_probe
from lightning_icl.help import docstring


@pytest.fixture
def told(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lightning-icl"])

    def said(*args):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*args])
        assert stopped.value.code == 0
        return capsys.readouterr().out

    return said


def test_the_command_says_what_it_is_the_first_thing_to_type_and_what_each_subcommand_does(told):
    said = told("--help")
    assert (
        said.index("How does a transformer") < said.index("fit --config configs/quickstart.yaml") < said.index("prune")
    )
    assert "Train a model as a config says" in said
    assert "Lightning Trainer" not in said
    assert "--print_config" not in said


def test_without_a_command_help_and_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lightning-icl"])
    with pytest.raises(SystemExit) as stopped:
        cli.main([])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("usage: lightning-icl COMMAND")
    assert captured.err.splitlines()[-1].startswith("lightning-icl: a command is missing")


def test_a_subcommand_begins_with_what_to_type(told):
    said = told("fit", "--help")
    assert said.index("The first time:\n    lightning-icl fit --config configs/quickstart.yaml\n") < 300
    assert "<class" not in said
    assert "heads+" not in said


@pytest.mark.parametrize(
    ("option", "words", "not_there"),
    [
        (
            ["--data.task.help", "SparseLinearRegression"],
            [
                "fit --data.task SparseLinearRegression [--data.task.OPTION",
                "Targets <w, x>",
                "options:\n",
                "--data.task.n_dims",
            ],
            ["``", "Example"],
        ),
        (
            ["--trainer.callbacks.help", "HeadImportance"],
            [
                "fit --trainer.callbacks+ HeadImportance",
                "Scores are leave_one_out",
                "    callbacks:\n      - {class_path: Hea",
            ],
            ["Args", ">>>", "code-block"],
        ),
        (
            ["--model.network.help", "Transformer"],
            ["fit [--model.OPTION", "  --model.d_model"],
            ["network.d_", "n_dims N"],
        ),
        (["--model.network.help", "GPT2"], ["fit --model.network GPT2 [", "--model.network.d_model"], ["n_dims N"]),
        (
            ["--data.task.help"],
            ["--data.task.help NAME", "  Mixture: Each", "my_file.MyClass"],
            ["LinearTask:"],
        ),
        (
            ["--trainer.callbacks.help"],
            ["lightning_icl:\n  ", "  HeadImportance: ", "other packages:\n", "  EarlyStopping: Monitor"],
            [":class:", "`", "  Bar", "  Recorder", "Abstract base"],
        ),
        (["--trainer.logger.help", "TensorBoardLogger"], ["\noptions:\n  --trainer.logger.save_dir"], ["`_"]),
    ],
    ids=" ".join,
)
def test_a_class_is_told_as_it_is_named_on_the_command_line(told, option, words, not_there):
    said = told("fit", *option)
    assert not [part for part in words if part not in said]
    assert not [part for part in not_there if part in said]


def test_a_class_that_is_not_there_has_no_help(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["lightning-icl"])
    with pytest.raises(SystemExit):
        cli.main(["fit", "--data.task.help", "Mixtur"])
    assert "data.task: there is no class 'Mixtur'; did you mean 'Mixture'?" in capsys.readouterr().err


def test_one_s_own_command_begins_with_its_docstring(told):
    said = told("p_probe", "--help")
    assert said.startswith("usage: lightning-icl p_probe [--OPTION VALUE ...]\n\nP-probing: train small")
    assert said.count("P-probing: train small") == 1
    assert "\nThe models are best trained alike" in said


@pytest.mark.parametrize("of", [Transformer, p_probe])
def test_a_docstring_ends_where_its_arguments_begin(of):
    assert docstring(of) == inspect.getdoc(of).partition("\nArgs:")[0].replace("``", "").strip()
