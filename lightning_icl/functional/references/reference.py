"""What a reference estimator is: a name, settings that are fixed before it is scored, and predictions."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.risk import squared_errors
from lightning_icl.functional.tasks import Law

ROWS_AT_ONCE = 2048  # problems whose candidate fits are held in memory together

Setting = Float[Tensor, "parameters sizes"]
Candidates = Float[Tensor, "candidates parameters sizes"]
Settings = Float[Tensor, "settings parameters"]  # of problems of one size
Fit = Float[Tensor, "batch sizes dims"]


class Case(NamedTuple):
    """What a reference estimator may know besides the examples of a prompt.

    Attributes:
        task: the law of the prompts it is scored on.
        trained_on: the law the model was trained on; another one where a pool or a shift stands between them.
        depth: number of layers of the model it is compared with.
    """

    task: Law
    trained_on: Law
    depth: int


class Reference(ABC):
    """A reference estimator: settings in the constructor, ``None`` for those the law implies or that are tuned.

    ``settled`` fixes them for a case, on ``tuning``: problems of the law and sizes it is then scored on, from separate
    prompts. ``name`` is what it is logged by.
    """

    name: ClassVar[str]

    @property
    def key(self) -> str:
        """Its name in logs and files, with the settings it was given: no two of a list may share one."""
        return self.name

    @abstractmethod
    def label(self, same: Sequence["Reference"] = ()) -> str:
        """Its name in figures and tables, with its settings: its own, or those of the ``same`` in other cases."""

    def check(self, case: Case) -> None:
        """Refuse a case this estimator cannot serve, before any work is done."""
        return

    def settled(self, case: Case, tuning: Problems) -> "Reference":
        """The same estimator with every free setting fixed."""
        settled = copy.copy(self)
        settled.settle(case, tuning)
        return settled

    def settle(self, case: Case, tuning: Problems) -> None:
        """Fix every free setting of this one."""
        return

    @abstractmethod
    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        """Its predictions of f at the targets."""

    def errors(self, problems: Problems) -> Float[Tensor, "batch sizes"]:
        """Squared error of each prompt, averaged over its queries, for each number of examples."""
        return squared_errors(self.predictions(problems), problems.f)


class LinearReference(Reference):
    """One that estimates weights."""

    @abstractmethod
    def weights(self, problems: Problems) -> Fit:
        """w_hat from the first k examples, for every k of the problems' sizes."""

    def predictions(self, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
        return predicted(self.weights(problems), problems)


def predicted(w_hat: Fit, problems: Problems) -> Float[Tensor, "batch sizes queries"]:
    """<w_hat, x_q> at the problems' targets."""
    return torch.einsum("bsd,bsqd->bsq", w_hat, problems.targets)


class SearchedReference(LinearReference):
    """One whose free settings are chosen among candidates, separately for each number of examples.

    The chosen candidate has the lowest excess risk on the tuning problems. A single candidate (a setting given by the
    user or implied by the law) is taken as it is.

    Attributes:
        setting: what was chosen.
        setting_names: its parameters by name: "steps" and "features" are whole numbers.
    """

    setting: Setting | None = None
    setting_names: ClassVar[tuple[str, ...]]

    @abstractmethod
    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        """The settings to choose from."""

    @abstractmethod
    def fit(self, problems: Problems, setting: Setting) -> Fit:
        """The weights under one setting for each number of examples."""

    def fits(self, problems: Problems, candidates: Candidates) -> Iterator[Fit]:
        """The weights under every candidate, in order."""
        for candidate in candidates:
            yield self.fit(problems, candidate)

    def several(self, problems: Problems) -> Callable[[Settings], Float[Tensor, "settings batch dims"]]:
        """The weights, as a function of any settings, for problems of one size."""
        return lambda settings: torch.stack([fit[:, 0] for fit in self.fits(problems, settings[..., None])])

    def settle(self, case: Case, tuning: Problems) -> None:
        candidates = self.candidates(case, tuning)
        best = torch.zeros(len(tuning.sizes), dtype=torch.int64, device=candidates.device)
        if len(candidates) > 1:
            best = self._risks(tuning, candidates).nan_to_num(torch.inf).argmin(0)
        self.setting = candidates.gather(0, best.expand(1, *candidates.shape[1:]))[0]

    def _risks(self, tuning: Problems, candidates: Candidates) -> Float[Tensor, "candidates sizes"]:
        total = torch.zeros(len(candidates), len(tuning.sizes), dtype=torch.float64, device=tuning.x.device)
        for part in in_parts(tuning):
            for row, w_hat in zip(total, self.fits(part, candidates), strict=True):
                row += squared_errors(predicted(w_hat, part), part.f).sum(0)
        return total / len(tuning.x)

    def settings(self, same: Sequence[Reference]) -> Setting | None:
        """The settings of the ``same`` in other cases side by side, or else its own, for a label."""
        known = [r.setting for r in same or (self,) if isinstance(r, SearchedReference) and r.setting is not None]
        return torch.cat(known, dim=1) if known else None

    def weights(self, problems: Problems) -> Fit:
        assert self.setting is not None, "settle a reference before asking for its weights"
        setting = self.setting[:, : len(problems.sizes)]
        return torch.cat([self.fit(part, setting) for part in in_parts(problems)])


def in_parts(problems: Problems) -> Iterator[Problems]:
    """The problems in parts small enough for a path of iterates."""
    return problems.chunks(max(1, ROWS_AT_ONCE // len(problems.sizes)))


def constant(values: Sequence[int] | Sequence[float], problems: Problems) -> Candidates:
    """Candidates for one parameter, alike for every number of examples."""
    return problems.x.new_tensor(values)[:, None, None].expand(-1, 1, len(problems.sizes))


def strengths(problems: Problems, decades: int = 4) -> Candidates:
    """Four a decade, from six times the strength at which the median prompt's lasso vanishes to ``decades`` below it.

    Where noise rules the best one is near the top, without noise far below.
    """
    largest = problems.by_size(problems.moments.moment).abs().amax(-1).median(0).values.clamp(min=1e-12)
    powers = torch.arange(3, -4 * decades - 1, -1, device=largest.device, dtype=largest.dtype) / 4
    return (largest * 10 ** powers[:, None])[:, None]


def given(name: str, value: int | float | None, default: float | None) -> str:
    """The part of a key that says how one setting differs from its default."""
    return "" if value is None or value == default else f"_{name}_{value:g}"


def span(values: Tensor) -> str:
    """One number, or the smallest and the largest of several."""
    low, high = f"{float(values.min()):.3g}", f"{float(values.max()):.3g}"
    return low if low == high else f"{low} to {high}"
