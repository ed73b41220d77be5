"""References that iterate: how many steps, and of what size, is part of their name."""

import itertools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_icl.functional import estimators
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.estimators import Moments
from lightning_icl.functional.references.problems import Problems
from lightning_icl.functional.references.reference import (
    Candidates,
    Case,
    Fit,
    Reference,
    SearchedReference,
    Setting,
    Settings,
    constant,
    given,
    span,
    strengths,
)

Steps = int | Literal["depth", "best"]
StepSizeRule = Literal["per_prompt", "shared"]

MAX_STEPS = 200  # when the best number of steps is sought
# times 1/lambda_max: plain GD diverges from 2 on, and where noise rules a single step of 1 is too much
RELATIVE_STEPS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 1.9)
N_SHARED_STEPS = 41
PathOfRows = Float[Tensor, "iterates rows dims"]


class Descent(NamedTuple):
    """What all paths of some problems have in common, whatever their settings, and so is computed once.

    ``problems`` are Moments, or an Eigenbasis for iterations that are computed in it; ``unit_step`` is 1 / lambda_max.
    """

    problems: Any
    unit_step: Float[Tensor, " rows"]


class IterativeReference(SearchedReference):
    """One that runs a number of steps: so many, one for each layer of the model ("depth"), or the "best".

    The last parameter of its setting is the number of steps; ``others`` lists the candidates for those before it.
    """

    title: str
    setting_names: ClassVar[tuple[str, ...]] = ("steps",)

    def __init__(self, steps: Steps = "best", max_steps: int = MAX_STEPS) -> None:
        if steps not in ("depth", "best") and (not isinstance(steps, int) or steps < 0):
            raise InputError(f"steps is {steps!r}, but it must be a number of steps from 0 up, or depth, or best.")
        if max_steps < 1:
            raise InputError(f"max_steps is {max_steps}, but it must be at least 1.")
        self.steps, self.max_steps = steps, max_steps

    @abstractmethod
    def others(self, case: Case, tuning: Problems) -> Candidates:
        """The candidates for the parameters besides the number of steps."""

    def descent(self, m: Moments) -> Descent:
        """The problems, ready for any number of paths."""
        return Descent(m, estimators.inverse_curvature(m))

    @abstractmethod
    def path(self, descent: Descent, n_steps: int, parameters: list[Float[Tensor, " rows"]]) -> PathOfRows:
        """All iterates, the start included."""

    @property
    def key(self) -> str:
        return f"{self.name}_at_depth" if self.steps == "depth" else f"{self.name}_{self.steps}"

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        fixed = case.depth if self.steps == "depth" else self.steps
        steps = constant(range(self.max_steps + 1) if fixed == "best" else [int(fixed)], tuning)
        others = self.others(case, tuning)
        return torch.cat([others.repeat_interleave(len(steps), 0), steps.repeat(len(others), 1, 1)], dim=1)

    def fits(self, problems: Problems, candidates: Candidates) -> Iterator[Fit]:
        """One path serves all numbers of steps."""
        descent = self.descent(problems.moments)
        for _, alike in itertools.groupby(candidates, key=lambda c: c[:-1].tolist()):
            group = torch.stack(list(alike))
            path = self._path(problems, descent, group[0], int(group[:, -1].max()))
            yield from (path[int(candidate[-1, 0])] for candidate in group)

    def fit(self, problems: Problems, setting: Setting) -> Fit:
        steps = setting[-1].long()
        path = self._path(problems, self.descent(problems.moments), setting, int(steps.max()))
        return path[steps, :, torch.arange(len(steps), device=steps.device)].transpose(0, 1)

    def _path(
        self, problems: Problems, descent: Descent, setting: Setting, n_steps: int
    ) -> Float[Tensor, "iterates batch sizes dims"]:
        parameters = [problems.per_row(parameter) for parameter in setting[:-1]]
        return problems.by_size(self.path(descent, n_steps, parameters))

    def label(self, same: Sequence[Reference] = ()) -> str:
        setting = self.settings(same)
        if setting is None:
            return f"{self.title}, {self.steps} steps"
        why = {"depth": " (= layers)", "best": f" (best up to {self.max_steps})"}.get(str(self.steps), "")
        steps = span(setting[-1])
        return f"{self.title}, {steps} step{'s' * (steps != '1')}{self.in_words(setting)}{why}"

    def in_words(self, setting: Setting) -> str:
        """The parameters besides the number of steps, for the label."""
        return ""


class GradientReference(IterativeReference):
    """Steps along the gradient, of features B x: w <- w - step B B^T X^T (X w - y) / n, which is GD where B is I.

    Computed in the eigenbasis of B^T C B with C = X^T X / n, where every direction goes on its own.
    """

    setting_names: ClassVar[tuple[str, ...]] = ("step", "steps")
    variant = ""  # what tells its key from others of its name

    def __init__(self, steps: Steps, step_size: StepSizeRule, scale: float | None, max_steps: int) -> None:
        super().__init__(steps, max_steps)
        if step_size not in get_args(StepSizeRule):
            raise InputError(f"step_size is {step_size!r}, but it must be one of {', '.join(get_args(StepSizeRule))}.")
        if scale is not None and not 0 < scale < float("inf"):
            raise InputError(f"scale is {scale}, but a step size must be a finite number above 0.")
        self.step_size, self.scale = step_size, scale

    @property
    def key(self) -> str:
        if self.step_size == "shared":
            step = "_shared_step" if self.scale is None else f"_shared_step_{self.scale:g}"
        else:  # of 1/lambda_max unless it says otherwise
            step = "_tuned_step" if self.scale is None else given("step", self.scale, 1.0)
        return f"{super().key}{self.variant}{step}"

    def features(self, m: Moments) -> Float[Tensor, "#rows dims dims"] | None:
        """B, or None for the features as they are."""
        return None

    def others(self, case: Case, tuning: Problems) -> Candidates:
        if self.scale is not None:
            return constant([self.scale], tuning)
        if self.step_size == "per_prompt":
            return constant(RELATIVE_STEPS, tuning)
        # From the typical prompt's 2/lambda_max down to the steepest's 1/lambda_max, which limits what is stable for
        # all, and to a thousandth, for where hardly a step is best.
        steps = self.descent(tuning.moments).unit_step
        typical, steepest = float(steps.median()), float(steps[steps > 0].min()) if steps.any() else 0.0
        span_of_steps = max(2000.0, 2 * typical / steepest) if steepest > 0 else 1.0
        return constant(
            [2 * typical * span_of_steps ** (-k / (N_SHARED_STEPS - 1)) for k in range(N_SHARED_STEPS)], tuning
        )

    def descent(self, m: Moments) -> Descent:
        return in_eigenbasis(m, self.features(m))

    def factors(self, descent: Descent, parameters: Sequence[Tensor]) -> Iterator[Float[Tensor, "*settings rows dims"]]:
        """By what each step multiplies X^T y / n in the eigenbasis, for parameters that broadcast to rows and dims."""
        unit = descent.unit_step[:, None] if self.step_size == "per_prompt" else 1
        return estimators.gd_plus_plus_factors(descent.problems.curvature, *(value * unit for value in parameters))

    def path(self, descent: Descent, n_steps: int, parameters: list[Tensor]) -> PathOfRows:
        factors = self.factors(descent, [value[:, None] for value in parameters])
        return from_eigenbasis(descent, torch.stack(list(itertools.islice(factors, n_steps + 1))))

    def several(self, problems: Problems) -> Callable[[Settings], Float[Tensor, "settings batch dims"]]:
        """All at once, as a search asks for many that have nothing but the prompts in common."""
        descent = self.descent(problems.moments)

        def fits(settings: Settings) -> Float[Tensor, "settings batch dims"]:
            steps, reached = settings[:, -1], []
            factors = self.factors(descent, list(settings.T[:-1, :, None, None]))
            for t, factor in zip(range(int(steps.max()) + 1), factors, strict=False):
                reached.append(factor[steps == t])
            order = torch.cat([(steps == t).nonzero()[:, 0] for t in range(len(reached))])
            return from_eigenbasis(descent, torch.cat(reached)[order.argsort()])

        return fits

    def in_words(self, setting: Setting) -> str:
        rule = "/λmax" if self.step_size == "per_prompt" else ", one for all prompts"
        return f" of {span(setting[0])}{rule}"


class PreprocessThenGD(GradientReference):
    """Gradient descent on features rescaled by |r_hat|^power; PAPER.md section 7.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        step_size: the rule: "per_prompt" (c / lambda_max of each prompt's own rescaled features) or "shared" (one
            number for all prompts). The comparison hangs on it, so the label names it.
        scale: c, or the shared step size; tuned if left out.
        power: of |r_hat|; 0 is plain gradient descent.
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "preprocess_then_gd", "preprocess + GD"

    def __init__(
        self,
        steps: Steps = "best",
        step_size: StepSizeRule = "per_prompt",
        scale: float | None = None,
        power: float = 1.0,
        max_steps: int = MAX_STEPS,
    ) -> None:
        super().__init__(steps, step_size, scale, max_steps)
        if not 0 <= power < float("inf"):
            raise InputError(f"power is {power}, but it must be a finite number that is 0 or larger.")
        self.power = power
        if power not in (0, 1):
            self.title, self.variant = f"{self.title} (power {power:g})", f"_power_{power:g}"

    def features(self, m: Moments) -> Float[Tensor, "rows dims dims"] | None:
        return torch.diag_embed(m.moment.abs() ** self.power) if self.power else None


class GD(PreprocessThenGD):
    """Gradient descent on (1/2n) ||y - X w||^2 from 0.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        step_size: the rule: "per_prompt" (c / lambda_max of each prompt's own examples) or "shared" (one number for
            all prompts). The comparison hangs on it, so the label names it.
        scale: c, or the shared step size; tuned if left out.
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "gd", "GD"

    def __init__(
        self,
        steps: Steps = "best",
        step_size: StepSizeRule = "per_prompt",
        scale: float | None = None,
        max_steps: int = MAX_STEPS,
    ) -> None:
        super().__init__(steps, step_size, scale, 0.0, max_steps)


class PreconditionedGD(GradientReference):
    """Gradient descent with one preconditioner for all prompts (Ahn et al. 2023): w <- w - step A X^T (X w - y) / n.

    Args:
        matrix: A, symmetric and positive definite, as a list of its rows; left out, the inverse covariance of x that
            the task's law implies.
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        step_size: the rule: "shared" (one number for all prompts) or "per_prompt" (c / lambda_max of each prompt's own
            preconditioned examples).
        scale: c, or the shared step size; tuned if left out.
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "preconditioned_gd", "preconditioned GD"

    def __init__(
        self,
        matrix: list[list[float]] | None = None,
        steps: Steps = "best",
        step_size: StepSizeRule = "shared",
        scale: float | None = None,
        max_steps: int = MAX_STEPS,
    ) -> None:
        super().__init__(steps, step_size, scale, max_steps)
        self.matrix = matrix
        if matrix is not None:
            self.title, self.variant = "GD with a given preconditioner", "_given_matrix"
            if {len(row) for row in matrix} != {len(matrix)}:
                raise InputError(f"matrix is {matrix}, but it must be a list of rows, as many as each is long.")
            self._root = _square_root(torch.tensor(matrix, dtype=torch.float64))

    def check(self, case: Case) -> None:
        if self.matrix is not None and len(self.matrix) != case.task.n_dims:
            raise InputError(f"matrix has {len(self.matrix)} rows, but x has {case.task.n_dims} dimensions.")
        if self.matrix is None and case.task.covariance is None:
            law = type(case.task).__name__
            raise InputError(f"PreconditionedGD needs one covariance of x, which this {law} has not: give a matrix.")

    def candidates(self, case: Case, tuning: Problems) -> Candidates:
        if self.matrix is None:
            assert case.task.covariance is not None, "the law has no covariance"
            self._root = _square_root(torch.linalg.inv(case.task.covariance))
        return super().candidates(case, tuning)

    def features(self, m: Moments) -> Float[Tensor, "1 dims dims"]:
        return self._root.to(m.gram)[None]


def _square_root(matrix: Float[Tensor, "dims dims"]) -> Float[Tensor, "dims dims"]:
    """That of a symmetric positive definite matrix, symmetric too."""
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    if not torch.allclose(matrix, matrix.T) or not eigenvalues[0] > 0:
        raise InputError(f"matrix is {matrix.tolist()}, but a preconditioner must be symmetric and positive definite.")
    return (vectors * eigenvalues.sqrt()) @ vectors.T


class GDPlusPlus(GradientReference):
    """GD++ (von Oswald et al. 2023): each step descends and transforms the inputs, x <- (I - gamma C) x, for the next.

    Step size and gamma are tuned, together with the number of steps where that is free.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        step_size: the rule for both: "per_prompt" (times 1 / lambda_max of each prompt's own examples) or "shared" (one
            number each for all prompts).
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "gd_plus_plus", "GD++"
    setting_names = ("step", "gamma", "steps")

    def __init__(self, steps: Steps = "best", step_size: StepSizeRule = "per_prompt", max_steps: int = 50) -> None:
        super().__init__(steps, step_size, None, max_steps)

    @property
    def key(self) -> str:
        return super().key.removesuffix("_tuned_step")

    def others(self, case: Case, tuning: Problems) -> Candidates:
        # The transformed inputs' curvature is lambda (1 - gamma lambda)^2, so steps beyond 2 / lambda_max are stable,
        # and the more steps there are the larger the best ones: 16 to 24 of twelve layers.
        steps = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)
        gammas = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        pairs = torch.cartesian_prod(tuning.x.new_tensor(steps), tuning.x.new_tensor(gammas))
        if self.step_size == "shared":
            pairs = pairs * estimators.inverse_curvature(tuning.moments).median()
        return pairs[..., None].expand(-1, -1, len(tuning.sizes))

    def in_words(self, setting: Setting) -> str:
        if self.step_size == "per_prompt":
            return f" of {span(setting[0])}/λmax, gamma {span(setting[1])}/λmax"
        return f" of {span(setting[0])}, gamma {span(setting[1])}, for all prompts"


def in_eigenbasis(m: Moments, features: Float[Tensor, "#rows dims dims"] | None = None) -> Descent:
    """The problems where each iteration acts on every feature alone; of features B x, but for the weights of x."""
    if features is not None:
        moment = torch.einsum("rji,rj->ri", features.expand_as(m.gram), m.moment)
        m = m._replace(gram=features.mT @ m.gram @ features, moment=moment)
    basis = estimators.eigenbasis(m)
    largest = basis.curvature[:, -1]
    if features is not None:
        basis = basis._replace(vectors=features @ basis.vectors)
    return Descent(basis, torch.where(largest > 0, 1 / largest, 0.0))


def from_eigenbasis(descent: Descent, factors: Float[Tensor, "fits rows dims"]) -> Float[Tensor, "fits rows dims"]:
    """The weights that are X^T y / n times these factors in the eigenbasis."""
    basis = descent.problems
    return torch.einsum("rij,trj->tri", basis.vectors, basis.moment * factors)


class Newton(IterativeReference):
    """Newton's iteration for the inverse of X^T X (Fu et al. 2023); each step doubles the digits.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "newton", "Newton"

    def __init__(self, steps: Steps = "best", max_steps: int = 30) -> None:
        super().__init__(steps, max_steps)

    def others(self, case: Case, tuning: Problems) -> Candidates:
        return tuning.x.new_zeros(1, 0, len(tuning.sizes))

    def descent(self, m: Moments) -> Descent:
        return in_eigenbasis(m)

    def path(self, descent: Descent, n_steps: int, parameters: list[Tensor]) -> PathOfRows:
        return estimators.newton_path(descent.problems, n_steps)


class ISTA(IterativeReference):
    """Proximal gradient descent on the lasso's objective, with steps 1 / lambda_max of each prompt.

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        alpha: the lasso's strength; tuned, together with the number of steps, if left out.
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "ista", "ISTA"
    setting_names = ("alpha", "steps")

    def __init__(self, steps: Steps = "best", alpha: float | None = None, max_steps: int = 50) -> None:
        super().__init__(steps, max_steps)
        if alpha is not None and not 0 <= alpha < float("inf"):
            raise InputError(f"alpha is {alpha}, but the strength of {type(self).__name__} must be 0 or larger.")
        self.alpha = alpha

    @property
    def key(self) -> str:
        return super().key + given("alpha", self.alpha, None)

    def others(self, case: Case, tuning: Problems) -> Candidates:
        return strengths(tuning, 3) if self.alpha is None else constant([self.alpha], tuning)

    def path(self, descent: Descent, n_steps: int, parameters: list[Tensor]) -> PathOfRows:
        return estimators.ista_path(descent.problems, parameters[0], n_steps, descent.unit_step)

    def in_words(self, setting: Setting) -> str:
        return f" of 1/λmax, alpha {span(setting[0])}"


class FISTA(ISTA):
    """ISTA with Nesterov's momentum (Beck & Teboulle 2009).

    Args:
        steps: how many, "depth" (one for each layer of the model) or "best" (tuned, up to max_steps).
        alpha: the lasso's strength; tuned, together with the number of steps, if left out.
        max_steps: where the search for the best number of steps ends.
    """

    name, title = "fista", "FISTA"

    def path(self, descent: Descent, n_steps: int, parameters: list[Tensor]) -> PathOfRows:
        return estimators.fista_path(descent.problems, parameters[0], n_steps, descent.unit_step)
