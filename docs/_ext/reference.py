"""What the reference is made of: Markdown from the code takes the place of a page's block ```{made} KIND ARGUMENT.

Kinds: options COMMAND; names MODULE, the names in the block's lines; about MODULE; keys MODULE NAME, of a TypedDict;
configs FOLDER.
"""

import ast
import importlib
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from lightning_icl.cli import COMMANDS, LightningICL, command_function, command_parser
from lightning_icl.functional.constructions import Construction
from lightning_icl.functional.pruning import PruningStrategy
from lightning_icl.functional.references import Reference
from lightning_icl.functional.tasks import Law, LinearTask, Spectrum, Task
from lightning_icl.network import InContextNetwork
from lightning_icl.studies.claims import Claim
from lightning_icl.studies.figures import StudyFigure

CONFIGS = Path(__file__).parents[2] / "configs"
BLOCK = re.compile(r"^```\{made\} (\w+) ?(.*?)\n(.*?)```$", re.DOTALL | re.MULTILINE)
# What a config can name, and what stands around it there.
NAMED_IN_CONFIGS: Mapping[type, Callable[[Any], dict[str, Any]]] = {
    Law: lambda named: {"data": {"task": named}},
    Spectrum: lambda named: {
        "data": {"task": {"class_path": "LinearRegression", "init_args": {"n_dims": 3, "spectrum": named}}}
    },
    Reference: lambda named: {"references": [named]},
    PruningStrategy: lambda named: {"strategies": [named]},
    Construction: lambda named: {"model": {"construction": named}},
    Claim: lambda named: {"claims": [named]},
    StudyFigure: lambda named: {"figures": [named]},
}
WITH_OPTIONS = (*NAMED_IN_CONFIGS, InContextNetwork, Callback)
SHARED = (LinearTask, Task, Construction)  # whose options are told once, with them
# What is Lightning's, whose help is long: of groups the class, whose defaults may be others than ours.
LIGHTNINGS: dict[str, Any] = {"checkpoint": ModelCheckpoint, "trainer": Trainer}
LIGHTNINGS |= dict.fromkeys(("ckpt_path", "weights_only", "verbose", "return_predictions"))
LINKS = {"data.task": "tasks.md", "model.network": "network.md", "trainer.callbacks": "callbacks.md"}


class _FoundError(Exception):
    """Lightning's parsers, before they parse anything."""


class _ParsersOnly(LightningICL):
    def parse_arguments(self, parser: ArgumentParser, args: Any) -> None:
        raise _FoundError({name: parser._subcommands_action.choices[name] for name in self.subcommands()})


@cache
def parsers() -> dict[str, ArgumentParser]:
    """The parser of every command."""
    try:
        _ParsersOnly([])
    except _FoundError as found:
        return found.args[0] | {name: command_parser(name, command_function(name)) for name in COMMANDS}
    raise AssertionError("the command line made no parser")


def options_of(parser: ArgumentParser) -> dict[str, Any]:
    """Its options by name; not those that come of others or only show help."""
    own = [action for action in parser._actions if hasattr(action, "_typehint") and not action.dest.endswith(".help")]
    return {action.dest: action for action in own if "-->" not in action.option_strings[0]}


def told(action: Any) -> tuple[Any, str]:
    """What tells one command's option from another's of that name."""
    return action.default, action.help


def type_text(hint: Any) -> str:
    """A type as its signature has it, without modules."""
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    text = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", text)
    text = re.sub(r"Literal\[(.*?)\]", lambda choices: choices[1].replace(", ", " | "), text)
    while (plain := re.sub(r"(?:Optional|Union)\[((?:[^][]|\[[^][]*\])*)\]", _union, text)) != text:
        text = plain
    return re.sub(r"\bNone(?:Type)?\b", "null", text).replace("'", '"')


def _union(found: re.Match[str]) -> str:
    parts = re.split(r", (?![^[]*\])", found[1])
    return " | ".join(parts + ["null"] * found[0].startswith("Optional"))


def default_text(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, Namespace) or hasattr(value, "__dataclass_fields__"):
        return str(value)
    return json.dumps(dict(value) if isinstance(value, Mapping) else value, default=str, ensure_ascii=False)


def option_list(actions: Iterable[Any], flag: str = "--") -> str:
    """Name, type, default and help of each; of Lightning's the first sentence that tells more than the default."""
    parts = []
    for action in actions:
        said = " ".join((action.help or "").split())
        group, _, name = action.dest.partition(".")
        default = "required" if action.required else f"default `{default_text(action.default)}`"
        if group in LIGHTNINGS:
            theirs = inspect.signature(LIGHTNINGS[group]).parameters[name].default if name else action.default
            default += f" (Lightning's: `{default_text(theirs)}`)" if theirs != action.default else ""
            plain = re.sub(r":\w+:`[~!.]*([^`]*)`", r"`\1`", said)
            sentences = [part for part in re.split(r"(?<=\.) ", plain) if not part.startswith("Default")]
            said = sentences[0].rstrip(".") + "." if sentences else ""
        link = f" ([classes]({LINKS[action.dest]}))" if action.dest in LINKS else ""
        head = f"`{flag}{action.dest}` &nbsp; {escaped(type_text(action._typehint))}, {default}"
        parts.append(f"{head}\n: {escaped(said)}{link}")
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Plain text for Markdown; options are code, and what stands between backquotes is already."""
    kept = {"`": str, "-": "`{}`".format}
    parts = re.split(r"(`+[^`]*`+|(?<!\S)--\w[\w.]*)", text)
    return "".join(
        kept[part[0]](part) if i % 2 else re.sub(r"([\\*_<>\[\]$#~])", r"\\\1", part) for i, part in enumerate(parts)
    )


def options(command: str, body: str) -> str:
    """The options of a command, group by group; of validate, test and predict where they differ from fit."""
    found = options_of(parsers()[command])
    if command in ("validate", "test", "predict"):
        fit = options_of(parsers()["fit"])
        as_in_fit = {name for name, action in fit.items() if name in found and told(action) == told(found[name])}
        own = [action for name, action in found.items() if name not in as_in_fit]
        missing = [f"`--{name}`" for name in fit if name not in found]
        return option_list(own) + (f"\n\nNot there: {', '.join(missing)}." if missing else "")
    groups: dict[str, list[Any]] = defaultdict(list)
    for name, action in found.items():
        groups[name.partition(".")[0] if command == "fit" and "." in name else ""].append(action)
    parts = []
    for group in sorted(groups, key=lambda name: [*groups].index(name) if name else -1):
        title = f"### {group}\n\n" if group else ""
        parts.append(title + option_list(groups[group]))
    return "\n\n".join(parts)


def names(module: str, body: str) -> str:
    """A list of names with a sentence each, and then everything of each."""
    found = {name: getattr(importlib.import_module(module), name) for name in body.split()}
    brief = [f"- [`{name}`](#{name.lower()}): {escaped(first_sentence(thing))}" for name, thing in found.items()]
    return "\n\n".join(["\n".join(brief), *(of_name(module, name, thing) for name, thing in found.items())])


def about(module: str, body: str) -> str:
    """A module's docstring."""
    return f"```{{eval-rst}}\n.. automodule:: {module}\n   :no-index:\n```"


def first_sentence(thing: Any) -> str:
    """Of its docstring."""
    said = " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[^.]\.)\s(?=[A-Z])", said)[0]


def of_name(module: str, name: str, thing: Any) -> str:
    """Its signature, docstring with example, options, and how a config names it."""
    kind = "autoclass" if isinstance(thing, type) else "autofunction"
    parts = [f"### {name}", f"```{{eval-rst}}\n.. {kind}:: {module}.{name}\n{_members(thing)}```"]
    if is_configured(thing) or thing in SHARED:
        bases = [base for base in SHARED if issubclass(thing, base) and thing is not base]
        told = {option for base in bases for option in inspect.signature(base).parameters}
        own = [action for name, action in class_options(thing).items() if name not in told or action.required]
        parts += [option_list(own, flag="")] * bool(own)
        parts += [f"It has the options of [{base.__name__}](#{base.__name__.lower()}) too." for base in bases[:1]]
        if in_config := config_of(thing):
            parts.append(f"```yaml\n{in_config}\n```")
    return "\n\n".join(parts)


def is_configured(thing: Any) -> bool:
    """Whether it is a class that a config can name."""
    return isinstance(thing, type) and issubclass(thing, WITH_OPTIONS) and not inspect.isabstract(thing)


def class_options(thing: type) -> dict[str, Any]:
    """The options of a class that a config names, with those that it inherits."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(thing)
    return options_of(parser)


def _members(thing: Any) -> str:
    """The public methods of a class itself that say something, but those of classes that configs name."""
    if not isinstance(thing, type) or is_configured(thing):
        return ""
    own = [
        name
        for name, value in vars(thing).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)) and value.__doc__
    ]
    return f"   :members: {', '.join(own)}\n" if own else ""


def config_of(thing: type) -> str | None:
    """The YAML that makes the object of its docstring's example."""
    around = next((around for base, around in NAMED_IN_CONFIGS.items() if issubclass(thing, base)), None)
    shown = re.findall(r"^ *(?:>>>|\.\.\.) ?(.*)", inspect.getdoc(thing) or "", re.MULTILINE)
    calls = [
        node
        for node in ast.walk(ast.parse("\n".join(shown)))
        if isinstance(node, ast.Call) and _called(node) == thing.__name__
    ]
    if around is None or not calls:
        return None
    return yaml.safe_dump(around(_named(calls[-1])), default_flow_style=None, sort_keys=False, width=100).strip()


def _called(node: ast.Call) -> str:
    return getattr(node.func, "id", "")


def _named(node: ast.expr) -> Any:
    """A call as a class_path with init_args, or its class alone; a list of such; any other value as it is."""
    match node:
        case ast.Call():
            arguments = {str(given.arg): _named(given.value) for given in node.keywords}
            return {"class_path": _called(node), "init_args": arguments} if arguments else _called(node)
        case ast.List():
            return [_named(entry) for entry in node.elts]
    return ast.literal_eval(node)


def keys(place: str, body: str) -> str:
    """The keys of a TypedDict and what its docstring says of them."""
    module, name = place.split()
    thing = getattr(importlib.import_module(module), name)
    said, types = docstring_parser.parse(thing.__doc__), get_type_hints(thing)
    parts = [escaped(" ".join((said.description or "").split()))]
    for about in said.params:
        kind = escaped(type_text(types[about.arg_name])) + ", required" * (about.arg_name in thing.__required_keys__)
        parts.append(f"`{about.arg_name}` &nbsp; {kind}\n: {escaped(' '.join((about.description or '').split()))}")
    assert [about.arg_name for about in said.params] == [*types], f"the docstring of {name} lists other keys"
    return "\n\n".join(parts)


def configs(folder: str, body: str) -> str:
    """What the comment at the head of each config says."""
    parts = []
    for path in sorted((CONFIGS / folder).glob("*.yaml")):
        lines = re.match(r"(?:#.*\n)*", path.read_text())[0].splitlines()
        said = "\n".join(re.sub("^# ?", "", line) for line in lines)
        commands = re.findall(r"^  +(lightning-icl .*)$", said, re.MULTILINE)
        said = escaped(" ".join(re.sub(r"^  +lightning-icl .*$", "", said, flags=re.MULTILINE).split()))
        shown = f"\n\n```text\n{chr(10).join(commands)}\n```" if commands else ""
        parts.append(f"### {path.relative_to(CONFIGS)}\n\n{said}{shown}")
    return "\n\n".join(parts)


MAKE = {"options": options, "names": names, "about": about, "keys": keys, "configs": configs}


@cache
def made(kind: str, argument: str, body: str) -> str:
    """What takes the place of a block."""
    return MAKE[kind](argument.strip(), body)


def make_all(app: Any) -> None:
    """Before any page is read, as autodoc puts defaults of its own into the signatures that options are made from."""
    for path in Path(app.srcdir, "reference").glob("*.md"):
        fill(app, path.stem, [path.read_text()])


def fill(app: Any, docname: str, source: list[str]) -> None:
    """Put what is made into a page."""
    source[0] = BLOCK.sub(lambda block: made(*block.groups()), source[0])


def plain_formulas(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Before a docstring is read as reStructuredText: |w|, X^T* and w_ mean no markup outside of code.

    The options of what a config can name stand in a list of their own; indented lines of a module's are formulas.
    """
    if isinstance(thing, type) and issubclass(thing, WITH_OPTIONS):
        lines[:] = _without_arguments(lines)
    if what == "module":
        lines[:] = re.sub(r"\n\n((?:    .*\n)+)", r"\n\n::\n\n\1", "\n".join([*lines, ""])).splitlines()
    code = False
    for i, line in enumerate(lines):
        indent = "    " if what == "module" else " " * 8
        code = line.startswith((indent, "    >>>", "    ...")) if line.strip() else code
        if not (code or line.lstrip().startswith((">>>", "..."))):
            parts = re.split(r"(``[^`]*``)", line)
            lines[i] = "".join(p if p.startswith("``") else re.sub(r"(\*+\w*|\||_\b)", r"\\\1", p) for p in parts)


def without_signature(app: Any, what: str, name: str, thing: Any, *rest: Any) -> tuple[str, str] | None:
    """Of what has a table of its options."""
    return ("", "") if isinstance(thing, type) and issubclass(thing, WITH_OPTIONS) else None


def _without_arguments(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        inside = line == "Args:" or (inside and (not line.strip() or line.startswith(" ")))
        if not inside:
            yield line


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", make_all)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", plain_formulas, priority=1)  # before napoleon
    app.connect("autodoc-process-signature", without_signature)
    return {"parallel_read_safe": True}
