"""lightning-icl calibrate: what it prints, and how it ends. What it measures: tests/instruments/test_calibration.py."""

import pytest

from lightning_icl import cli
from lightning_icl.commands import calibrate
from lightning_icl.instruments.calibration import Line

LINES = [
    Line("circuits", "GD", "a step of 0.2", "a step of 0.2", True),
    Line("linear probe", "GD", "no R_hat x", "R^2 " + 30 * "0.00, ", True),
    Line("circuits", "GD++", "a step of 0.2", "a step of -0.2", False),
]


@pytest.mark.parametrize(("lines", "status"), [(LINES[:2], None), (LINES, 1)])
def test_it_tells_every_line_below_its_network_and_fails_with_one(monkeypatch, capsys, lines, status):
    monkeypatch.setattr(calibrate, "calibration", lambda size, p_probing: iter(lines))
    if status is None:
        cli.main(["calibrate"])
    else:
        with pytest.raises(SystemExit) as stop:
            cli.main(["calibrate"])
        assert stop.value.code == status
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["GD", "  PASS  circuits: expected a step of 0.2; found a step of 0.2"]
    assert said[-1] == f"2 of {len(lines)} lines PASS."
    assert ("  FAIL  circuits: expected a step of 0.2; found a step of -0.2" in said) == (status == 1)
    assert max(map(len, said)) <= 80


def test_ctrl_c_is_one_sentence(monkeypatch, capsys):
    def interrupted(size, p_probing):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "calibration", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main(["calibrate"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "lightning-icl: SIGINT has stopped it.\n"


@pytest.mark.parametrize(("told", "probes"), [([], False), (["true"], False), (["false"], True)])
def test_p_probing_is_left_out_where_told(monkeypatch, told, probes):
    asked = []
    monkeypatch.setattr(
        calibrate, "calibration", lambda size, p_probing: iter(asked.append((size, p_probing)) or LINES[:1])
    )
    cli.main(["calibrate", "--scale", "small", "--skip_p_probing", *told])
    assert asked == [(calibrate.SIZES["small"], probes)]
