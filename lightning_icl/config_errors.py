"""What is wrong with a command line, in one sentence: what was given, walked beside the options.

Of jsonargparse's own words only the first and the last line are used, where the walk finds nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, add_instantiator, get_loader

from lightning_icl.config_faults import Fault, actions, faults, is_mapping, shown, type_of
from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.record.folder import config_of

SHIPPED = "configs/quickstart.yaml"
Made = TypeVar("Made")


def sentence(message: str, parser: ArgumentParser, error: BaseException | None = None) -> str:
    """What a parser refuses, in one sentence; ``message`` is how it says so itself, and ``error`` why."""
    while error is not None:
        if isinstance(error, InputError):
            return str(error)
        error = error.__cause__
    found = list(_faults_of(parser, list(getattr(parser, "args", None) or [])))
    if unknown := {fault.key: fault.sentence for fault in found if fault.kind == "unknown"}:
        if len(unknown) == 1:
            return next(iter(unknown.values()))
        named = ", ".join(map(repr, list(unknown)[:6])) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
        return f"there are no options {named}: is this a config of lightning_icl? --help lists its options."
    if found:
        return found[0].sentence
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def check_overlooked(parser: ArgumentParser) -> None:
    """Refuse what a parser has passed over: null and {} where the type of an option has no place for them."""
    for fault in _faults_of(parser, list(getattr(parser, "args", None) or []), passed=True):
        if fault.kind == "overlooked":
            raise InputError(fault.sentence)


# What constructors have refused, in their own words: the error of a union hides them among those of its other types.
_refused: list[str] = []


def _made(class_type: type[Made], *args: Any, **kwargs: Any) -> Made:
    try:
        return class_type(*args, **kwargs)
    except (ValueError, ModuleNotFoundError) as error:  # a ValueError is, by convention, the word for a bad argument
        _refused.append(str(error) if isinstance(error, ValueError) else f"{class_type.__name__}: {error}")
        raise


add_instantiator(_made, object)


@contextmanager
def constructing() -> Iterator[None]:
    """What a constructor refuses within, in one sentence."""
    _refused.clear()
    try:
        yield
    except (ValueError, ModuleNotFoundError) as error:
        if "JSONARGPARSE_DEBUG" in os.environ or not (_refused or isinstance(error, ValueError)):
            raise
        raise InputError(_refused[0] if _refused else str(error)) from error


def _faults_of(parser: ArgumentParser, args: list[str], passed: bool = False) -> Iterator[Fault]:
    """What is wrong with the arguments of a command line, and with the files they name.

    Where the parser has ``passed`` them only what is null or {} is looked at, which takes no time.
    """
    given: dict[str, Any] = {}
    options, commands = actions(parser), _commands(parser)
    while args:
        flag, equals, text = args.pop(0).partition("=")
        if flag in commands:
            given, options, commands = {}, actions(commands[flag]), {}
        elif not flag.startswith("-"):
            if commands:
                yield Fault("wrong", f"there is no command {flag!r}; {did_you_mean(flag, commands)}")
        elif flag not in ("-h", "--help", "--print_config"):
            if not equals and args and not args[0].startswith("--"):
                text = args.pop(0)
            key = "config" if flag == "-c" else flag.lstrip("-")
            if not (equals or text) and getattr(options.get(key), "const", None):
                text = "true"
            if (option := key.removesuffix(".help")) != key and option in options:
                yield from (f for f in faults(option, text, type_of(options[option])) if f.kind == "wrong")
                continue
            is_config = isinstance(options.get(key), ActionConfigFile)
            for part, value in _unfolded("" if is_config else key, _file(text) if is_config else _read(text), options):
                yield from _faults_of_one(part, value, options, given, passed)
    if commands:
        yield Fault("missing", f"a command is missing: fit, validate, test or predict, such as fit --config {SHIPPED}.")
    if "data.task" in options and not given.get("data.task"):
        yield Fault("missing", f"data.task is missing: {_config_with_task(given.get('ckpt_path'))}.")
    for option, value in given.items():
        found = [] if passed else faults(option, value, type_of(options[option]))
        yield from (fault for fault in found if fault.kind == "missing")


def _config_with_task(ckpt_path: Any) -> str:
    """Which one could be named: that of the checkpoint's run, else one of ours."""
    with suppress(InputError):
        if isinstance(ckpt_path, str):
            return f"put the config of the checkpoint's run before the others: --config {config_of(ckpt_path)}"
    return f"name a task, or a --config that does, such as {SHIPPED}"


def _commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    return next((action.choices for action in parser._actions if isinstance(action.choices, dict)), {})


def _file(name: str) -> Any:
    """What a config file holds."""
    if "://" in name:
        return {}
    if not Path(name).is_file():
        raise InputError(f"the config file {name} does not exist.")
    try:
        held = get_loader("yaml")(Path(name).read_text())
    except OSError as error:
        raise InputError(f"the config file {name} cannot be read: {error.strerror}.") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"a config file is not valid YAML near line {line}: {error.problem}.") from error
    if not isinstance(held, dict):
        raise InputError(f"the config file {name} holds no options; write them as in model: {{d_model: 64}}.")
    return held


def _read(text: str) -> Any:
    """The list, mapping or null that an argument spells, or else its text."""
    try:
        value = get_loader("yaml")(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, (dict, list)) or (value is None and text.strip()) else text


def _unfolded(key: str, value: Any, options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The options in a mapping, each with its dotted key; and the keys in one that is none of an option."""
    of_option = any(f"{key}.".startswith(f"{option}.") for option in options) and not _is_group(key, options)
    if isinstance(value, dict) and value and not of_option:
        for name, inner in value.items():
            yield from _unfolded(f"{key}.{name}" if key else str(name), inner, options)
    elif key:
        yield key, value


def _is_group(key: str, options: dict[str, Any]) -> bool:
    return any(option.startswith(f"{key}.") for option in options)


def _faults_of_one(
    key: str, value: Any, options: dict[str, Any], given: dict[str, Any], passed: bool
) -> Iterator[Fault]:
    """What is wrong with one option, or a part of it, on top of those ``given`` so far, which it joins."""
    if _is_group(key, options):
        if value != {} and not (value and isinstance(value, str)):  # the name of a file with its options
            yield Fault("overlooked", f"{key} is {shown(value)}, but it must be a mapping of its options.")
        return
    parts = key.rstrip("+").split(".")
    heads = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    option = next((head for head in heads if head in options), None)
    if option is None:
        yield Fault("unknown", f"there is no option {key!r}; {did_you_mean(key, options)}", key)
        return
    action, below = options[option], parts[option.count(".") + 1 :]
    if len(below) > 1 and is_mapping(type_of(action)):
        whole = f"give it as a whole, such as --{option}.{below[0]} '{{...}}'."
        yield Fault("wrong", f"{option}: {'.'.join(below)!r} cannot be set alone; {whole}")
        return
    before = given.get(option, _plain(action.default))
    if key.endswith("+"):
        value = [*_listed(before), *_listed(value)]
    elif below:
        value = _with_part(before, below, value, is_mapping(type_of(action)))
    given[option] = whole = _merged(before, value)
    if (value is not None or action.default is not None) and (not passed or _has_empty(whole)):
        found = faults(option, _emptiness(whole) if passed else whole, type_of(action))
        yield from (fault for fault in found if fault.kind != "missing")


def _with_part(before: Any, below: list[str], value: Any, mapping: bool) -> Any:
    """What is set where a part is: of the last class in a list, and else of the one class or mapping."""
    if mapping:
        return {**(before or {}), below[0]: value}
    for part in reversed(below):
        if part != "init_args":
            value = {"class_path": value} if part == "class_path" else {"init_args": {part: value}}
    return [*before[:-1], _merged(before[-1], value)] if before and isinstance(before, list) else value


def _merged(before: Any, value: Any) -> Any:
    """A value given on top of another: of the same class its arguments are added to those before."""
    if isinstance(before, str) and isinstance(value, dict):
        before = {"class_path": before}
    if not isinstance(before, dict) or "class_path" not in before or not isinstance(value, (dict, str)):
        return value
    value = {"class_path": value} if isinstance(value, str) else value
    if not {"class_path", "init_args"} & value.keys():
        value = {"init_args": value}
    old, new = before.get("init_args") or {}, value.get("init_args", {})
    merged = {"class_path": before["class_path"], **value, "init_args": new}
    if str(merged["class_path"]).rpartition(".")[2] != str(before["class_path"]).rpartition(".")[2]:
        return {**merged, "kept": [*old, *before.get("kept", [])]}  # of these the new class takes what it knows
    if isinstance(old, dict) and isinstance(new, dict):
        merged["init_args"] = old | {name: _merged(old.get(name), inner) for name, inner in new.items()}
    return merged


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _has_empty(value: Any) -> bool:
    if isinstance(value, dict):
        return not value or any(map(_has_empty, value.values()))
    return value is None or (isinstance(value, list) and any(map(_has_empty, value)))


def _emptiness(value: Any) -> Any:
    """The parts of a value that are null or {}, and the classes they are options of."""
    if isinstance(value, dict):
        parts = {k: v for k, v in value.items() if k == "class_path" or _has_empty(v)}
        return {k: v if k == "class_path" else _emptiness(v) for k, v in parts.items()}
    return [_emptiness(part) for part in value if _has_empty(part)] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return value.as_dict()
    return [_plain(part) for part in value] if isinstance(value, list) else value
