"""What the reference pages say of metrics and of tables, for the tests that have such."""

import re

from conftest import ROOT

from lightning_icl.record import Row, tag

PAGES = ROOT / "docs" / "reference"
FIELDS = ("layer", "head", "n_points", "stream")


def rows_below(page, heading):
    """The cells of the table below a heading, without those that name the columns."""
    part = re.search(
        rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE
    )
    lines = [line for line in part[1].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def check_metrics(table, heading, tags=None):
    """Every metric of the table is on the page, and every one of the page in the table, with the fields it says.

    ``tags`` are the scalars that TensorBoard has of them.
    """
    missing = set(table["metric"])
    for name, _, _, fields, shown in rows_below("metrics.md", heading):
        pattern = re.sub(r"<\w+>", "[^/]+", name.strip("`"))
        rows = table[table["metric"].str.fullmatch(pattern)]
        assert len(rows), f"nothing is called {name}"
        missing -= set(rows["metric"])
        for field in FIELDS:
            said = re.search(rf"\(?\b{field}\b", fields)
            there = rows[field].notna()
            assert there.all() if said and said[0] == field else said or not there.any(), (name, field)
        if tags is not None:
            cells = rows[[*Row._fields]].astype(object)
            logged = {tag(Row(*row)) in tags for row in cells.where(cells.notna(), None).itertuples(index=False)}
            assert logged == {"yes": {True}, "no": {False}, "part": {True, False}}[shown.partition(":")[0]], name
    assert not missing


def check_columns(table, heading):
    """The table has the columns of the page, in that order and of those types; those of config keys come last."""
    said = [(name.strip("`"), kind) for name, kind, _ in rows_below("table.md", heading) if name.startswith("`")]
    assert {name: str(table.dtypes[name]) for name, _ in said} == dict(said)
    others = [name for name in table.columns if name not in dict(said)]
    assert all(name.partition(".")[0] in ("data", "model", "trainer") for name in others)
