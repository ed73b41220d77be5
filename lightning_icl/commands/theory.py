"""lightning-icl theory: where preprocess-then-GD has a lower excess risk than GD and ridge, and where it loses."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from jsonargparse import lazy_instance
from matplotlib.figure import Figure
from torch import Generator, Tensor
from torch.utils.tensorboard import SummaryWriter

from lightning_icl.commands.output import new_folder, record_alone
from lightning_icl.figures import style, theory_risks, write_figure
from lightning_icl.figures.theory import ARMS, AXES, RIVALS, RULES
from lightning_icl.functional.errors import MOST_THREADS, InputError, check_at_least, check_between
from lightning_icl.functional.references import (
    GD,
    Bayes,
    Case,
    GDPlusPlus,
    Lasso,
    PreprocessThenGD,
    Problems,
    Reference,
    Ridge,
    ZeroPredictor,
    errors,
    tuned,
    whole_prompts,
)
from lightning_icl.functional.risk import Interval, mean_with_interval
from lightning_icl.functional.tasks import Law, LinearTask, SparseLinearRegression
from lightning_icl.record.lines import wrapped
from lightning_icl.record.rows import Measurement, Row, frame
from lightning_icl.terminal import progress

N_QUERIES = 16  # of a prompt
CAP = 10.0  # times the zero predictor's risk: an error above it is of a prompt on which an algorithm diverged
MAX_SUPPORTS = 40_000  # that Bayes sums over for each prompt: 32 choose 4, a few seconds for 1,000 prompts
OPTIONS = {"d": "n_dims", "s": "sparsity", "sigma": "noise_std", "correlation": "correlation"}  # of the task
WHOLE = ("n", "d", "s", "T")  # axes of whole numbers
DEFAULT_TASK = lazy_instance(SparseLinearRegression, n_dims=16, sparsity=4, noise_std=0.4)
DEFAULT_AXES: dict[str, list[float]] = {
    "n": [8, 16, 32, 64, 128],
    "d": [8, 16, 32, 64, 128],
    "s": [1, 2, 4, 8, 16],
    "sigma": [0, 0.2, 0.4, 0.8, 1.6],
    "T": [1, 2, 5, 10, 20, 50, 100],
    "correlation": [0, 0.3, 0.5, 0.7, 0.9],
}


class Setting(NamedTuple):
    """Where the estimators are scored: a law of prompts, n examples in each, T steps of those that iterate."""

    task: Law
    n_points: int
    steps: int

    def at(self, axis: str, value: float | int) -> "Setting":
        """The same but for one of AXES; raises InputError where that cannot be."""
        if axis in WHOLE and not (math.isfinite(value) and value == int(value) and value >= 1):
            raise InputError(f"axes has {value:g} for {axis}, but that must be a whole number from 1.")
        value = int(value) if axis in WHOLE else float(value)
        if axis == "n":
            return self._replace(n_points=int(value))
        if axis == "T":
            return self._replace(steps=int(value))
        try:
            return self._replace(task=self.task.shifted(**{OPTIONS[axis]: value}))
        except InputError as error:
            raise InputError(f"axes has {value:g} for {axis}: {error}") from error

    def place(self, swept: str = "") -> str:
        """Where it stands on each of AXES but the one that is swept, such as "n = 32, d = 16"."""
        of_task = {axis: getattr(self.task, option, None) for axis, option in OPTIONS.items()}
        values = {"n": self.n_points} | of_task | {"T": self.steps}
        shown = {a: f"{v:g}" if isinstance(v, float) else v for a, v in values.items() if v is not None and a != swept}
        return ", ".join(f"{AXES[a].symbol} = {v}" for a, v in shown.items())


def theory(
    task: Law = DEFAULT_TASK,
    n_points: int = 32,
    steps: int = 5,
    axes: dict[str, list[float]] = DEFAULT_AXES,
    prompts: int = 1024,
    tuning_prompts: int = 1024,
    output: str | None = None,
    seed: int = 0,
    cpu_threads: int = 1,
) -> None:
    """The theory on one page: excess risk of GD, preprocess-then-GD, GD++, ridge, lasso and Bayes, a figure an axis.

    The algorithms run T steps with one step size for all prompts, T steps with one per prompt, or to the best stopping.
    Beside them stand s sigma^2/n and d sigma^2/n, leading-order approximations of ours. Writes record.jsonl,
    risk_against_AXIS.png and .svg and TensorBoard's files, and says where preprocess-then-GD is above GD and ridge.

    Args:
        task: the law of the prompts; a linear one has the leading-order approximations.
        n_points: examples of each prompt, where n is not swept.
        steps: T, where it is not swept.
        axes: what to sweep, of n, d, s, sigma, T and correlation (AR(1)), and through which values, such as
            '{n: [8, 32], T: [1, 5, 20]}'; the rest stays as the other options say.
        prompts: how many to score on at each value.
        tuning_prompts: how many separate ones step sizes, best stopping and the lasso's strength are chosen on.
        output: the new folder; theory, or theory_2 and so on, unless told.
        seed: of all prompts.
        cpu_threads: threads; 1 is fastest for problems this small.
    """
    check_at_least(1, n_points=n_points, steps=steps, tuning_prompts=tuning_prompts)
    check_at_least(2, prompts=prompts)
    check_between(1, MOST_THREADS, cpu_threads=cpu_threads)
    torch.set_num_threads(cpu_threads)
    standard = Setting(task, n_points, steps)
    places = settings(standard, axes)
    folder = new_folder(output, "theory")
    scores = Scores(prompts, tuning_prompts, seed)
    points = [(axis, value, setting) for axis, at in places.items() for value, setting in at.items()]
    rows = [
        row
        for axis, value, setting in progress(points, "settings")
        for row in theory_rows(axis, value, setting, scores)
    ]
    context = {
        "command": "theory",
        "seed": seed,
        "law": [{"stream": None, "task": repr(task), "n_points": [n_points, n_points]}],
        "options": {"steps": steps, "axes": axes, "prompts": prompts, "tuning_prompts": tuning_prompts},
    }
    drawn = {f"risk_against_{axis}": theory_risks(frame(rows), axis, standard.place(axis)) for axis in places}
    _write(folder, rows, drawn, context)
    said = report(frame(rows), standard, prompts)
    print("\n".join(["", *said, "", f"figures and numbers: {folder}"]))


def settings(standard: Setting, axes: Mapping[str, Sequence[float]]) -> dict[str, dict[float, Setting]]:
    """The settings along each axis; raises InputError for the first that cannot be."""
    if not axes:
        raise InputError(f"axes is {{}}, but there must be one at least of {', '.join(AXES)}.")
    for axis, values in axes.items():
        if axis not in AXES:
            raise InputError(f"axes has {axis!r}, but an axis must be one of {', '.join(AXES)}.")
        if not values or len(set(values)) < len(values):
            raise InputError(f"axes has {list(values)} for {axis}, but there must be a value, and each once.")
    return {axis: {value: standard.at(axis, value) for value in sorted(values)} for axis, values in axes.items()}


def arms(setting: Setting) -> dict[str, Reference]:
    """The estimators by the place of their rows: RULE/ESTIMATOR for those with a step-size rule, else ESTIMATOR."""
    t = setting.steps
    found: dict[str, Reference] = {
        "shared/gd": GD(t, "shared"),
        "shared/preprocess_then_gd": PreprocessThenGD(t, "shared"),
        "shared/gd_plus_plus": GDPlusPlus(t, "shared"),
        "per_prompt/gd": GD(t),
        "per_prompt/preprocess_then_gd": PreprocessThenGD(t),
        "per_prompt/gd_plus_plus": GDPlusPlus(t),
        "best/gd": GD("best", scale=1.0),
        "best/preprocess_then_gd": PreprocessThenGD("best", scale=1.0),
        "ridge": Ridge(),
        "lasso": Lasso(),
        "zero": ZeroPredictor(),
    }
    terms = setting.task.posterior_terms
    return found | ({"bayes": Bayes()} if terms is not None and terms <= MAX_SUPPORTS else {})


class Score(NamedTuple):
    """An estimator on the prompts of a setting.

    Attributes:
        errors: the squared error of each prompt.
        label: what it is called, with its settings.
        unstable: of an algorithm with one step size for all prompts, whether the step is above 2 / lambda_max of the
            prompt, where gradient descent diverges.
    """

    errors: Float[Tensor, " prompts"]
    label: str
    unstable: Bool[Tensor, " prompts"] | None = None


class Scores:
    """Scores of estimators on the prompts of a setting; each is computed once, however many axes ask for it.

    The prompts hang on the seed, the law and n alone, so estimators are paired.
    """

    def __init__(self, prompts: int, tuning_prompts: int, seed: int) -> None:
        self.prompts, self.tuning_prompts, self.seed = prompts, tuning_prompts, seed
        self._known: dict[tuple[str, int, str], Score] = {}

    def __call__(self, setting: Setting, references: Mapping[str, Reference]) -> dict[str, Score]:
        """The scores by the references' names."""
        tuning, scoring = self.problems(setting)
        place, case = (repr(setting.task), setting.n_points), Case(setting.task, setting.task, setting.steps)
        new = {r.key: r.bound(case) for r in references.values() if (*place, r.key) not in self._known}
        known = tuned(list(new.values()), tuning)
        for reference, of_each in zip(known, errors(known, scoring).values(), strict=True):
            score = Score(of_each[:, 0], reference.label(), above_stable_steps(reference, scoring))
            self._known[*place, reference.key] = score
        return {name: self._known[*place, reference.key] for name, reference in references.items()}

    def problems(self, setting: Setting) -> tuple[Problems, Problems]:
        """What settings are chosen on, and what risks are measured on."""
        draws = []
        for stream, n_prompts in enumerate((self.tuning_prompts, self.prompts)):
            generator = Generator().manual_seed(2 * self.seed + stream)
            draws.append(whole_prompts(setting.task.sample(n_prompts, setting.n_points, N_QUERIES, generator)))
        return draws[0], draws[1]


def above_stable_steps(reference: Reference, problems: Problems) -> Bool[Tensor, " prompts"] | None:
    """Whether the one step size of GD or preprocess-then-GD is above 2 / lambda_max of each prompt, else None."""
    if not isinstance(reference, GD | PreprocessThenGD) or reference.step_size != "shared":
        return None
    return float(reference.setting[0, 0]) > 2 * reference.stable_steps(problems)


def theory_rows(axis: str, value: float | int, setting: Setting, scores: Scores) -> Iterator[Row]:
    """The numbers at one place of an axis: risks, preprocess-then-GD's minus its rivals', and leading orders."""
    place, n = f"theory/{axis}/{value:g}", setting.n_points
    known_steps = axis == "T"  # so best stopping has no place there
    found = scores(setting, {a: of for a, of in arms(setting).items() if not (known_steps and a.startswith("best/"))})
    cap = CAP * float(found["zero"].errors.mean())
    for arm, score in found.items():
        mean = difference_interval(score.errors, torch.zeros_like(score.errors), cap)
        yield Row(f"{place}/risk/{arm}", *mean, n_points=n, note=score.label)
        if score.unstable is not None:
            yield Row(f"{place}/unstable/{arm}", float(score.unstable.double().mean()), n_points=n)
    for rule, rival in itertools.product(RULES, RIVALS):
        ours, other = (f"{rule}/preprocess_then_gd", rival if rival in found else f"{rule}/{rival}")
        if ours in found and other in found:
            difference = difference_interval(found[ours].errors, found[other].errors, cap)
            yield Row(f"{place}/difference/{rule}/{rival}", *difference, n_points=n)
    for size, risk in leading_orders(setting).items():
        yield Row(f"{place}/leading_order/{size}", risk, n_points=n)


def difference_interval(ours: Float[Tensor, " prompts"], others: Float[Tensor, " prompts"], cap: float) -> Interval:
    """The mean of ours - others over prompts, with a 95 % interval that is of use also where one of them diverges.

    Its low end is that of min(ours, cap) - others, and its high end that of ours - min(others, cap): since
    E min(e, cap) <= E e, both hold for the mean itself. Where no error is above the cap it is the usual interval.
    """
    low = mean_with_interval(ours.clamp(max=cap) - others).low
    high = mean_with_interval(ours - others.clamp(max=cap)).high
    return Interval(float((ours - others).mean()), low, high)


def leading_orders(setting: Setting) -> dict[str, float]:
    """s sigma^2/n and d sigma^2/n of a linear law with one noise level, else nothing.

    Ours, for n far above s and d: the risks of least squares on the true support and on all features.
    """
    task = setting.task
    if not isinstance(task, LinearTask) or isinstance(task.noise_std, Sequence):
        return {}
    per_weight = task.noise_std**2 / setting.n_points
    return {"s": task.support_size * per_weight, "d": task.n_dims * per_weight}


def report(rows: pd.DataFrame, standard: Setting, prompts: int) -> list[str]:
    """Sentences on where preprocess-then-GD is above its rivals, with the largest differences either way."""
    lines = [
        "Preprocess + GD (P-GD) against GD, GD++ and ridge: its excess risk minus theirs,",
        f"paired over {prompts:,} prompts, [its 95 % interval]; above or below where that is",
        "all on one side of 0. Each comparison stands on its own.",
    ]
    differences = style.parts(rows, r"theory/(?P<axis>\w+)/(?P<at>[^/]+)/difference/(?P<rule>\w+)/(?P<rival>\w+)")
    for axis, of_axis in differences.groupby("axis", sort=False):
        lines += ["", *wrapped(f"{AXES[axis].title} ({standard.place(axis)}):", "")]
        for rule, of_rule in of_axis.groupby("rule", sort=False):
            lines += wrapped(" ".join(RULES[rule].split()) + ":", "  ")
            for rival, found in of_rule.groupby("rival", sort=False):
                sentence = f"{ARMS[rival][0]}: {compared(found, AXES[axis].symbol)}"
                lines += wrapped(sentence, "    against ", "      ")
            if rule == "shared":
                lines += wrapped(_unstable(rows, axis), "    ")
        if axis in ("d", "s") and (missing := _without_bayes(rows, axis)):
            said = f"Bayes is left out at {AXES[axis].symbol} = {', '.join(missing)}: above {MAX_SUPPORTS:,} supports."
            lines += wrapped(said)
    return lines


def compared(differences: pd.DataFrame, symbol: str) -> str:
    """Where these differences (columns at, value, low, high) are above 0, below 0 and neither, in words.

    "above at n = 16, 32 (at 32 by 1.30 [1.10, 1.50]), below nowhere, undecided at n = 8".
    """
    sides = {
        "above": differences[differences["low"] > 0],
        "below": differences[differences["high"] < 0],
    }
    said = []
    for side, found in sides.items():
        if found.empty:
            said.append(f"{side} nowhere")
            continue
        most = found.loc[found["value"].abs().idxmax()]
        low, size, high = (style.number(end) for end in sorted(abs(most[key]) for key in ("low", "value", "high")))
        said.append(f"{side} at {symbol} = {', '.join(found['at'])} (at {most['at']} by {size} [{low}, {high}])")
    open_ones = differences[(differences["low"] <= 0) & (differences["high"] >= 0)]
    return ", ".join(said) + (f", undecided at {symbol} = {', '.join(open_ones['at'])}" if len(open_ones) else "")


def _unstable(rows: pd.DataFrame, axis: str) -> str:
    """How often preprocess-then-GD's one step size is too large: why its mean has so wide an interval."""
    shares = style.parts(rows, rf"theory/{axis}/(?P<at>[^/]+)/unstable/shared/preprocess_then_gd")
    most = shares.loc[shares["value"].idxmax()]
    share, place = f"{100 * most['value']:.2g} %", f"{AXES[axis].symbol} = {most['at']}"
    return f"its step is above 2/λmax, where steps diverge, on at most {share} of prompts (at {place})"


def _without_bayes(rows: pd.DataFrame, axis: str) -> list[str]:
    found = style.parts(rows, rf"theory/{axis}/(?P<at>[^/]+)/risk/(?P<arm>.+)")
    known = set(found.loc[found["arm"] == "bayes", "at"])
    return [at for at in dict.fromkeys(found["at"]) if at not in known]


def _write(folder: Path, rows: Sequence[Row], drawn: Mapping[str, Figure], context: Mapping[str, Any]) -> None:
    pixels = {name: write_figure(folder, name, figure) for name, figure in drawn.items()}
    with SummaryWriter(str(folder)) as writer:
        for name, image in pixels.items():
            writer.add_image(f"theory/{name}", image, dataformats="HWC")
    record_alone(folder, Measurement("Theory", 0, context, rows))
