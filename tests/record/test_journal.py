"""The file of lines: whatever harm is done to it costs the lines it was done to, and they are named."""

import json
import os
import random
import subprocess
import sys

import pytest
from conftest import ROOT

from lightning_icl.record import journal

LINES = [{"event": "started", "n": 1}, {"a": [1.5, None, "x"], "crc": "of a user"}, {"text": ', "crc": 12}'}, {"b": {}}]


@pytest.fixture
def path(tmp_path):
    for line in LINES:
        journal.append(tmp_path / journal.NAME, line)
    return tmp_path / journal.NAME


def test_what_is_appended_is_read(path):
    assert journal.read(path) == (LINES, [])
    assert [json.loads(line) for line in path.read_text().splitlines()]  # each is plain JSON besides


def test_no_file_and_an_empty_one_hold_nothing(tmp_path):
    assert journal.read(tmp_path / "none") == ([], [])
    (tmp_path / "empty").touch()
    assert journal.read(tmp_path / "empty") == ([], [])


def test_a_cut_costs_at_most_the_last_line(path):
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        lines, damaged = journal.read(path)
        n_whole = sum(end - 1 <= cut for end in ends)  # a line is whole before its line break
        assert lines == LINES[:n_whole]
        assert damaged == ([n_whole + 1] if cut > (ends[n_whole - 1] if n_whole else 0) else [])
        journal.append(path, {"later": cut})
        assert journal.read(path).lines == [*LINES[:n_whole], {"later": cut}]


def test_a_damaged_byte_costs_its_line_alone(path):
    whole, draw = path.read_bytes(), random.Random(0)
    for place in range(len(whole)):
        changed = draw.choice([b for b in range(256) if b != whole[place]])
        path.write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
        lines, damaged = journal.read(path)
        number = whole[:place].count(b"\n")
        spoilt = {number, number + 1} if whole[place] == ord("\n") else {number}  # two lines run into one
        assert lines == [line for i, line in enumerate(LINES) if i not in spoilt]
        assert damaged
        assert set(damaged) <= {number + 1, number + 2}


@pytest.mark.parametrize("fill", [b"", b"\x00" * 100, b"\xff\xfe{", b"{}\n[1]\n", b'{"a": 1}\n'])
def test_what_was_never_a_record_is_named_line_by_line(tmp_path, fill):
    path = tmp_path / journal.NAME
    path.write_bytes(fill)
    lines, damaged = journal.read(path)
    assert lines == []
    assert damaged == list(range(1, fill.rstrip(b"\n").count(b"\n") + 2)) * bool(fill)


def test_a_number_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        journal.append(tmp_path / journal.NAME, {"a": float("nan")})


def measured(step, command="fit"):
    return {"step": step, "context": {"command": command}, "rows": []}


def test_a_resume_takes_back_what_the_fit_measured_after_it_and_its_end():
    lines = [{"event": "started"}, measured(1), measured(2), measured(9, "validate"), {"event": "finished"}]
    resumed = {"event": "resumed", "kept_to": 1}
    assert journal.in_force([*lines, resumed, measured(3)]) == [lines[0], lines[1], lines[3], resumed, measured(3)]
    assert journal.in_force(lines) == lines


def test_a_fit_is_finished_from_its_end_to_the_next_resume(tmp_path):
    path = tmp_path / journal.NAME
    assert not journal.is_finished(tmp_path)
    for event, finished in (("started", False), ("finished", True), ("resumed", False), ("stopped", False)):
        journal.append(path, {"event": event, "kept_to": 0})
        assert journal.is_finished(tmp_path) == finished


def test_it_is_read_by_its_path_without_the_package(path):
    """As a study's waiting processes do, which must not import torch."""
    code = f"""
import runpy, sys
from pathlib import Path
journal = runpy.run_path({str(ROOT / "lightning_icl" / "record" / "journal.py")!r})
assert len(journal["read"](Path({str(path)!r})).lines) == {len(LINES)}
assert "torch" not in sys.modules and "lightning_icl" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)
