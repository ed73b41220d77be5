"""Which algorithm is it: the distance of every layer's reading to known estimators."""

from lightning.pytorch import LightningModule, Trainer

from lightning_icl.callbacks import figures
from lightning_icl.callbacks.analysis import (
    Analysis,
    check_at_least,
    datamodule,
    log_scalars,
    progress,
    save_figure,
)
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.references import Case, Reference
from lightning_icl.instruments.algorithms import Distance, algorithm_distances, comparable
from lightning_icl.module import ICLModule

KINDS = ("spd", "relative_spd", "ilwd", "relative_ilwd", "cosine")


class AlgorithmMatch(Analysis):
    """How far what each layer has computed is from GD_t, P-GD_t, GD++_t, Newton_t, ridge, lasso, least squares, Bayes.

    A layer is read by a linear ridge probe of the query's state for f(x_q); its implied weights are the gradient of
    that with respect to x_q. Compared are predictions (SPD) and weights (ILWD), as they are and relative: 0 is the
    algorithm itself, 1 is no closer than predicting 0. Settings (t, step size, alpha) are fitted for each layer and
    each number of examples on separate prompts. Formulas: lightning_icl.instruments.algorithms.

    Logs, for the largest number of examples and each layer (layer{l}, and read_out for the model's own prediction):
    algorithm/spd/<algorithm>/layer{l}, algorithm/relative_spd/..., algorithm/ilwd/..., algorithm/relative_ilwd/...,
    algorithm/cosine/... (of the weights), each with its standard error under algorithm/<distance>_error/..., and the
    fitted algorithm/setting/<steps, step, gamma or alpha>/<algorithm>/layer{l}. results.json has every number of
    examples. Figure: algorithm_match.

    Args:
        n_prompts: prompts the settings are chosen on; as many again are scored, and twice as many fit the probes.
        n_points: numbers of examples; a quarter, half and all of the largest if left out. Fewer than a model was
            trained on show how it extrapolates.
        algorithms: what to compare with instead, such as [GD, {class_path: Lasso, init_args: {alpha: 0.1}}]; free
            settings are fitted, but for Ridge, whose alpha the law may imply (TunedRidge fits it all the same).
        alpha: ridge strength of the probes.
        chunk_size: prompts in one forward and backward pass.
        every_n_validations: run at every n-th validation.
    """

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
        check_at_least("n_prompts", n_prompts, 2)
        check_at_least("chunk_size", chunk_size, 1)
        if not 0 < alpha < float("inf"):
            raise InputError(f"alpha is {alpha}, but the probe's ridge strength must be a finite number above 0.")
        for name, given in (("n_points", n_points), ("algorithms", algorithms)):
            if given == []:
                raise InputError(f"{name} is [], but it must have at least one entry; leave it out for the default.")
        for n in n_points or []:
            check_at_least("n_points", n, 1)
        comparable(algorithms or [])
        self.n_prompts, self.n_points, self.algorithms = n_prompts, n_points, algorithms
        self.alpha, self.chunk_size = alpha, chunk_size
        self.result: list[Distance] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        data = datamodule(trainer)
        task, largest = data.streams[0].task, data.streams[0].largest_n
        for algorithm in self.algorithms or []:
            algorithm.check(Case(task, data.task, 1))
        for n in self.n_points or []:
            if n > largest:
                raise InputError(f"n_points has {n}, but the prompts have at most {largest} examples.")
        self.result = []

    def analyse(self, trainer: Trainer, module: ICLModule) -> None:
        data = datamodule(trainer)
        sizes = {"fit": 2 * self.n_prompts, "choose": self.n_prompts, "score": self.n_prompts}
        fit, choose, score = (data.held_out(f"algorithm_{name}", n, module.device) for name, n in sizes.items())
        found = algorithm_distances(
            module.transformer,
            fit,
            choose,
            score,
            data.streams[0].task,
            self.algorithms,
            self.n_points,
            self.alpha,
            self.chunk_size,
            lambda items, description: progress(trainer, items, description),
        )
        self.result = trainer.strategy.broadcast(found)
        log_scalars(module, _scalars(at_most_points(self.result)))
        save_figure(trainer, "algorithm_match", figures.algorithm_match(self.result))

    def record(self) -> dict[str, object]:
        return {"distances": self.result} if self.result else {}

    def summary(self) -> list[str]:
        if not self.result:
            return []
        whole = at_most_points(self.result)
        lines = [
            f"The closest algorithm to each layer's reading ({whole[0].n_points} examples; 0 is equal, 1 as 0 is):"
        ]
        for reading in dict.fromkeys(d.reading for d in whole):
            name = "the model's read-out" if reading == "read_out" else f"layer {reading.removeprefix('layer')}"
            lines.append(f"  {name}: {_closest([d for d in whole if d.reading == reading])}")
        return lines


def _closest(found: list[Distance]) -> str:
    """The closest algorithm to one reading, and those that the prompts cannot tell from it."""
    best, *others = sorted(found, key=lambda d: d.relative_spd)
    if not best.relative_spd + 2 * best.relative_spd_error < 1:
        return "none is closer than predicting 0"
    distance = f"{best.label}; distance {best.relative_spd:.3g} +- {best.relative_spd_error:.1g}"
    alike = [d.algorithm for d in others if _low(d) <= best.relative_spd + 2 * best.relative_spd_error]
    return distance + f" (intervals overlap: {', '.join(alike)})" * bool(alike)


def _low(distance: Distance) -> float:
    return distance.relative_spd - 2 * distance.relative_spd_error


def at_most_points(found: list[Distance]) -> list[Distance]:
    """The distances at the largest number of examples."""
    largest = max(d.n_points for d in found)
    return [d for d in found if d.n_points == largest]


def _scalars(found: list[Distance]) -> dict[str, float]:
    scalars = {}
    for d in found:
        place = f"{d.algorithm}/{d.reading}"
        for kind in KINDS:
            scalars[f"algorithm/{kind}/{place}"] = getattr(d, kind)
            scalars[f"algorithm/{kind}_error/{place}"] = getattr(d, f"{kind}_error")
        scalars |= {f"algorithm/setting/{name}/{place}": value for name, value in d.setting.items()}
    return scalars
