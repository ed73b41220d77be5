"""The examples in docstrings print what they say."""

import ast

import pytest
from conftest import ROOT
from docstrings import run_examples

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
FILES = {
    path: ast.parse(path.read_text())
    for folder in ("lightning_icl", "callbacks")
    for path in (ROOT / folder).rglob("*.py")
}
DOCSTRINGS = {
    f"{path.relative_to(ROOT)}::{getattr(node, 'name', '')}": said
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, DOCUMENTED) and ">>> " in (said := ast.get_docstring(node) or "")
}
OF_A_RUN = "lightning_logs/"  # tests/record/test_loading.py has one


@pytest.mark.parametrize("path", sorted({name.partition("::")[0] for name in DOCSTRINGS}))
def test_examples_of_a_file(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, said in DOCSTRINGS.items():
        if name.startswith(path + "::") and OF_A_RUN not in said:
            run_examples(name, said)


def test_a_wrong_example_fails():
    with pytest.raises(AssertionError, match=r"Got:\n    2\.5"):
        run_examples("wrong", ">>> 5 / 2\n2.4\n")
    run_examples("rounded", ">>> 5 / 2\n2.5001\n")
