"""What is wrong with a value of a config, by the type of its option: the deepest part that does not fit, in a sentence.

Options and their types are those of the parser, and it is a parser that says whether a value fits a plain type.
"""

import collections.abc
import copy
import datetime
import inspect
import pydoc
import re
import sys
import traceback
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

from jsonargparse import ArgumentParser
from jsonargparse.typing import NotEmptyStr, PositiveInt

from lightning_icl.functional.errors import did_you_mean

IN_WORDS: dict[Any, str] = {  # in the order in which a sentence lists them
    bool: "true or false",
    int: "a whole number",
    PositiveInt: "a whole number from 1 up",
    float: "a number",
    str: "text",
    NotEmptyStr: "text that is not empty",
    datetime.timedelta: "a time, such as 00:12:00:00",
    tuple: "a list, such as [8, 16]",
    list: "a list, such as [8, 8]",
    collections.abc.Sequence: "a list, such as [8, 8]",
    dict: "a mapping, such as {noise_std: 1.0}, or {}",
    collections.abc.Mapping: "a mapping, such as {noisier: {shift: {noise_std: 1.0}}}",
}
NO_CLASSES = {*sys.stdlib_module_names, "jsonargparse"}  # modules of types that a class_path does not name
OF_A_CLASS = {"class_path", "init_args", "dict_kwargs"}


class Fault(NamedTuple):
    """An option that does not exist or is missing, or a value that does not fit: null and {} a parser overlooks."""

    kind: Literal["unknown", "missing", "overlooked", "wrong"]
    sentence: str
    key: str = ""


def actions(parser: ArgumentParser) -> dict[str, Any]:
    """The options of a parser by their keys, without --help and its like."""
    return {action.dest: action for action in parser._actions if action.default != "==SUPPRESS=="}


def type_of(action: Any) -> Any:
    """The type of an option."""
    return getattr(action, "_typehint", None) or action.type or Any


def faults(key: str, value: Any, annotation: Any) -> Iterator[Fault]:
    """What is wrong with a value; of several types that it may have, by the one it looks like."""
    members = _members(annotation)
    wrong = f"{key} is {shown(value)}, but it must be {_in_words(members)}."
    if value is None:
        if not any(member in (NoneType, Any, object) for member in members):
            yield Fault("overlooked", wrong)
        return
    inside = [list(_inside(key, value, member)) for member in members if _holds(member, value)]
    best = min(inside, key=lambda found: any(fault.kind == "wrong" for fault in found), default=None)
    if best is not None and all(fault.kind != "wrong" for fault in best):
        yield from best
    elif not any(_fits(value, member) for member in members if value != {} or not _is_class(member)):
        yield from best or [Fault("overlooked" if value == {} else "wrong", wrong)]


def is_mapping(annotation: Any) -> bool:
    """Whether a type is a mapping, or a union with one."""
    origins = [get_origin(member) or member for member in _members(annotation)]
    return any(is_typeddict(o) or (isinstance(o, type) and issubclass(o, collections.abc.Mapping)) for o in origins)


def shown(value: Any) -> str:
    """A value as a config would spell it."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    spelt = repr(value)
    return spelt if len(spelt) < 200 else f"{spelt[:200]}..."


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_class(member: Any) -> bool:
    """Whether a config names a class where this type is due."""
    return isinstance(member, type) and not is_typeddict(member) and member.__module__.split(".")[0] not in NO_CLASSES


def _holds(member: Any, value: Any) -> bool:
    """Whether a value has the form of a type that has others inside."""
    if isinstance(value, str):
        return value != "" and _is_class(member)
    if isinstance(value, dict):
        return is_mapping(member) or (value != {} and _is_class(member))
    origin = get_origin(member) or member
    listed = isinstance(origin, type) and issubclass(origin, collections.abc.Iterable) and origin is not str
    return isinstance(value, list) and listed and not is_mapping(member) and not _is_class(member)


def _fits(value: Any, member: Any) -> bool:
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=member)
    except ValueError:  # a type that no parser can tell of
        return True
    try:
        parser.parse_object({"value": copy.deepcopy(value)})
    except Exception:  # also what a module raises that a class is to be imported from
        return False
    return True


def _inside(key: str, value: Any, member: Any) -> Iterator[Fault]:
    """What is wrong in a mapping, in a list, or in a class and its arguments."""
    inner = get_args(member)
    if is_typeddict(member):
        yield from _in_typed_dict(key, value, member)
    elif _is_class(member):
        yield from _in_class(key, {"class_path": value} if isinstance(value, str) else value, member)
    elif isinstance(value, dict):
        for name, given in value.items():
            yield from faults(f"{key}.{name}", given, inner[1] if inner else Any)
    else:
        types = inner if get_origin(member) is tuple and Ellipsis not in inner else inner[:1] * len(value)
        if inner and len(types) != len(value):
            yield Fault("wrong", f"{key} is {shown(value)}, but it must have {len(types)} entries.")
        for given, of in zip(value, types, strict=False):
            yield from faults(key if any(map(_is_class, _members(of))) else f"an entry of {key}", given, of)


def _in_typed_dict(key: str, value: dict[str, Any], named: Any) -> Iterator[Fault]:
    types = get_type_hints(named)
    for option, given in value.items():
        if option in types:
            yield from faults(f"{key}.{option}", given, types[option])
        else:
            yield _no_option(key, named, option, types)
    if missing := sorted(named.__required_keys__ - value.keys()):
        yield Fault("missing", f"{key}: {named.__name__} needs {' and '.join(missing)}.")


def _no_option(key: str, named: Any, option: str, valid: dict[str, Any]) -> Fault:
    return Fault("wrong", f"{key}: {named.__name__} has no option {option!r}; {did_you_mean(option, valid)}")


def _in_class(key: str, value: dict[str, Any], base: type) -> Iterator[Fault]:
    name, given = value.get("class_path"), value.get("init_args", {})
    known = known_classes(base)
    try:
        named: Any = known.get(str(name)) or ("." in str(name) and pydoc.locate(str(name))) or None
    except pydoc.ErrorDuringImport as error:
        yield Fault("wrong", f"{key}: {name} cannot be imported: {_reason(error)}.")
        return
    if name is None:
        yield Fault("wrong", f"{key} has no class_path; {did_you_mean('', known)}")
    elif named is None:
        yield Fault("wrong", f"{key}: {_no_class(str(name), known, base)}")
    elif isinstance(named, type) and not issubclass(named, base):
        yield Fault("wrong", f"{key}: {name} is no {base.__name__}; {did_you_mean('', known)}")
    elif isinstance(named, ModuleType):
        yield Fault(
            "wrong", f"{key}: {name} is a module; name a class in it too, as in {str(name).strip('.')}.MyClass."
        )
    elif isinstance(named, type) and (lacking := getattr(named, "__abstractmethods__", None)):
        yield Fault("wrong", f"{key}: {named.__name__} must define {' and '.join(sorted(lacking))}.")
    elif misplaced := sorted(set(value) - OF_A_CLASS - {"kept"}):
        yield Fault("wrong", f"{key}: {misplaced[0]} must stand among the init_args of {named.__name__}.")
    elif not isinstance(given, dict):
        yield Fault("wrong", f"{key}: init_args is {shown(given)}, but it must be a mapping.")
    elif isinstance(named, type):  # and no function that makes one
        yield from _in_arguments(key, given, named, value.get("kept", []))


def _no_class(name: str, known: dict[str, type], base: type) -> str:
    """Why there is no class of this name: no such module, or none of it in there; and what is near."""
    module, _, named = name.rpartition(".")
    if not module:
        if name and Path(f"{name}.py").is_file():
            return f"{name} is a file; name a class in it too, as in {name}.MyClass."
        written = re.compile(rf"^class {re.escape(name)}\b", re.MULTILINE)
        files = [path for path in Path.cwd().glob("*.py") if name and written.search(_text(path))]
        near = f"did you mean {f'{files[0].stem}.{name}'!r}?" if files else did_you_mean(name, known)
        return f"there is no class {name!r}; {near}"
    for whole in (module[: at.start()] for at in re.finditer(r"\.|$", module)):
        if pydoc.locate(whole) is None:
            inside, _, missing = whole.rpartition(".")
            if inside:
                return f"there is no module {missing!r} in {inside}."
            alike = get_close_matches(whole, sorted(path.stem for path in Path.cwd().glob("*.py")), n=1, cutoff=0.75)
            near = f"; did you mean {'.'.join([*alike, *name.split('.')[1:]])!r}?" if alike else "."
            return f"there is no module {whole!r}, nor a file {whole}.py in this folder{near}"
    held = vars(pydoc.locate(module))
    usable = [each for each, of in held.items() if isinstance(of, type) and issubclass(of, base) and of is not base]
    return f"{module} has no class {named!r}" + (
        f"; {did_you_mean(named, usable)}" if usable else f", nor any {base.__name__}."
    )


def _reason(error: pydoc.ErrorDuringImport) -> str:
    """What a module raises where it is imported, and in which of its lines."""
    frames = [frame for frame in traceback.extract_tb(error.tb) if Path(frame.filename).parent == Path.cwd()]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error.value).__name__}: {error.value}".rstrip(".") + where


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _in_arguments(key: str, given: dict[str, Any], named: type, kept: list[str]) -> Iterator[Fault]:
    """What is wrong with the arguments of a class; those ``kept`` were given before, with another class."""
    parameters = inspect.signature(named).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind not in variable}
    valid = None
    for option, value in given.items():
        if value is None and option in parameters and parameters[option].default is None:
            continue
        if valid is None:  # which takes some milliseconds
            parser = ArgumentParser(exit_on_error=False)
            parser.add_class_arguments(named, fail_untyped=False)
            valid = actions(parser)
        if option in valid:
            yield from faults(f"{key}: {option}", value, type_of(valid[option]))
        else:
            yield _no_option(key, named, option, valid)
    linked = {"n_dims"} if key.startswith("model.network") else set()  # the task's
    if missing := sorted(needed - {*given, *kept, *linked}):
        yield Fault("missing", f"{key}: {named.__name__} needs {' and '.join(missing)} among its init_args.")


def known_classes(base: type) -> dict[str, type]:
    """The classes that a config can name by their short names where one of ``base`` is due."""
    below: list[type] = base.__subclasses__()
    usable = [] if inspect.isabstract(base) or base.__name__.startswith("_") else [base]
    return {c.__name__: c for c in usable} | {name: c for one in below for name, c in known_classes(one).items()}


def _in_words(members: list[Any]) -> str:
    """What a value must be, as a person would say it."""
    order = list(IN_WORDS)
    origins = {member: get_origin(member) or member for member in members if member is not NoneType}
    ordered = sorted(origins, key=lambda m: order.index(origins[m]) if origins[m] in order else len(order))
    choices = dict.fromkeys(str(choice) for m in ordered if origins[m] is Literal for choice in get_args(m))
    words = [_in_a_word(member, origins[member]) for member in ordered if origins[member] is not Literal]
    return " or ".join(dict.fromkeys([*([f"one of {', '.join(choices)}"] if choices else []), *words]))


def _in_a_word(member: Any, origin: Any) -> str:
    if is_typeddict(member):
        return f"a mapping of {', '.join(get_type_hints(member))}"
    if _is_class(member):
        return f"a class, such as {min(known_classes(member), default=member.__name__)}"
    if (of := get_args(member)) and _is_class(of[0]) and issubclass(origin, collections.abc.Iterable):
        return f"a list of classes, such as [{min(known_classes(of[0]), default=of[0].__name__)}]"
    if origin is collections.abc.Iterable:
        return "a list"
    return IN_WORDS.get(origin) or str(getattr(member, "__name__", member))
