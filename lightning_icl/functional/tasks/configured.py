"""Objects that are their configuration: they print it, and can be rebuilt with parts of it changed."""

import inspect
from abc import ABC
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from lightning_icl.functional.errors import InputError

Self = TypeVar("Self", bound="Configured")  # beartype takes typing.Self only where it decorates whole classes


class Configured(ABC):
    """Remembers the arguments it was built with.

    Attributes:
        fixed_options: options of a base class that this class sets itself, so that they are not its own.
    """

    fixed_options: ClassVar[frozenset[str]] = frozenset()
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    # Here and not in a class that has an __init__: jsonargparse would read the options off this signature.
    def __new__(cls: type[Self], *args: Any, **kwargs: Any) -> Self:
        """Record the arguments; copy and pickle call this without any and restore the record with the state."""
        instance = super().__new__(cls)
        instance._arguments = (args, kwargs)
        return instance

    def __repr__(self) -> str:
        """The public attributes, without tensors: the same text for the same configuration."""
        shown = {n: v for n, v in vars(self).items() if not n.startswith("_") and not isinstance(v, Tensor)}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def option_names(cls) -> set[str]:
        """The constructor's options, those that it forwards as keywords to its bases included."""
        names: set[str] = set()
        for base in cls.__mro__:
            if "__init__" not in vars(base):
                continue
            parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                break
        return names - cls.fixed_options

    def rebuilt(self: Self, **changes: Any) -> Self:
        """A new object of this class from the same arguments but for ``changes``."""
        args, kwargs = self._arguments
        positional = list(inspect.signature(type(self).__init__).parameters)[1:]
        return type(self)(**(dict(zip(positional, args, strict=False)) | kwargs | changes))


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name} is {value!r}, but it must be one of {', '.join(choices)}.")
