"""What every law of regression problems promises, and the tensors that it may hold."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from lightning_icl.functional.errors import InputError, did_you_mean
from lightning_icl.functional.estimators import Moments, Posterior
from lightning_icl.functional.prompts import Prompt

Inputs = Float[Tensor, "batch points dims"]
Labels = Float[Tensor, "batch points"]
Weights = Float[Tensor, "batch dims"]
Targets = tuple[Labels, Weights | None]  # noise-free, and the weights behind them where they are linear in x
Self = TypeVar("Self", bound="Law")  # beartype takes typing.Self only where it decorates whole classes


@dataclass(frozen=True)
class Law(ABC):
    """A law of regression problems, which prompts are drawn from.

    Every law is a frozen dataclass: its signature is its configuration, and it prints the same text for the same
    options. What it needs besides, such as a pool of weights, follows from these.

    Args:
        n_dims: length of x.
    """

    n_dims: int

    def __init_subclass__(cls) -> None:
        if "__init__" in vars(cls):
            raise InputError(
                f"{cls.__name__} has an __init__ of its own, but the options of a task are the fields of a "
                "@dataclass(frozen=True): write them as annotations, such as degree: int = 2, and checks of them in "
                "__post_init__."
            )

    @abstractmethod
    def sample(self, batch_size: int, n_points: int, n_queries: int, generator: Generator) -> Prompt:
        """Draw ``batch_size`` fresh prompts on the generator's device, in torch's default dtype."""

    @abstractmethod
    def sample_targets(self, x: Inputs, generator: Generator) -> Targets:
        """Draw one target function per prompt; return its noise-free values at x, and its weights if it is linear."""

    @property
    def ridge_alpha(self) -> float | None:
        """The ridge strength this law implies, or None where the law implies none and it must be tuned."""
        return None

    @property
    def posterior_terms(self) -> int | None:
        """How many hypotheses the exact posterior of w averages over, or None where it has no closed form."""
        return None

    def posterior(self, m: Moments) -> Posterior:
        """The exact posterior mean of w given the examples behind each row of ``m``, with the log evidence."""
        raise InputError(f"{self!r} has no exact posterior in closed form: use the lasso or ridge instead.")

    @property
    @abstractmethod
    def covariance(self) -> Float[Tensor, "dims dims"] | None:
        """That of x, in float64, or None where prompts differ in it."""

    def fresh(self) -> "Law":
        """The law that validation draws from: this one, but for a finite pool of tasks the law behind the pool."""
        return self

    def options(self) -> set[str]:
        """The options that ``shifted`` can change; those of its inner laws too where it is made of laws."""
        own = {option.name for option in fields(self) if option.init}
        values = [getattr(self, name) for name in own]
        listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
        return own.union(*(law.options() for law in listed if isinstance(law, Law)))

    def shifted(self: Self, **changes: Any) -> Self:
        """A new law that differs in these options; one that it has not itself goes to each inner law that has it."""
        own = {option.name for option in fields(self) if option.init}
        shifted = replace(self, **{name: value for name, value in changes.items() if name in own})
        valid = shifted.options()
        for name in changes:
            if name not in valid:
                raise InputError(f"{type(self).__name__} has no option {name!r}; {did_you_mean(name, valid)}")
        inner = {name: value for name, value in changes.items() if name not in own}
        if inner:
            shifted = replace(shifted, **{name: _passed_on(getattr(shifted, name), inner) for name in own})
        return shifted

    @abstractmethod
    def truncated(self, n_dims: int) -> "Law":
        """The same law in fewer dimensions, for curricula."""


def _passed_on(value: Any, changes: dict[str, Any]) -> Any:
    """A law, or a list of them, with those of the changes for which it has an option; any other value as it is."""
    if isinstance(value, list):
        return [_passed_on(one, changes) for one in value]
    if isinstance(value, Law):
        return value.shifted(**{name: changes[name] for name in changes.keys() & value.options()})
    return value


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor made on the CPU, so that a seed means the same everywhere, and copied once to each device it is used on.

    Copied anew for every batch it would make each one wait for the device. Copies of the task start without copies.
    """

    value: Tensor
    _copies: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    def like(self, x: Tensor) -> Tensor:
        """The tensor on the device of ``x`` and in its dtype."""
        key = x.device, x.dtype
        if key not in self._copies:
            self._copies[key] = self.value.to(x)
        return self._copies[key]

    def __reduce__(self) -> tuple[type["Constant"], tuple[Tensor]]:
        return Constant, (self.value,)
