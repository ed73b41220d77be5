"""What --help says: docstrings as they were written, and of a class how to name it on the command line."""

import inspect
import re
import sys
import textwrap
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Iterable

from jsonargparse import DefaultHelpFormatter
from jsonargparse._subcommands import ActionSubCommands
from jsonargparse._util import import_object

from lightning_icl.config_faults import known_classes

# What Lightning's subcommands do, and how they are called.
SUBCOMMANDS = {
    "fit": (
        "Train a model as a config says, and measure it at each validation.",
        """\
  The first time:
    lightning-icl fit --config configs/quickstart.yaml
  With other options, here or in a second file:
    lightning-icl fit --config configs/quickstart.yaml --model.heads '[1, 8]'
    lightning-icl fit --config configs/quickstart.yaml --config mine.yaml
  All options with their values:
    lightning-icl fit --config configs/quickstart.yaml --print_config
  What a class does and its options; without a name, which classes there are:
    lightning-icl fit --data.task.help SparseLinearRegression
    lightning-icl fit --trainer.callbacks.help""",
    ),
    "validate": (
        "Measure a trained model again, or with other analyses.",
        "    lightning-icl validate --ckpt_path RUN/checkpoints/last.ckpt",
    ),
    "test": (
        "Measure a trained model on prompts that no validation has used.",
        "    lightning-icl test --ckpt_path RUN/checkpoints/last.ckpt",
    ),
    "predict": (
        "Write a trained model's predictions, beside the prompts and the references' predictions, to a file.",
        "    lightning-icl predict --ckpt_path RUN/checkpoints/last.ckpt",
    ),
}
OF_ONE_CLASS = re.compile(r"Help for --([\w.]+)\.help=(\S+)")  # jsonargparse's description of --OPTION.help CLASS
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Examples?):\n", re.MULTILINE)
# Of reStructuredText, which Lightning's docstrings have.
ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`|`([^`<]+) <[^`]*>`_")
# Callbacks and loggers that are there without being named, or serve Lightning's own ends.
THERE = {"Bar", "NetworkSummary", "ProgressLines", "FigureWriter", "PredictionWriter", "Recorder"}
THERE |= {"BaseFinetuning", "BasePredictionWriter", "Checkpoint", "DummyLogger", "ProgressBar", "SaveConfigCallback"}
CLASSES_OF_A_LIST = ("trainer.callbacks", "trainer.logger")


class HelpText(DefaultHelpFormatter):
    """Keeps paragraphs and indented lines of a description, and leaves out each option's twin that adds to a list."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        blocks = re.split(r"\n\s*\n", text.strip("\n"))
        return "\n\n".join(b if re.search("^ ", b, re.MULTILINE) else textwrap.fill(b, width) for b in blocks)

    def _format_action_invocation(self, action: Action) -> str:
        strings = action.option_strings
        action.option_strings = [name for name in strings if not name.endswith("+")]
        try:
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = strings

    def _get_help_string(self, action: Action) -> str:
        return "" if isinstance(action, ActionSubCommands) else super()._get_help_string(action)

    def _get_type_str(self, action: Action) -> str | None:
        said = super()._get_type_str(action)
        return said and re.sub(r"<class '(.*?)'>", r"\1", said)


def docstring(component: object) -> str:
    """A docstring up to its arguments, and the YAML of its example."""
    said, *sections = SECTION.split(inspect.getdoc(component) or "")
    example = "".join(sections).partition(".. code-block:: yaml")[2]
    parts = [said.strip(), "For example:\n" + textwrap.indent(textwrap.dedent(example), "  ").rstrip()]
    said = "\n\n".join(parts[: 1 + bool(example)])
    return _plain(said)


def _plain(said: str) -> str:
    return ROLE.sub(lambda found: found[1] or found[2], said).replace("``", "")


def of_one_class(parser: ArgumentParser) -> str | None:
    """The whole help where it is of a base class, which is that of its classes; else None, and the parser says more."""
    told = OF_ONE_CLASS.fullmatch(parser.description or "")
    if told is None:
        return None
    option, path = told.groups()
    named = import_object(path)
    below = {name: of for name, of in known_classes(named).items() if of is not named}
    if inspect.isabstract(named) or (below and not inspect.signature(named).parameters):
        return "\n".join([*_of_classes(option, below), ""])
    name, command = named.__name__, next((arg for arg in sys.argv[1:] if not arg.startswith("-")), "fit")
    name = name if path.startswith(("lightning", "torch")) else f"{named.__module__}.{name}"
    plus = "+" * (option in CLASSES_OF_A_LIST)
    parser.usage = f"lightning-icl {command} --{option}{plus} {name} [--{option}.OPTION VALUE ...]"
    if option == "model.network":
        _as_network(parser, name, command)
    parser.description = docstring(named)
    head_options(parser)
    return None


def head_options(parser: ArgumentParser) -> None:
    """Call the group of a class' or function's options so, where the description has its first sentence already."""
    for group in parser._action_groups:
        first = _plain(group.title or "-")
        if " ".join((parser.description or "").split()).startswith(" ".join(first.split())):
            group.title = "options"


def _as_network(parser: ArgumentParser, name: str, command: str) -> None:
    """n_dims is the task's; and of the Transformer, which is the network unless told, options have shorter names."""
    for action in parser._actions:
        if action.dest == "model.network.n_dims":
            action.help = SUPPRESS
        elif name == "Transformer":
            action.option_strings = [flag.replace("model.network.", "model.") for flag in action.option_strings]
    if name == "Transformer":
        parser.usage = f"lightning-icl {command} [--model.OPTION VALUE ...]"


def _of_classes(option: str, classes: dict[str, type]) -> Iterable[str]:
    """A line for each, ours before others."""
    yield f"--{option} names one of these classes; --{option}.help NAME says more of one, and its options."
    named = {name: of for name, of in classes.items() if name not in THERE and not inspect.isabstract(of)}
    ours = [name for name, of in named.items() if of.__module__.startswith("lightning_icl")]
    for title, names in (("lightning_icl", ours), ("other packages", [name for name in named if name not in ours])):
        if names:
            yield from ("", f"{title}:")
        for name in names:
            first = " ".join(docstring(named[name]).partition("\n\n")[0].split()) if named[name].__doc__ else ""
            first = first if name in ours else re.sub(r"\. [A-Z].*", ".", first)  # of several sentences
            said = f"{name}: {first}" if first else name
            yield from textwrap.wrap(said, 79, initial_indent="  ", subsequent_indent="      ")
    yield from ("", f"A class of your own is named with its file, as in --{option} my_file.MyClass.")
