"""What the terminal says while a command works, with and without a terminal."""

import io
import logging
import sys
from types import SimpleNamespace

from conftest import small_data, small_module, small_trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from lightning_icl import terminal
from lightning_icl.terminal import Bar, ProgressLines, network_lines, progress, progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_move_where_stdout_and_stderr_are_terminals_with_a_cursor(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(progress_bar(), Bar)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(progress_bar(), ProgressLines)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal.moves()


def test_without_a_terminal_lines_tell_how_far_it_is_ever_more_rarely(monkeypatch, capsys):
    clock = iter([0, *range(4, 4 * 100, 4)])  # four seconds an item
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    assert list(progress(range(50), "probes")) == list(range(50))
    said = capsys.readouterr().err
    assert not {"\r", "\x1b"} & set(said)
    assert [line.partition(",")[0] for line in said.splitlines()] == [f"probes: {n} of 50" for n in (3, 6, 12, 24, 48)]
    assert said.splitlines()[0].endswith("about 0:03:08 left")


def test_a_fit_without_a_terminal_has_a_line_for_each_validation(tmp_path, capsys):
    trainer = small_trainer(
        tmp_path,
        [ProgressLines(), terminal.NetworkSummary()],
        val_check_interval=2,
        enable_progress_bar=True,
        max_steps=5,
    )
    trainer.fit(small_module(), small_data())
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("step")]
    assert [line.partition(" after")[0] for line in lines] == ["step 2 of 5", "step 4 of 5", "step 5 of 5"][
        : len(lines)
    ]
    assert len(lines) >= 2
    assert all("val/excess_risk/transformer" in line for line in lines)
    assert "v_num" not in captured.out
    assert not {"\r", "\x1b"} & set(captured.out + captured.err)
    trainer.validate(trainer.lightning_module, trainer.datamodule, verbose=False)
    assert "step" not in capsys.readouterr().out


def test_the_summary_leaves_out_what_has_no_weights_and_tells_what_is_frozen():
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    network = nn.ModuleDict({"layers": layers, "no_weights": nn.ReLU(), "out": nn.Linear(2, 1, bias=False)})
    network.position = nn.Parameter(nn.Linear(1, 3).weight.data)
    network["out"].requires_grad_(False)
    assert network_lines(network) == [
        "  position  Parameter    3 weights",
        "  layers    2 x Linear  12 weights",
        "  out       Linear       2 weights, 2 of them not trained",
        "  in all    ModuleDict  17 weights, 2 of them not trained",
    ]


def test_adverts_are_dropped_and_other_words_stay(caplog):
    terminal.quiet()
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        rank_zero_info("💡 Tip: buy this.")
        rank_zero_info("Restored all states.")
    assert [record.getMessage() for record in caplog.records] == ["Restored all states."]


def test_a_bars_line_has_ended_before_what_is_said_on_stderr(monkeypatch):
    done = []
    bar = Bar()
    bar.train_progress_bar = SimpleNamespace(close=lambda: done.append("closed"))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(flush=lambda: done.append("flushed")))
    bar.on_train_end(None, None)
    assert done == ["closed", "flushed"]
