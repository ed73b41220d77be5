"""The reference pages name all that is public, with examples and configs that hold."""

import importlib.util
import inspect
import re
import textwrap
from types import FunctionType

import pytest
import yaml
from conftest import ROOT
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

import lightning_icl
from lightning_icl import callbacks
from lightning_icl.callbacks import FigureWriter, PredictionWriter, Recorder
from lightning_icl.cli import COMMANDS
from lightning_icl.functional import agreement, constructions, estimators, heads, probes, pruning, references, risk
from lightning_icl.functional.tasks import Law, features
from lightning_icl.studies import claims, figures

spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "_ext" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md"))}
NAMED = {
    (module, name): getattr(importlib.import_module(module), name)
    for page in PAGES.values()
    for kind, module, body in reference.BLOCK.findall(page)
    if kind == "names"
    for name in body.split()
}
CLASSES = {name: thing for (_, name), thing in NAMED.items() if isinstance(thing, type)}
PACKAGES = (estimators, references, probes, figures)
MODULES = (agreement, constructions, heads, pruning, risk, features, claims)
# Of these, what helps inside, and what only others derive from.
INSIDE = {"OfPruning", "Drawn", "several_heads", "write_figures"}
# What writes a reference of one's own is shown on the page about that; verdicts of a study by tests/studies.
WITHOUT_EXAMPLE = {"on_paths", "one_by_one", "strengths", "whatever_the_settings", "judge"}


def public():
    """The names of everything that a user may import."""
    yield from lightning_icl.__all__
    yield from callbacks.__all__
    for module in (*PACKAGES, *MODULES):
        place = module.__name__ + "$" * (module in MODULES)
        yield from (name for name, thing in vars(module).items() if _defined_in(place, thing))


def _defined_in(place, thing):
    here = re.match(place, getattr(thing, "__module__", None) or "")
    return here and isinstance(thing, type | FunctionType) and not re.match("_|check|refuse_", thing.__name__)


def test_all_that_is_public_is_on_a_page_once():
    named = [name for _, name in NAMED]
    assert set(public()) - set(named) == INSIDE
    assert len(named) == len(set(named))


def test_what_a_config_names_and_every_function_has_an_example():
    for (_, name), thing in NAMED.items():
        if reference.is_configured(thing) or inspect.isfunction(thing):
            assert ("\nExample:\n" in inspect.getdoc(thing)) == (name not in WITHOUT_EXAMPLE), name


IN_CONFIGS = {name: text for name, thing in CLASSES.items() if (text := reference.config_of(thing))}
IN_DOCSTRINGS = {
    name: textwrap.dedent(block[1])
    for name, thing in CLASSES.items()
    if (block := re.search(r"code-block:: yaml\n\n((?: {8}.*\n?)+)", inspect.getdoc(thing) or ""))
}


def test_all_that_a_config_can_name_is_shown_in_one():
    shown = (*reference.NAMED_IN_CONFIGS, Callback)
    wanted = {name for name, thing in CLASSES.items() if issubclass(thing, shown) and not inspect.isabstract(thing)}
    assert wanted == IN_CONFIGS.keys() | IN_DOCSTRINGS.keys()


def made(value):
    """What a config describes, without the command line, which takes seconds for all of them."""
    match value:
        case {"class_path": name, **rest}:
            return CLASSES[name](**made(rest.get("init_args", {})))
        case dict():
            return {key: made(part) for key, part in value.items()}
        case list():
            return [made(part) for part in value]
        case str() if value in CLASSES:
            return CLASSES[value]()
    return value


@pytest.mark.parametrize("name", sorted(IN_CONFIGS))
def test_a_config_makes_what_it_stands_beside(name):
    assert re.search(rf"\b{name}\b", IN_CONFIGS[name])
    assert made(yaml.safe_load(IN_CONFIGS[name]))


def test_the_command_line_reads_the_configs_of_callbacks():
    parser, callbacks_named = ArgumentParser(exit_on_error=False), []
    parser.add_argument("--trainer.callbacks", type=list[Callback])
    for key, kind in (("record", Recorder), ("figures", FigureWriter), ("predictions", PredictionWriter)):
        parser.add_class_arguments(kind, key)
    for text in IN_DOCSTRINGS.values():
        config = yaml.safe_load(text)
        if "trainer" in config:
            callbacks_named += config["trainer"]["callbacks"]
        else:
            parser.parse_object(config)
    assert len(parser.parse_object({"trainer": {"callbacks": callbacks_named}}).trainer.callbacks) == 9
    with pytest.raises(Exception, match="n_promts"):
        parser.parse_object({"trainer": {"callbacks": [{"class_path": "Circuits", "init_args": {"n_promts": 1}}]}})


def test_the_pages_of_options_and_configs_leave_nothing_out():
    headings = re.findall(r"^```\{made\} options (\w+)\n```", PAGES["options.md"], re.MULTILINE)
    assert set(headings) == {"fit", "validate", "test", "predict", *COMMANDS}
    folders = re.findall(r"^```\{made\} configs (\S+)\n```", PAGES["configs.md"], re.MULTILINE)
    made = "\n".join(reference.configs(folder, "") for folder in folders)
    for path in (ROOT / "configs").rglob("*.yaml"):
        said = re.search(rf"^### {path.relative_to(ROOT / 'configs')}\n\n(.+)", made, re.MULTILINE)
        assert len(said[1]) > 40


@pytest.mark.parametrize(
    ("command", "row"),
    [
        ("export", "`--ckpt_path` &nbsp; str, required\n: the checkpoint, such as RUN/checkpoints/last.ckpt."),
        ("prune", '`--keep` &nbsp; list\\["all" | list\\[int\\]\\], required\n: '),
    ],
)
def test_options_are_told_as_the_signature_has_them(command, row):
    parser = reference.command_parser(command, reference.command_function(command))
    assert row in reference.option_list(reference.options_of(parser).values())


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (float | list[float] | None, "float | list[float] | null"),
        (Law, "Law"),
        (inspect.signature(lightning_icl.PromptDataModule).parameters["n_points"].annotation, "int | tuple[int, int]"),
    ],
)
def test_a_type_reads_as_in_a_signature(hint, text):
    assert reference.type_text(hint) == text


def test_plain_text_stays_as_it_is_in_markdown():
    said = "w_j <x> with --data.task X, `a_b --c`"
    assert reference.escaped(said) == r"w\_j \<x\> with `--data.task` X, `a_b --c`"


def test_formulas_stay_text():
    lines = ["min ||y - X w||^2 over w_, X^T*y of ``a|b``", "", "    >>> 2 * x_"]
    reference.plain_formulas(None, "function", "f", reference.names, None, lines)
    assert lines == [r"min \|\|y - X w\|\|^2 over w\_, X^T\*y of ``a|b``", "", "    >>> 2 * x_"]
