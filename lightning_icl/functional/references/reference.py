"""What a reference estimator is: options, a case it is bound to, settings chosen on other prompts, and weights."""

import copy
import inspect
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.errors import InputError, check_each_once
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import Law

__all__ = [
    "Case", "LinearReference", "Reference", "errors", "on_paths", "one_by_one", "strengths", "tuned",
    "whatever_the_settings",
]  # fmt: skip

Self = TypeVar("Self", bound="Reference")  # beartype takes typing.Self only where it decorates whole classes
Setting = Float[Tensor, "parameters sizes"]
Settings = Float[Tensor, "settings parameters sizes"]
Fit = Float[Tensor, "batch sizes dims"]
Fits = Float[Tensor, "settings batch sizes dims"]
Solver = Callable[[Settings], Fits]
Candidates = Sequence[int] | Sequence[float] | Float[Tensor, "candidates sizes"]


class Case(NamedTuple):
    """What a reference estimator may know besides the examples of a prompt.

    Attributes:
        task: the law of the prompts it is scored on.
        trained_on: the law the model was trained on; another one where a pool or a shift stands between them.
        depth: number of layers of the model it is compared with; 0 where it shows none.
    """

    task: Law
    trained_on: Law
    depth: int


class Reference(ABC):
    """A reference estimator: options in the constructor, ``None`` for those the law implies or that are tuned.

    It is used in two steps: ``bound`` to a case, then ``tuned`` (below) with others. ``name`` is what it is logged by,
    ``in_words``, where options may stand in braces, what figures and tables call it.
    """

    name: ClassVar[str]
    in_words: ClassVar[str]
    main: ClassVar[str] = ""
    unnamed: ClassVar[tuple[str, ...]] = ()  # options that the key tells in another way, or not at all
    _case: Case | None = None

    @property
    def title(self) -> str:
        """Its name in words, with its options."""
        return self.in_words.format(**vars(self))

    @property
    def key(self) -> str:
        """Its name in logs and files, with the options it was given: no two of a list may share one.

        The ``main`` option stands alone, others by their name where they differ from the default.
        """
        found, options = [self.name], inspect.signature(type(self)).parameters
        for option in sorted(options.keys() - self.unnamed, key=[self.main, *options].index):
            value = getattr(self, option, None)
            if isinstance(value, list):
                found.append(f"given_{option}")
            elif value is not None and (option == self.main or value != options[option].default):
                text = f"{value:g}" if isinstance(value, float) else str(value)
                found.append(text if option == self.main else f"{option}_{text}")
        return "_".join(found)

    def label(self, same: Sequence["Reference"] = ()) -> str:
        """Its name in figures and tables, with its settings: its own, or those of the ``same`` in other cases."""
        return self.title

    def check(self, case: Case) -> None:
        """Refuse a case this estimator cannot serve, before any work is done."""
        return

    def bound(self: Self, case: Case) -> Self:
        """The same estimator for this case; raises InputError for one it cannot serve."""
        self.check(case)
        copied = copy.copy(self)
        copied.__dict__["_case"] = case  # which is no option, that nobody may change
        return copied

    @property
    def case(self) -> Case:
        """What it is bound to."""
        if self._case is None:
            raise InputError(f"{type(self).__name__} is bound to no case yet: reference.bound(case) comes first.")
        return self._case

    @abstractmethod
    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        """Its predictions of f at the targets."""


class LinearReference(Reference):
    """One that estimates weights, under settings that may be chosen separately for each number of examples.

    Attributes:
        setting: what was chosen.
        setting_names: its parameters by name: "steps" and "features" are whole numbers. One path of solutions serves
            all values of the last.
    """

    setting_names: ClassVar[tuple[str, ...]] = ()
    setting: Setting = torch.zeros(0, 0, dtype=torch.float64)

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        """The values that the setting of this name may have, for every number of examples or alike for all."""
        raise NotImplementedError(f"{type(self).__name__} has no candidates for {name}")

    @abstractmethod
    def solver(self, problems: Problems) -> Solver:
        """The weights w_hat of the problems as a function of any settings, (settings, parameters, sizes) on the CPU."""

    def grid(self, tuning: Problems) -> Settings:
        """The settings to choose from, all combinations of the candidates; kept on the CPU, in float64."""
        n_sizes = len(tuning.sizes)
        if not self.setting_names:
            return torch.zeros(1, 0, n_sizes, dtype=torch.float64)
        values = [torch.as_tensor(self.candidates(name, tuning), dtype=torch.float64) for name in self.setting_names]
        places = torch.meshgrid(*(torch.arange(len(v)) for v in values), indexing="ij")
        pairs = zip(values, places, strict=True)
        return torch.stack([v.view(len(v), -1).expand(-1, n_sizes)[place.flatten()] for v, place in pairs], dim=1)

    def at(self: Self, setting: Setting) -> Self:
        """The same estimator under these settings."""
        copied = copy.copy(self)
        copied.__dict__["setting"] = setting
        return copied

    def weights(self, problems: Problems) -> Fit:
        """w_hat from the first k examples, for every k of the problems' sizes."""
        if len(self.setting) != len(self.setting_names):
            raise InputError(
                f"{type(self).__name__} has no settings yet: tuned([reference.bound(case)], problems) first."
            )
        settings = self.setting[None, :, : len(problems.sizes)]
        return torch.cat([self.solver(part)(settings)[0] for part in problems.parts()])

    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        return problems.predictions(self.weights(problems))

    def settings_in_words(self, same: Sequence[Reference]) -> dict[str, str]:
        """Its settings by name for a label, each one number or the least and the largest; none before they are chosen.

        Those of the ``same`` in other cases side by side, or else its own.
        """
        settings = torch.cat([r.setting for r in same or (self,) if isinstance(r, LinearReference)], dim=1)
        ends = [(f"{float(values.min()):.3g}", f"{float(values.max()):.3g}") for values in settings]
        words = [low if low == high else f"{low} to {high}" for low, high in ends]
        return dict(zip(self.setting_names, words, strict=False))


def tuned(references: Sequence[Self], tuning: Problems) -> list[Self]:
    """The references, bound to their cases, each with its best setting for every number of examples.

    The best of its grid has the lowest excess risk on ``tuning``: problems of the law and sizes they are then scored
    on, from separate prompts. A single setting (given by the user or implied by the law) is taken as it is.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.references import Case, Lasso, Ridge, tuned, whole_prompts
        >>> task = LinearRegression(n_dims=4, noise_std=0.5)
        >>> problems = whole_prompts(task.sample(64, 8, 4, torch.Generator().manual_seed(0)))
        >>> case = Case(task, trained_on=task, depth=0)
        >>> [r.label() for r in tuned([Ridge().bound(case), Lasso(alpha=0.1).bound(case)], problems)]
        ['ridge, alpha 0.25 (from the law)', 'lasso, alpha 0.1 (given)']
    """
    linear = [reference for reference in references if isinstance(reference, LinearReference)]
    grids = [reference.grid(tuning) for reference in linear]
    totals = [tuning.x.new_zeros(len(grid), len(tuning.sizes)) for grid in grids]
    for part in tuning.parts():
        for reference, grid, total in zip(linear, grids, totals, strict=True):
            if len(grid) == 1:
                continue
            solve = reference.solver(part)
            for path in paths(grid):
                prediction = part.predictions(solve(grid[path]))
                total[path] += squared_errors(prediction, part.f.expand_as(prediction)).sum(1)
    best = [total.nan_to_num(torch.inf).argmin(0).cpu() for total in totals]
    chosen = iter([grid.gather(0, at.expand(1, *grid.shape[1:]))[0] for grid, at in zip(grids, best, strict=True)])
    return [r.at(next(chosen)) if isinstance(r, LinearReference) else r for r in references]


def errors(references: Sequence[Reference], problems: Problems) -> dict[str, Float[Tensor, "batch sizes"]]:
    """By key each reference's squared error of each prompt, averaged over its queries, for each number of examples.

    Example:
        >>> import torch
        >>> from lightning_icl import LinearRegression
        >>> from lightning_icl.functional.references import Case, LeastSquares, errors, tuned, whole_prompts
        >>> task = LinearRegression(n_dims=4)  # without noise
        >>> problems = whole_prompts(task.sample(64, 8, 4, torch.Generator().manual_seed(0)))
        >>> references = tuned([LeastSquares().bound(Case(task, trained_on=task, depth=0))], problems)
        >>> (errors(references, problems)["least_squares"] < 1e-8).all()
        tensor(True)
    """
    check_each_once("references", [reference.key for reference in references])
    found: dict[str, list[Tensor]] = defaultdict(list)
    for part in problems.parts():
        for reference in references:
            found[reference.key].append(squared_errors(reference.predictions(part), part.f))
    return {key: torch.cat(parts) for key, parts in found.items()}


def paths(settings: Settings) -> list[list[int]]:
    """The places of settings that share all but the last parameter: one path of solutions has them all."""
    alike = defaultdict(list)
    for place, others in enumerate(settings[:, :-1].flatten(1).tolist()):
        alike[tuple(others)].append(place)
    return list(alike.values())


def on_paths(problems: Problems, path: Callable[..., Float[Tensor, "iterates rows dims"]]) -> Solver:
    """A solver that takes the iterate which the last parameter counts from ``path``, a function of (how many, *others).

    The other parameters are one number for each row.
    """

    def weights(settings: Settings) -> Fits:
        found = problems.x.new_empty(len(settings), *problems.targets.shape[:2], problems.x.shape[2])
        for alike in paths(settings):
            count = settings[alike, -1].long()
            iterates = problems.by_size(path(int(count.max()), *problems.per_row(settings[alike[0], :-1])))
            prompt, size = (torch.arange(n) for n in iterates.shape[1:3])
            found[alike] = iterates[count[:, None], prompt[:, None], size]
        return found

    return weights


def one_by_one(problems: Problems, fit: Callable[[Float[Tensor, " rows"]], Float[Tensor, "rows dims"]]) -> Solver:
    """A solver of one parameter from ``fit``, a function of its value for each row."""
    return lambda settings: problems.by_size(torch.stack([fit(value) for value in problems.per_row(settings[:, 0])]))


def whatever_the_settings(w_hat: Fit) -> Solver:
    """The solver of an estimator that has none."""
    return lambda settings: w_hat.expand(len(settings), *w_hat.shape)


def strengths(tuning: Problems, decades: int = 4) -> Float[Tensor, "candidates sizes"]:
    """Four a decade, from six times the strength at which the median prompt's lasso vanishes to ``decades`` below it.

    Where noise rules the best one is near the top, without noise far below.
    """
    moment = torch.cat([part.by_size(part.moments.moment) for part in tuning.parts()])
    largest = moment.abs().amax(-1).median(0).values.clamp(min=1e-12).cpu()
    powers = torch.arange(3, -4 * decades - 1, -1, dtype=largest.dtype) / 4
    return largest * 10 ** powers[:, None]
