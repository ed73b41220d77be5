"""References that iterate: how many steps, and of what size, is part of their name."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError, check_between, check_choice, check_not_negative, check_positive
from lightning_icl.functional.estimators import Eigenbasis
from lightning_icl.functional.references.linear import law_sparsity
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    Fits,
    LinearReference,
    Reference,
    Settings,
    Solver,
    on_paths,
    paths,
    strengths,
)

__all__ = [
    "FISTA", "GD", "ISTA", "GDPlusPlus", "IterativeHardThresholding", "Newton", "PreconditionedGD", "PreprocessThenGD",
]  # fmt: skip

Steps = int | Literal["depth", "best"]
StepSizeRule = Literal["per_prompt", "shared"]

MOST_STEPS = 100_000  # of any one; its path has them all
MAX_STEPS = 200  # when the best number of steps is sought
# times 1/lambda_max: plain GD diverges from 2 on, and where noise rules a single step of 1 is too much
RELATIVE_STEPS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 1.9)
N_SHARED_STEPS = 41


@dataclass(frozen=True)
class Iterative(LinearReference):
    """One that runs a number of steps, of 1 / lambda_max where a class does not make an option of their size.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        max_steps: where the search for the best number of steps ends.
    """

    steps: Steps = "best"
    step_size: StepSizeRule = field(default="per_prompt", init=False, repr=False)
    scale: float | None = field(default=1.0, init=False, repr=False)
    _: KW_ONLY
    max_steps: int = MAX_STEPS
    main, unnamed = "steps", ("step_size", "scale", "max_steps")
    # For the label, after the number of steps: their size by its rule, and other settings.
    size_in_words: ClassVar[Mapping[str, str]] = {"per_prompt": " of 1/λmax"}

    def __post_init__(self) -> None:
        steps = self.steps
        if steps not in ("depth", "best") and (not isinstance(steps, int) or isinstance(steps, bool) or steps < 0):
            raise InputError(f"steps is {steps!r}, but it must be a number of steps from 0 up, or depth, or best.")
        if not isinstance(steps, str):
            check_between(0, MOST_STEPS, steps=steps)
        check_between(1, MOST_STEPS, max_steps=self.max_steps)

    def check(self, case: Case) -> None:
        super().check(case)
        if self.steps == "depth" and case.depth == 0:
            raise InputError(f"{self.key} takes a step a layer, but this network shows no layers; give it steps.")

    @property
    def key(self) -> str:
        name, scale = super().key.replace("_depth", "_at_depth", 1), "" if self.scale is None else f"_{self.scale:g}"
        if self.step_size == "shared":
            return f"{name}_shared_step{scale}"
        # of 1/lambda_max unless it says otherwise
        return name + {None: "_tuned_step", 1.0: ""}.get(self.scale, f"_step{scale}")

    def label(self, same: Sequence[Reference] = ()) -> str:
        known = self.settings_in_words(same)
        if not known:
            return f"{self.title}, {self.steps} steps"
        size = self.size_in_words[self.step_size].format(**known)
        why = {"depth": " (= layers)", "best": f" (best up to {self.max_steps})"}.get(str(self.steps), "")
        return f"{self.title}, {known['steps']} step{'s' * (known['steps'] != '1')}{size}{why}"

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        known = self.case.depth if self.steps == "depth" else self.steps
        return range(self.max_steps + 1) if isinstance(known, str) else [known]


@dataclass(frozen=True)
class GD(Iterative):
    """Gradient descent on (1/2n) ||y - X w||^2 from 0.

    What derives from it descends on features B x, w <- w - step B B^T X^T (X w - y) / n. Computed in the eigenbasis of
    B^T C B with C = X^T X / n, whose largest eigenvalue is lambda_max, where every direction goes on its own.

    Args:
        step_size: the rule: "per_prompt" (c / lambda_max of each prompt's own examples) or "shared" (one number for
            all prompts). The comparison hangs on it, so the label names it.
        scale: c, or the shared step size; tuned if left out.

    Example:
        >>> from lightning_icl.functional.references import GD
        >>> GD(steps="depth", step_size="shared").key, GD(steps=3, scale=1.0).key
        ('gd_at_depth_shared_step', 'gd_3')
    """

    step_size: StepSizeRule = "per_prompt"
    scale: float | None = None
    name, in_words, power = "gd", "GD", 0.0
    setting_names: ClassVar[tuple[str, ...]] = ("step", "steps")
    size_in_words: ClassVar[Mapping[str, str]] = {
        "per_prompt": " of {step}/λmax",
        "shared": " of {step}, one for all prompts",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("step_size", self.step_size, get_args(StepSizeRule))
        if self.scale is not None:
            check_positive(scale=self.scale)

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        if name == "steps":
            return super().candidates(name, tuning)
        if self.scale is not None:
            return [self.scale]
        if self.step_size == "per_prompt":
            return RELATIVE_STEPS
        # From the typical prompt's 2/lambda_max down to the steepest's 1/lambda_max, which limits what is stable for
        # all, and to a thousandth, for where hardly a step is best.
        steps = self.stable_steps(tuning).cpu()
        typical, steepest = float(steps.median()), float(steps[steps > 0].min()) if steps.any() else 0.0
        ratio = max(2000.0, 2 * typical / steepest) if steepest > 0 else 1.0
        return [2 * typical * ratio ** (-k / (N_SHARED_STEPS - 1)) for k in range(N_SHARED_STEPS)]

    def basis(self, problems: Problems) -> Eigenbasis:
        """Where every direction goes on its own."""
        return problems.eigenbasis(self.power)

    def stable_steps(self, problems: Problems) -> Float[Tensor, " rows"]:
        """1 / lambda_max of every problem, of the features it descends on; 0 where there is none."""
        return torch.cat([unit_steps(self.basis(part)) for part in problems.parts()])

    def solver(self, problems: Problems) -> Solver:
        basis = self.basis(problems)
        unit = unit_steps(basis)[:, None] if self.step_size == "per_prompt" else 1.0

        def weights(settings: Settings) -> Fits:
            steps, path_of = settings[:, -1].long(), torch.empty(len(settings), dtype=torch.long)
            for path, places in enumerate(alike := paths(settings)):
                path_of[places] = path
            different = problems.per_row(settings[[places[0] for places in alike], :-1])
            factors = estimators.gd_plus_plus_factors(basis.curvature, *(different.transpose(0, 1)[..., None] * unit))
            reached = problems.by_size(basis.moment.new_empty(len(settings), *basis.moment.shape))
            wanted = set(steps.flatten().tolist())
            for t, factor in zip(range(max(wanted) + 1), factors, strict=False):
                if t in wanted:
                    setting, size = (steps == t).nonzero(as_tuple=True)
                    reached[setting, :, size] = problems.by_size(factor)[path_of[setting], :, size]
            return problems.by_size(torch.einsum("rij,krj->kri", basis.vectors, basis.moment * reached.flatten(1, 2)))

        return weights


def unit_steps(basis: Eigenbasis) -> Float[Tensor, " rows"]:
    """1 / lambda_max; 0 where that is 0."""
    largest = basis.curvature[:, -1]
    return torch.where(largest > 0, 1 / largest, 0.0)


@dataclass(frozen=True)
class PreprocessThenGD(GD):
    """Gradient descent on features rescaled by |r_hat|^power, r_hat = X^T y / n (Chen et al. 2024).

    w <- w - step D D X^T (X w - y) / n with D = diag(|r_hat|^power); lambda_max is that of the rescaled features.

    Args:
        power: of |r_hat|; 0 is plain gradient descent.

    Example:
        >>> from lightning_icl.functional.references import PreprocessThenGD
        >>> PreprocessThenGD(steps="best", scale=1.0).key, PreprocessThenGD(steps=2, power=0.5).key
        ('preprocess_then_gd_best', 'preprocess_then_gd_2_power_0.5_tuned_step')
    """

    power: float = 1.0
    name, in_words = "preprocess_then_gd", "preprocess + GD"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(power=self.power)

    @property
    def title(self) -> str:
        return super().title + ("" if self.power in (0, 1) else f" (power {self.power:g})")


@dataclass(frozen=True)
class PreconditionedGD(GD):
    """Gradient descent with one preconditioner for all prompts (Ahn et al. 2023): w <- w - step A X^T (X w - y) / n.

    lambda_max is that of the preconditioned examples.

    Args:
        matrix: A, symmetric and positive definite, as a list of its rows; left out, the inverse covariance of x that
            the task's law implies.

    Example:
        >>> from lightning_icl.functional.references import PreconditionedGD
        >>> PreconditionedGD(steps="depth").key
        'preconditioned_gd_at_depth_shared_step'
    """

    step_size: StepSizeRule = "shared"
    matrix: list[list[float]] | None = None
    name = "preconditioned_gd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.matrix is not None:
            if {len(row) for row in self.matrix} != {len(self.matrix)}:
                raise InputError(f"matrix is {self.matrix}, but it must be a list of rows, as many as each is long.")
            square_root(torch.tensor(self.matrix, dtype=torch.float64))

    @property
    def title(self) -> str:
        return "preconditioned GD" if self.matrix is None else "GD with a given preconditioner"

    def check(self, case: Case) -> None:
        super().check(case)
        if self.matrix is not None and len(self.matrix) != case.task.n_dims:
            raise InputError(f"matrix has {len(self.matrix)} rows, but x has {case.task.n_dims} dimensions.")
        if self.matrix is None and case.task.covariance is None:
            law = type(case.task).__name__
            raise InputError(f"PreconditionedGD needs one covariance of x, which this {law} has not: give a matrix.")

    def basis(self, problems: Problems) -> Eigenbasis:
        if self.matrix is None:
            assert self.case.task.covariance is not None, "the law has no covariance"
            matrix = torch.linalg.inv(self.case.task.covariance)
        else:
            matrix = torch.tensor(self.matrix, dtype=torch.float64)
        root, m = square_root(matrix).to(problems.x), problems.moments
        basis = estimators.eigenbasis(m._replace(gram=root @ m.gram @ root, moment=m.moment @ root))
        return basis._replace(vectors=root @ basis.vectors)


def square_root(matrix: Float[Tensor, "dims dims"]) -> Float[Tensor, "dims dims"]:
    """That of a symmetric positive definite matrix, symmetric too."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    if not torch.allclose(matrix, matrix.T) or not eigenvalues[0] > 0:
        raise InputError(f"matrix is {matrix.tolist()}, but a preconditioner must be symmetric and positive definite.")
    return (vectors * eigenvalues.sqrt()) @ vectors.T


@dataclass(frozen=True)
class GDPlusPlus(GD):
    """GD++ (von Oswald et al. 2023): each step descends and transforms the inputs, x <- (I - gamma C) x, for the next.

    Step size and gamma are tuned, together with the number of steps where that is free.

    Args:
        step_size: the rule for both: "per_prompt" (times 1 / lambda_max of each prompt's own examples) or "shared" (one
            number each for all prompts).

    Example:
        >>> from lightning_icl.functional.references import GDPlusPlus
        >>> GDPlusPlus(steps="depth", step_size="shared").key
        'gd_plus_plus_at_depth_shared_step'
    """

    scale: float | None = field(default=None, init=False, repr=False)
    _: KW_ONLY
    max_steps: int = 50
    name, in_words, setting_names = "gd_plus_plus", "GD++", ("step", "gamma", "steps")
    size_in_words: ClassVar[Mapping[str, str]] = {
        "per_prompt": " of {step}/λmax, gamma {gamma}/λmax",
        "shared": " of {step}, gamma {gamma}, for all prompts",
    }

    @property
    def key(self) -> str:
        return super().key.removesuffix("_tuned_step")

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        if name == "steps":
            return super().candidates(name, tuning)
        # The transformed inputs' curvature is lambda (1 - gamma lambda)^2, so steps beyond 2 / lambda_max are stable,
        # and the more steps there are the larger the best ones: 16 to 24 of twelve layers.
        steps = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
        gammas = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        unit = float(self.stable_steps(tuning).median()) if self.step_size == "shared" else 1.0
        return [unit * value for value in (gammas if name == "gamma" else steps)]


@dataclass(frozen=True)
class Newton(Iterative):
    """Newton's iteration for the inverse of S = X^T X (Fu et al. 2023); each step doubles the digits.

    w_t = M_t X^T y with M_{t+1} = 2 M_t - M_t S M_t and M_0 = S / lambda_max(S)^2.

    Example:
        >>> from lightning_icl.functional.references import Newton
        >>> Newton(steps=5).key
        'newton_5'
    """

    _: KW_ONLY
    max_steps: int = 30
    name, in_words, setting_names = "newton", "Newton", ("steps",)
    size_in_words: ClassVar[Mapping[str, str]] = {"per_prompt": ""}  # its steps have none

    def solver(self, problems: Problems) -> Solver:
        return on_paths(problems, lambda n_steps: estimators.newton_path(problems.eigenbasis(), n_steps))


@dataclass(frozen=True)
class ISTA(Iterative):
    """Proximal gradient descent on (1/2n) ||y - X w||^2 + alpha ||w||_1, with steps 1 / lambda_max of each prompt.

    Args:
        alpha: the lasso's strength; tuned, together with the number of steps, if left out.

    Example:
        >>> from lightning_icl.functional.references import ISTA
        >>> ISTA(steps=10, alpha=0.1).key
        'ista_10_alpha_0.1'
    """

    alpha: float | None = None
    _: KW_ONLY
    max_steps: int = 50
    name, in_words, setting_names = "ista", "ISTA", ("alpha", "steps")
    size_in_words: ClassVar[Mapping[str, str]] = {"per_prompt": " of 1/λmax, alpha {alpha}"}
    path = staticmethod(estimators.ista_path)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            check_not_negative(alpha=self.alpha)

    def candidates(self, name: str, tuning: Problems) -> Candidates:
        if name == "alpha":
            return strengths(tuning, 3) if self.alpha is None else [self.alpha]
        return super().candidates(name, tuning)

    def solver(self, problems: Problems) -> Solver:
        m, step = problems.moments, unit_steps(problems.eigenbasis())
        return on_paths(problems, lambda n_steps, alpha: self.path(m, alpha, n_steps, step))


class FISTA(ISTA):
    """ISTA with Nesterov's momentum, on (1/2n) ||y - X w||^2 + alpha ||w||_1 (Beck & Teboulle 2009).

    Example:
        >>> from lightning_icl.functional.references import FISTA
        >>> FISTA(steps="depth").key
        'fista_at_depth'
    """

    name, in_words = "fista", "FISTA"
    path = staticmethod(estimators.fista_path)


@dataclass(frozen=True)
class IterativeHardThresholding(Iterative):
    """w <- H_s(w - step X^T (X w - y) / n), where H_s keeps the s largest weights; steps 1 / lambda_max.

    Blumensath & Davies 2009.

    Args:
        sparsity: how many weights are kept; left out, the law's.

    Example:
        >>> from lightning_icl.functional.references import IterativeHardThresholding
        >>> IterativeHardThresholding(steps=10, sparsity=2).key
        'iterative_hard_thresholding_10_sparsity_2'
    """

    sparsity: int | None = None
    _: KW_ONLY
    max_steps: int = 100
    name, in_words = "iterative_hard_thresholding", "iterative hard thresholding"
    setting_names = ("steps",)

    @property
    def title(self) -> str:
        return super().title + ("" if self.sparsity is None else f" to {self.sparsity}")

    def check(self, case: Case) -> None:
        super().check(case)
        law_sparsity(case.task, self.sparsity, "IterativeHardThresholding")

    def solver(self, problems: Problems) -> Solver:
        kept = law_sparsity(self.case.task, self.sparsity, "IterativeHardThresholding")
        m, step = problems.moments, unit_steps(problems.eigenbasis())
        return on_paths(problems, lambda n: estimators.iterative_hard_thresholding_path(m, kept, n, step))
