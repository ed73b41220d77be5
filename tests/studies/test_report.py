"""What a study's report says, and that it is one file that loads nothing."""

import base64
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from synthetic import synthetic_table

from lightning_icl.callbacks.analysis import write_figure
from lightning_icl.studies import report
from lightning_icl.studies.figures import Drawn
from lightning_icl.studies.report import StudyPage, duration, write_report
from lightning_icl.studies.verdicts import Part, finding

PASSED = finding("Falls", "Risk falls with <heads>.", None, [Part("8 against 1", (0.5, 0.52, 0.51), "below", 1.0)])
PARTS = [
    Part("2 heads against 1", (0.9, 0.95, 0.93), "below", 1.0),
    Part("8 heads against 4", (2.0, 2.1, 2.2), "below", 1.0),
]
FAILED = finding("OneHead", "One head is worst.", {"data.task.noise_std": 0.4}, PARTS)
OPEN = finding("Pruned", "Pruning keeps the risk.", {"data.task.noise_std": 0.1}, [Part("x", (1.0,), "below", 1.1)])
TRIALS = pd.DataFrame(
    [
        ("good", "done", None, "line 3 of <it> cannot be read", 4000.0, "out/trials/good", "lightning-icl fit a"),
        ("bad", "failed", "d is 3 & <odd>.", None, 200.0, "out/trials/bad", "fit b"),
        ("late", "not run", None, None, None, "out/trials/late", "fit 'c'"),
    ],
    columns=["trial", "status", "error", "damage", "seconds", "folder", "command"],
)


class Page(HTMLParser):
    """The text, the tags and the addresses of a page; complains of tags that are not closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, source):
        super().__init__()
        self.text, self.tags, self.addresses, self.open = [], [], [], []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [value for key, value in attributes if key in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def table():
    return synthetic_table(np.random.default_rng(0), seeds=(3, 5), heads=((1, 1), (8, 8), (8, 1)), noise=(0.1, 0.4))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    figure = Figure(figsize=(1, 1))
    figure.subplots()
    write_figure(folder, "tiny", figure)
    return Drawn("A tiny figure", "Nothing over <2> seeds.", [folder / "tiny.png", folder / "tiny.svg"])


@pytest.fixture
def written(table, drawn, tmp_path):
    def write(**changes):
        page = {
            "name": "paper-quick",
            "about": "What is asked: 1 < 2?",
            "findings": [PASSED, FAILED, OPEN],
            "trials": TRIALS,
            "figures": [drawn],
            "table": table,
            "settings": {"scale": "quick", "overrides": {"trainer.max_steps": 800}, "seeds": [3, 5]},
            "versions": {"torch": "2.9.1", "ray": "not installed"},
            "command": "lightning-icl study --config 'a b.yaml'",
        }
        path = write_report(
            StudyPage(**(page | changes)), tmp_path / "study", datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
        )
        assert path == tmp_path / "study" / "report.html"
        return path.read_text(encoding="utf-8")

    return write


def test_every_verdict_stands_with_its_claim_and_number(written):
    page = Page(written())
    for found in (PASSED, FAILED, OPEN):
        assert f"{found.verdict} {found.statement} ({found.claim}) {found.number()}" in page.words
    assert page.words.index(PASSED.statement) < page.words.index(FAILED.statement)  # over all settings first
    assert "noise sd 0.4 : 1 FAIL" in page.words
    assert {"PASS", "FAIL", "UNDECIDED"} <= {tag[1].get("class", "").removeprefix("verdict ") for tag in page.tags}


def test_the_page_for_repositories_has_verdicts_risks_and_figures(written, table, tmp_path):
    written()
    said = (tmp_path / "study" / "report.md").read_text(encoding="utf-8")
    lines = said.splitlines()
    for found in (PASSED, FAILED, OPEN):
        (row,) = [line for line in lines if line.startswith(f"| **{found.verdict}** | {found.statement} | ")]
        assert found.number() in row
    assert lines.index("### noise sd 0.1") > lines.index("## Claims")
    assert "### noise sd 0.4" in lines
    assert sum(line.startswith(("| noise sd 0.1 |", "| noise sd 0.4 |")) for line in lines) == 2 * 3  # models
    assert "![tiny](figures/tiny.png)" in lines
    assert "Nothing over <2> seeds." in lines
    tables = [[line.count("|") for line in block.splitlines()] for block in said.split("\n\n") if block.startswith("|")]
    assert all(len(set(columns)) == 1 for columns in tables)
    assert len(tables) == 3 + 1


def test_a_claim_of_several_comparisons_shows_them_all(written):
    words = Page(written()).words
    for judged in FAILED.parts:
        assert f"{judged.part.label} {judged.number()} {judged.verdict}" in words
    assert "all 2 comparisons" in words
    assert "8 heads against 4, the worst of 2; 3 seeds" in words


def test_a_study_without_claims_says_so(written):
    assert "judges no claims" in Page(written(findings=[])).words


def test_failed_trials_stand_with_their_sentence_and_all_with_their_commands(written):
    words = Page(written()).words
    assert "3 trials: 1 done, 1 failed, 1 not run. Compute time 1 h 10 min." in words
    assert "bad d is 3 & <odd>." in words
    for trial in TRIALS.to_dict("records"):
        assert f"{trial['folder']} {trial['status']}" in words
        assert trial["command"] in words
    assert "1 damaged Trial What good line 3 of <it> cannot be read" in words
    assert "None failed." in Page(written(trials=TRIALS[:1])).words


def test_p_probings_are_counted_apart_and_every_status_is_told(written):
    p_probe = "lightning-icl p_probe '[a.ckpt]' --output b"
    others = [{"trial": f"p{i}", "status": s, "command": p_probe} for i, s in enumerate(["done", "not finished"])]
    blank = dict.fromkeys(TRIALS.columns)
    words = Page(written(trials=pd.concat([TRIALS, pd.DataFrame(others)], ignore_index=True))).words
    assert "3 trials and 2 P-probings: 2 done, 1 failed, 1 not finished, 1 not run. Compute" in words
    assert (
        "1 trial and 1 P-probing: 1 done, 1 lost."
        in Page(
            written(
                trials=pd.DataFrame([blank | others[0] | {"seconds": 1.0}, blank | {"trial": "a", "status": "lost"}])
            )
        ).words
    )


def test_nothing_is_loaded_from_elsewhere(written):
    source = written()
    page = Page(source)
    assert page.addresses
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "url(" not in source
    assert "@import" not in source


def test_links_within_the_page_lead_somewhere(written):
    page = Page(written())
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {address.removeprefix("#") for address in page.addresses if address.startswith("#")} <= targets


def test_what_users_wrote_is_text_and_no_markup(written):
    source = written(name="<b>bold</b>", about="<script>alert(1)</script>", command="a && b > c")
    page = Page(source)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.words
    assert "<b>bold</b>" in page.words
    assert "a && b > c" in page.words
    assert "Risk falls with <heads>." in page.words


def images(page):
    return [attributes["src"] for tag, attributes in page.tags if tag == "img"]


def test_figures_are_in_the_page_with_their_captions(written, drawn):
    page = Page(written())
    (image,) = images(page)
    kind, content = image.split(";base64,")
    assert kind == "data:image/svg+xml"
    assert base64.b64decode(content) == drawn.files[1].read_bytes()
    assert "Figure 1. A tiny figure Nothing over <2> seeds." in page.words


def test_a_figure_with_nothing_to_draw_says_what_it_needs(written):
    page = Page(written(figures=[Drawn("Probes", "nothing to draw: it needs LinearProbe.", [])]))
    assert images(page) == []
    assert "Figure 1. Probes nothing to draw: it needs LinearProbe." in page.words
    assert "This study draws no figures." in Page(written(figures=[])).words


def test_risks_of_every_model_in_every_setting_stand_with_their_ratios(written, table):
    words = Page(written()).words
    at_end = table[(table["step"] == table["step"].max()) & table["n_points"].isna()]
    for noise in (0.1, 0.4):
        for heads, label in (("[1, 1]", "1 head"), ("[8, 8]", "8 heads"), ("[8, 1]", "[8, 1]")):
            rows = at_end[(at_end["data.task.noise_std"] == noise) & (at_end["model.heads"] == heads)]
            risks = {
                name: rows[rows["metric"] == f"val/excess_risk/{name}"].set_index("seed")["value"]
                for name in ("transformer", "ridge", "lasso", "bayes")
            }
            model = risks.pop("transformer")
            half = 12.7062 * model.std() / math.sqrt(2)
            cells = [f"{model.mean():#.3g} [{model.mean() - half:#.3g}, {model.mean() + half:#.3g}]"]
            for other in risks.values():
                logs = np.log(model / other)
                ends = [logs.mean() + sign * 12.7062 * logs.std() / math.sqrt(2) for sign in (0, -1, 1)]
                cells.append("{:#.3g} [{:#.3g}, {:#.3g}]".format(*np.exp(ends)))
            assert f"noise sd {noise} {label} 2 {' '.join(cells)}" in words
    assert "over ridge over lasso over Bayes" in words


def test_a_table_without_references_or_risks_says_so(written, table):
    no_ridge = table[~table["metric"].isin(["val/excess_risk/ridge", "val/excess_risk/bayes"])]
    assert re.search(r"8 heads 2 [\d.]+ \[[^]]+\] - [\d.]+ \[[^]]+\] - ", Page(written(table=no_ridge)).words)
    of_heads = table[table["metric"].str.startswith("heads/")]
    assert "No model's excess risk was measured" in Page(written(table=of_heads)).words


def test_a_figure_that_could_not_be_drawn_says_why(written):
    page = Page(written(figures=[Drawn("Lost", "It could not be drawn: <KeyError>.", [])]))
    assert images(page) == []
    assert "Figure 1. Lost It could not be drawn: <KeyError>." in page.words


def test_a_drawing_that_is_too_large_is_shown_as_pixels(written, drawn, monkeypatch):
    monkeypatch.setattr(report, "LARGEST_SVG", 10)
    (image,) = images(Page(written()))
    kind, content = image.split(";base64,")
    assert kind == "data:image/png"
    assert base64.b64decode(content) == drawn.files[0].read_bytes()


def test_settings_versions_and_the_command_are_told(written):
    words = Page(written()).words
    assert "data.task.noise_std 0.1, 0.4" in words
    assert "model.heads [1, 1] (1 head), [8, 8] (8 heads), [8, 1]" in words
    assert "seed_everything 3, 5" in words
    assert "data.task.n_dims 16" in words
    assert "trainer.max_steps: 800" in words
    assert "torch 2.9.1" in words
    assert "ray not installed" in words
    assert "lightning-icl study --config 'a b.yaml'" in words
    assert "Written 2026-11-22 09:30 UTC" in words


def test_both_colour_schemes_and_small_and_printed_pages_have_rules(written):
    source = written()
    for rule in ("prefers-color-scheme: dark", "max-width: 40rem", "@media print", 'name="viewport"'):
        assert rule in source
    used = set(re.findall(r"var\((--\w+)\)", source))
    schemes = [set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{(.*?)\}", source, re.DOTALL)]
    assert len(schemes) == 3
    assert all(used == scheme for scheme in schemes)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (3570, "1 h 0 min"),
        (3599, "1 h 0 min"),
        (90_000, "25 h 0 min"),
    ],
)
def test_durations_are_said_in_words(seconds, text):
    assert duration(seconds) == text
