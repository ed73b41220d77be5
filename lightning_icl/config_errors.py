"""One sentence for what jsonargparse says in a page: the key, and the nearest valid one."""

import inspect
import pydoc
import re
import textwrap

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from lightning_icl.functional.constructions import Construction
from lightning_icl.functional.errors import did_you_mean
from lightning_icl.functional.pruning import PruningStrategy
from lightning_icl.functional.references import Reference
from lightning_icl.functional.tasks import Law, Spectrum
from lightning_icl.streams import ValidationStream
from lightning_icl.studies.plan import PProbingPlan, Resources, Scale

STREAM_OPTIONS = ValidationStream.__annotations__
SCALE_OPTIONS = [*Scale.__annotations__, *Resources.__annotations__, *PProbingPlan.__annotations__]
# Lines of a union's list of errors that only say which type each of its parts is.
NO_REFUSAL = r"Expected|Not a valid subclass|Problem with|Does not validate|a (class|dict) "
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": "a mapping, such as {noise_std: 1.0}, or {}",
    "tuple": "a list, such as [8, 16]",
    "list": "a list, such as [8, 8]",
    "collections.abc.Sequence": "a list, such as [8, 8]",
    "collections.abc.Mapping": "a mapping, such as {noisier: {shift: {noise_std: 1.0}}}",
}


def sentence(message: str, parser: ArgumentParser) -> str:
    """Shorten a parser's message; what no rule knows keeps its first and last line."""
    message = _innermost(message)
    of_classes = (_unknown_class_option, _required_class_option)
    rules = (*of_classes, _scale, _validation_stream, _wrong_type, _unknown_class, _unknown_key, _none_of_several)
    for rule in (*rules, _missing, _bad_yaml):
        if found := rule(message, parser):
            return found
    message = re.sub(r"Call to compute_fn of link .+ failed: ", "", message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def _innermost(message: str) -> str:
    """The part about the most deeply nested option, such as one of a reference in the options of a callback."""
    lines = message.splitlines()
    path: list[tuple[int, str]] = []
    deepest: tuple[int, str, int] = (-1, "", 0)
    for i, line in enumerate(lines):
        if found := re.match(r'(\s*)Parser key "([^"]+)":', line):
            path = [*((indent, key) for indent, key in path if indent < len(found[1])), (len(found[1]), found[2])]
            deepest = max(deepest, (len(path), ": ".join(key for _, key in path), i), key=lambda place: place[0])
    if deepest[0] < 2:
        return message
    indent = len(lines[deepest[2]]) - len(lines[deepest[2]].lstrip())
    inside = []
    for line in lines[deepest[2] + 1 :]:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        inside.append(line)
    return f'Parser key "{deepest[1]}":\n' + textwrap.dedent("\n".join(inside))


def _key(message: str) -> str:
    """The option a message is about, with a colon."""
    found = re.search(r'Parser key "([^"]+)"', message)
    return f"{found[1]}: " if found else ""


def _unknown_class_option(message: str, parser: ArgumentParser) -> str | None:
    """An option in init_args that the named class does not have."""
    found = re.search(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message)
    if not found:
        return None
    class_path, option = found.groups()
    name = class_path.rpartition(".")[2]
    return f"{_key(message)}{name} has no option {option!r}; {did_you_mean(option, _options(class_path))}"


def _required_class_option(message: str, parser: ArgumentParser) -> str | None:
    """An option that the named class cannot do without."""
    pattern = r"class_path '[\w.]*?(\w+)':\s+the following arguments are required: ([\w, ]+)"
    if found := re.search(pattern, message):
        return f"{_key(message)}{found[1]} needs {found[2]} among its init_args."
    return None


def _options(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    named = getattr(__import__(module, fromlist=[name]), name)
    return [parameter for parameter in inspect.signature(named).parameters if parameter not in ("args", "kwargs")]


def _scale(message: str, parser: ArgumentParser) -> str | None:
    """An option of a study's scale that does not exist, or one it cannot do without."""
    if _key(message) != "scales: ":
        return None
    if found := re.search(r"Unexpected keys: \{'(.+?)'", message):
        return f"scales: a scale has no option {found[1]!r}; {did_you_mean(found[1], SCALE_OPTIONS)}"
    if found := re.search(r"Missing required keys: \{(.+?)\}", message):
        missing = " and ".join(sorted(re.findall(r"'(\w+)'", found[1])))
        return f"scales: a scale needs {missing}, such as {{base: [configs/quickstart.yaml], seeds: [1, 2, 3]}}."
    return None


def _validation_stream(message: str, parser: ArgumentParser) -> str | None:
    """An option of a validation stream that does not exist, its n_points, or a flag for a part of a stream."""
    as_flag = "give a stream as a whole, such as --data.validation.noisier '{shift: {noise_std: 1.0}}'."
    if found := re.search(r"Unexpected keys: \{'(.+?)'.*\}\. Got value", message):
        if "." in found[1]:
            return f"{_key(message)}{found[1]!r} cannot be set alone; {as_flag}"
        return f"{_key(message)}a stream has no option {found[1]!r}; {did_you_mean(found[1], STREAM_OPTIONS)}"
    if found := re.search(r'"data\.validation":\s+Expected a <class \'dict\'>\. Got value: (.+)', message):
        return f"data.validation is {found[1]!r}, but it must be a mapping; {as_flag}"
    if _key(message) == "data.validation: " and "Subtypes: [<class 'int'>, tuple[int, int]]" in message:
        return _none_of_several(message.replace("data.validation", "data.validation: n_points"), parser)
    return None


def _unknown_class(message: str, parser: ArgumentParser) -> str | None:
    """A class_path that names no class."""
    found = re.search(r"Expected a dot import path string: (\S+)", message) or re.search(
        r"(?:No module named|Unable to import) '([\w.]+)'", message
    )
    if not found:
        return None
    bases = (Law, Spectrum, Callback, Logger, Reference, Construction, PruningStrategy, *_named_bases(message))
    wanted = [base for base in bases if f"{base.__name__}'>" in message or f"{base.__name__}]" in message]
    known = [c.__name__ for base in wanted or bases for c in _subclasses(base) if _is_usable(c)]
    return f"{_key(message)}there is no class {found[1]!r}; {did_you_mean(found[1], known)}"


def _named_bases(message: str) -> list[type]:
    """The base classes of a list that a message tells of, where they are ours."""
    named = map(pydoc.locate, re.findall(r"list\[(lightning_icl\.[\w.]+)\]", message))
    return [base for base in named if isinstance(base, type)]


def _is_usable(named: type) -> bool:
    return not named.__name__.startswith("_") and not inspect.isabstract(named)


def _subclasses(base: type) -> list[type]:
    direct: list[type] = base.__subclasses__()
    return [found for c in direct for found in (c, *_subclasses(c))]


def _unknown_key(message: str, parser: ArgumentParser) -> str | None:
    """A key, in a file or as a flag, that is no option of the subcommand."""
    patterns = (
        r"does not accept option '([\w.]+)'",
        r"unrecognized arguments?: --([\w.]+)",
        r"[Kk]ey ['\"]([\w.]+)['\"] is not expected",
        r"Option '([\w.]+)' is not accepted",
    )
    found = next(filter(None, (re.search(pattern, message) for pattern in patterns)), None)
    if not found:
        return None
    return f"there is no option {found[1]!r}; {did_you_mean(found[1], _keys(parser))}"


def _keys(parser: ArgumentParser) -> list[str]:
    """The options of the parser and of its subcommands, as dotted keys."""
    keys: list[str] = []
    for action in parser._actions:
        keys.append(action.dest)
        for subparser in getattr(action, "_name_parser_map", {}).values():
            keys.extend(_keys(subparser))
    return [key for key in keys if key not in ("help", "print_config", "print_shtab", "subcommand")]


def _wrong_type(message: str, parser: ArgumentParser) -> str | None:
    """A value of the wrong type, where one type is right."""
    found = re.search(r"Expected an? (.+?)\. Got value: (.+)", message)
    keys = re.findall(r'Parser key "([^"]+)"', message)
    if not found or not keys:
        return None
    return f"{': '.join(keys)} is {found[2]!r}, but it must be {_type_in_words(found[1])}."


def _type_in_words(annotation: str) -> str:
    if options := re.search(r"Literal\[(.+)\]", annotation):
        return "one of " + options[1].replace("'", "")
    name = re.sub(r"<class '(.+)'>", r"\1", annotation)
    return TYPES.get(name, name)


def _none_of_several(message: str, parser: ArgumentParser) -> str | None:
    """A value that fits none of several types, or a class among them that refused its arguments."""
    if "Union subtypes" not in message:
        return None
    bullets = re.findall(r"^\s*- (.+)$", message.partition("Errors:")[2], flags=re.MULTILINE)
    refusals = [b for b in bullets if not re.match(NO_REFUSAL, b)]
    if refusals:
        return f"{_key(message)}{refusals[0]}"
    expected = [found[1] for b in bullets if (found := re.match(r"Expected an? (.+)", b)) and "NoneType" not in b]
    value = message.rpartition("Given value: ")[2].strip()
    return f"{_key(message)[:-2]} is {value!r}, but it must be {' or '.join(map(_type_in_words, expected))}."


def _missing(message: str, parser: ArgumentParser) -> str | None:
    """A file, a required option or a subcommand that is not there."""
    if found := re.search(r"File does not exist: '?([^'\n]+)'?", message):
        return f"the config file {found[1]} does not exist."
    no_task = r'Parser key "data\.task":\s+Not a valid subclass of Law\. Got value: None'
    if re.search(no_task, message) or re.search(r"arguments? (?:is|are) required: (?:\w+\.)?(data\.task)", message):
        return "data.task is missing: name a task, or a --config that does, such as configs/quickstart.yaml."
    if found := re.search(r"invalid choice: '(.+?)' \(choose from (.+)\)", message):
        return f"there is no command {found[1]!r}; {did_you_mean(found[1], re.findall(r'[a-z_]+', found[2]))}"
    if "subcommand" in message and "not provided" in message:
        return "a command is missing: fit, validate, test or predict, such as fit --config configs/quickstart.yaml."
    return None


def _bad_yaml(message: str, parser: ArgumentParser) -> str | None:
    if not message.startswith("Problems parsing config"):
        return None
    line = re.findall(r"line (\d+)", message)
    return f"a config file is not valid YAML near line {line[-1] if line else '?'}: {message.splitlines()[-2].strip()}."
