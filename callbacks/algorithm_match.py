"""Which algorithm is it: the distance of every layer's reading to known estimators."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import pandas as pd
from lightning.pytorch import Trainer
from matplotlib.figure import Figure

from lightning_icl import figures
from lightning_icl.callbacks.analysis import Analysis, check_at_least, datamodule, progress
from lightning_icl.data import PromptDataModule
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.probes import check_strength
from lightning_icl.functional.references import Case, Reference
from lightning_icl.instruments.algorithms import (
    PROBE,
    READ_OUT,
    SAME,
    Distance,
    algorithm_distances,
    comparable,
    default_sizes,
)
from lightning_icl.module import ICLModule
from lightning_icl.record.lines import plus_minus, wrapped
from lightning_icl.record.rows import Row

MOST_SHOWN = 12  # algorithms in the loggers by default
FAR = 0.5  # the relative distance from which on the closest does not give its name
SAID = {READ_OUT: "the model's read-out of layer", PROBE: "the best linear use of the state, up to scale, of layer"}


class AlgorithmMatch(Analysis):
    """How far what each layer has computed is from GD_t, P-GD_t, GD++_t, Newton_t, ridge, lasso, least squares, Bayes.

    A layer is read by the model's own read-out and by a linear ridge probe of the query's state for f(x_q), the best
    linear use of the state; its implied weights are the gradient of that with respect to x_q. Compared are predictions
    (SPD) and weights (ILWD), as they are and relative: 0 is the algorithm itself, 1 is no closer than predicting 0; for
    probes up to scale. Settings (t, step size, gamma, alpha) are fitted for each reading and each number of examples on
    separate prompts. Formulas: lightning_icl.instruments.algorithms.

    Rows are of each layer's reading by the read-out (algorithm/read_out/..., after the last layer the model's
    prediction) and by the probe (algorithm/probe/...). rank is 1 for the closest, 0 for all where a reading is 0.
    excess_over_closest has an interval that holds for all pairs of algorithms at once; where it holds 0, the prompts
    cannot tell the two apart. Settings are steps (the interval: as good on these prompts), step, gamma, alpha, and
    scale, of probes. Figure: algorithm_match.

    Args:
        n_prompts: prompts the settings are chosen on; as many again are scored, and twice as many fit the probes.
        n_points: numbers of examples; a quarter, half and all of the largest if left out. Fewer than a model was
            trained on show how it extrapolates.
        algorithms: what to compare with instead, such as [GD, {class_path: Lasso, init_args: {alpha: 0.1}}]; free
            settings are fitted, but for Ridge, whose alpha the law may imply (TunedRidge fits it all the same).
        alpha: ridge strength of the probes.
        chunk_size: prompts in one forward and backward pass.
        every_n_validations: run at every n-th validation.

    Example:
        .. code-block:: yaml

            trainer:
              callbacks:
                - {class_path: AlgorithmMatch, init_args: {n_points: [4, 8], every_n_validations: 5}}
    """

    shown = ("algorithm/",)  # until it is known which

    def __init__(
        self,
        n_prompts: int = 256,
        n_points: list[int] | None = None,
        algorithms: list[Reference] | None = None,
        alpha: float = 1.0,
        chunk_size: int = 256,
        every_n_validations: int = 1,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(2, n_prompts=n_prompts)
        check_at_least(1, chunk_size=chunk_size)
        check_strength(alpha)
        for name, given in (("n_points", n_points), ("algorithms", algorithms)):
            if given == []:
                raise InputError(f"{name} is [], but it must have at least one entry; leave it out for the default.")
        for n in n_points or []:
            check_at_least(1, n_points=n)
        comparable(algorithms or [])
        self.n_prompts, self.n_points, self.algorithms = n_prompts, n_points, algorithms
        self.alpha, self.chunk_size = alpha, chunk_size

    def looks_at(self, data: PromptDataModule) -> Sequence[int]:
        return self.n_points or default_sizes(data.streams[0].largest_n)

    def check_run(self, trainer: Trainer, module: ICLModule, data: PromptDataModule, stage: str) -> None:
        task, largest = data.streams[0].task, data.streams[0].largest_n
        for algorithm in self.algorithms or []:
            algorithm.check(Case(task, data.task, module.depth))
        if (n := max(self.n_points or [1])) > largest:
            raise InputError(f"n_points has {n}, but the prompts have at most {largest} examples.")

    def analyse(self, trainer: Trainer, module: ICLModule) -> Iterator[Row]:
        data = datamodule(trainer)
        sizes = {"fit": 2 * self.n_prompts, "choose": self.n_prompts, "score": self.n_prompts}
        fit, choose, score = (data.held_out(f"algorithm_{name}", n, module.device) for name, n in sizes.items())
        task, bar = data.streams[0].task, partial(progress, trainer)
        settings = self.algorithms, self.n_points, self.alpha, self.chunk_size
        found = algorithm_distances(module.network, fit, choose, score, task, *settings, bar)
        largest = max(d.n_points for d in found)
        names = list(dict.fromkeys(d.algorithm for d in found))
        shown = "|".join(map(re.escape, names)) if len(names) <= MOST_SHOWN else "closest"
        place = f"n{largest}/layer{max(1, module.depth)}"
        self.shown = (rf"algorithm/{READ_OUT}/({shown})/relative_spd/{place}$",)  # type: ignore[misc]  # known now
        for distance in found:
            yield from distance_rows(distance, self.n_prompts)

    def figures(self, rows: pd.DataFrame) -> Mapping[str, Figure]:
        return {"algorithm_match": figures.algorithm_match(rows)}

    def summary(self, rows: pd.DataFrame) -> list[str]:
        whole = rows[rows["n_points"] == rows["n_points"].max()]
        parts = whole["metric"].str.split("/", n=3, expand=True)
        whole = whole.assign(reading=parts[1], algorithm=parts[2], kind=parts[3])
        lines = [
            f"The closest algorithm to each layer's reading ({self.n_prompts:,} held-out prompts of "
            f"{whole['n_points'].iloc[0]}",
            "examples; relative distance ± 95 %, 0: equal, 1: no closer than predicting 0):",
        ]
        for reading, of_reading in whole.groupby("reading", sort=False):
            alone = reading == READ_OUT and of_reading["layer"].nunique() == 1
            lines.append("  the model's prediction" if alone else f"  {SAID[reading]}")
            for layer, of_layer in of_reading.groupby("layer"):
                said = f"{layer:g}: " * (not alone) + _closest(of_layer.set_index(["kind", "algorithm"]))
                lines += wrapped(said, "    ", further="       ")
        return lines


def distance_rows(d: Distance, n_prompts: int) -> Iterator[Row]:
    """The rows of one reading, algorithm and number of examples."""
    for name, interval in d.numbers(n_prompts):
        note = d.label if name == "relative_spd" else None
        yield Row(f"algorithm/{d.reading}/{d.algorithm}/{name}", *interval, d.layer, n_points=d.n_points, note=note)


def _closest(rows: pd.DataFrame) -> str:
    """The closest algorithm to one reading, those that are the same here, and those the prompts cannot tell from it."""
    distances, ranks = rows.loc["relative_spd"], rows.loc["rank"]["value"]
    if not ranks.any():
        return "reads 0"
    if not (distances["high"] < 1).any():
        return "none is closer than predicting 0"
    name = ranks.idxmin()
    best = distances.loc[name]
    if best["low"] > FAR:
        return f"no algorithm; the closest, {best['note']}, is at distance {plus_minus(best, half='.1g')}"
    said = f"{best['note']}; distance {plus_minus(best, half='.1g')}"
    excess, apart = rows.loc["excess_over_closest"], rows.loc["from_closest"]["value"]
    others = [other for other in ranks.sort_values().index if other != name and excess["low"][other] <= 0]
    same = [other for other in others if apart[other] <= SAME]
    notes = distances["note"]
    alike = [f"{notes[other]} ({distances['value'][other]:.3g})" for other in others if other not in same]
    if ("setting/steps", name) in rows.index:
        fewest, most = rows.loc[("setting/steps", name), ["low", "high"]]
        said += f"; {fewest:g} to {most:g} steps are as good" * bool(fewest < most)
    said += f"; with these settings the same, if less simple: {', '.join(notes[other] for other in same)}" * bool(same)
    return said + f"; cannot be told from it: {'; '.join(alike)}" * bool(alike)
