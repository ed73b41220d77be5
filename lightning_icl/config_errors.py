"""One sentence for what jsonargparse says in a page: the key, and the nearest valid one."""

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

from lightning_icl.functional.tasks import Task

TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
LISTS = r"(?:collections\.abc\.)?Sequence|list"


def sentence(message: str, parser: ArgumentParser) -> str:
    """Shorten a parser's message; what no rule knows keeps its first and last line."""
    rules = (_unknown_class_option, _unknown_class, _unknown_key, _wrong_type, _missing_file)
    for rule in rules:
        if found := rule(message, parser):
            return found
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """The nearest valid name as a question, or all of them where none is near."""
    valid = sorted(set(valid))
    near = get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"valid are: {', '.join(valid)}."


def _key(message: str) -> str:
    found = re.search(r'Parser key "([^"]+)"', message)
    return f"{found[1]}: " if found else ""


def _unknown_class_option(message: str, parser: ArgumentParser) -> str | None:
    """An option in init_args that the named class does not have."""
    found = re.search(r"class_path '([\w.]+)':\s+(?:.*\n\s*)*?Option '([\w.]+)' is not accepted", message)
    if not found:
        return None
    class_path, option = found.groups()
    name = class_path.rpartition(".")[2]
    return f"{_key(message)}{name} has no option {option!r}; {did_you_mean(option, _options(class_path))}"


def _options(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    signature = inspect.signature(getattr(__import__(module, fromlist=[name]), name))
    return [parameter for parameter in signature.parameters if parameter not in ("args", "kwargs")]


def _unknown_class(message: str, parser: ArgumentParser) -> str | None:
    """A class_path that names no class."""
    found = re.search(r"Expected a dot import path string: (\S+)", message) or re.search(
        r"(?:No module named|Unable to import|Problem with given class_path) '([\w.]+)'", message
    )
    if not found:
        return None
    known = [c.__name__ for base in (Task, Callback) for c in _subclasses(base) if not c.__name__.startswith("_")]
    return f"{_key(message)}there is no class {found[1]!r}; {did_you_mean(found[1], known)}"


def _subclasses(base: type) -> list[type]:
    return [c for direct in base.__subclasses__() for c in (direct, *_subclasses(direct))]


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
    """The parser's options, level by level: trainer.max_steps, trainer, ..."""
    dests: list[str] = [action.dest for action in parser._actions]
    return [key for key in dests if key not in ("help", "print_config")]


def _wrong_type(message: str, parser: ArgumentParser) -> str | None:
    """A value of the wrong type."""
    found = re.search(r"Expected an? (.+?)\. Got value: (.+)", message)
    key = re.search(r'Parser key "([^"]+)"', message)
    if not found or not key:
        return None
    return f"{key[1]} is {found[2]!r}, but it must be {_type_in_words(found[1])}."


def _type_in_words(annotation: str) -> str:
    if options := re.search(r"Literal\[(.+)\]", annotation):
        return "one of " + options[1].replace("'", "")
    name: Any = re.sub(r"<class '(.+)'>", r"\1", annotation)
    if re.fullmatch(LISTS, name):
        return "a list, such as [8, 8]"
    return TYPES.get(name, name)


def _missing_file(message: str, parser: ArgumentParser) -> str | None:
    found = re.search(r"File does not exist: '?([^'\n]+)'?", message)
    return f"the config file {found[1]} does not exist." if found else None
