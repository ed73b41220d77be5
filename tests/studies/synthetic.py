"""Tables of studies that never ran: drawn around true values that a test chooses.

Every number is its true value times exp(shared + own): shared is drawn once for each seed (and setting and number of
examples), as trials of one seed have their prompts in common, own for each number. So a ratio of two numbers of one
seed scatters by the own part alone, and the geometric mean of any metric is its true value.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lightning_icl.studies.table import KEYS

HEADS = ((1, 1), (2, 2), (4, 4), (8, 8), (8, 1), (1, 8))
WIDTH = 0.01  # half the 95 % interval over prompts, of a number
INTEGERS = ("seed", "step", "layer", "head", "n_points", "depth")
Heads = tuple[int, ...]


def level(n_points: int, noise_std: float) -> float:
    """The scale of all risks: that of the model [1, .., 1] and of least squares."""
    return (1 + noise_std) * 8 / n_points


def risk_by_heads(heads: Heads) -> float:
    """The transformer's risk over the scale: falls with the heads of layer 1, and a little with those of the rest."""
    return heads[0] ** -0.4 * (heads[-1] ** -0.1 if len(heads) > 1 else 1.0)


class Truth(NamedTuple):
    """The values that the table's numbers scatter around.

    Attributes:
        risk: the transformer's excess risk, over ``level``, by its heads and number of examples.
        references: those of the reference estimators, over ``level`` (zero: as it is).
        effective: effective heads of layer 1, over their number (at least 1 head).
        top_share: of the top head of each later layer (at least 1 / h), at the end of training.
        ratios: excess risk of pruned models over the full one's.
        p_probing: excess risk on each representation, over ``level``, one layer or step; less at larger depths.
    """

    risk: Callable[[Heads, int], float] = lambda heads, n_points: risk_by_heads(heads)
    references: Mapping[str, float] = {
        "zero": 4.0,
        "ridge": 0.6,
        "lasso": 0.3,
        "bayes": 0.2,
        "oracle_support": 0.15,
        "gd_at_depth": 0.8,
        "gd_best": 0.62,
        "preprocess_then_gd_at_depth": 0.5,
    }
    effective: float = 0.9
    top_share: float = 0.8
    ratios: Mapping[str, float] = {
        "full": 1.0,
        "paper": 1.04,
        "prune_layer1_instead": 4.0,
        "random_head": 2.0,
        "least_important": 3.0,
    }
    p_probing: Mapping[str, float] = {
        "heads_1": 0.9,
        "heads_8": 0.5,
        "read_in": 0.8,
        "raw": 0.8,
        "r_hat": 0.45,
        "r_hat_power": 0.44,
        "gd_plus_plus": 0.7,
        "untrained": 1.0,
    }


TRUTH = Truth()


def synthetic_table(
    generator: np.random.Generator,
    seeds: Sequence[int] = (1, 2, 3, 4, 5),
    heads: Sequence[Sequence[int]] = HEADS,
    noise: Sequence[float] = (0.4,),
    truth: Truth = TRUTH,
    spread: float = 0.02,
    shared: float = 0.2,
    n_points: Sequence[int] = (8, 16, 32),
    steps: Sequence[int] = (100, 200, 400),
    silent: Collection[tuple[int, int]] = (),
) -> pd.DataFrame:
    """A table of the form of lightning_icl.studies.table.

    ``spread`` and ``shared`` are standard deviations of the two parts of the scatter, in logarithms. ``silent`` are
    the (seed, layer) whose heads' importance is within noise of zero in all models, so that it has no shares.
    """
    rows: list[dict[str, Any]] = []
    for noise_std in noise:
        for seed in seeds:
            prompts = {n: np.exp(shared * generator.standard_normal()) for n in n_points}
            case = _Case(generator, seed, noise_std, truth, spread, prompts, tuple(steps), frozenset(silent))
            for model in map(tuple, heads):
                rows += case.trial(model)
            for depth in sorted({len(model) for model in heads}):
                rows += case.p_probing_trial(depth)
    return in_form(pd.DataFrame(rows))


def in_form(table: pd.DataFrame) -> pd.DataFrame:
    """With all columns of the form, in order, of the types that a gathered table has."""
    table = table.reindex(columns=[*KEYS, *(column for column in table.columns if column not in KEYS)])
    return table.astype(dict.fromkeys(INTEGERS, "Int64") | dict.fromkeys(("value", "low", "high"), "float64"))


def shares_with_effective(effective: float, h: int) -> np.ndarray:
    """h shares whose exp(entropy) is ``effective``: one larger than the rest, by bisection."""
    low, high = 1 / h, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if effective_number(shares_with_top(middle, h)) > effective else (low, middle)
    return shares_with_top(low, h)


def shares_with_top(top: float, h: int) -> np.ndarray:
    """h shares of which the first is ``top`` and the others are alike."""
    return np.array([top, *[(1 - top) / (h - 1)] * (h - 1)]) if h > 1 else np.ones(1)


def effective_number(shares: np.ndarray) -> float:
    """exp(entropy) of shares that sum to 1."""
    positive = shares[shares > 0]
    return float(np.exp(-(positive * np.log(positive)).sum()))


class _Case(NamedTuple):
    """One seed in one setting."""

    generator: np.random.Generator
    seed: int
    noise_std: float
    truth: Truth
    spread: float
    prompts: Mapping[int, float]  # the shared part of each number of examples
    steps: tuple[int, ...]
    silent: frozenset[tuple[int, int]]

    def drawn(self, value: float) -> float:
        return value * float(np.exp(self.spread * self.generator.standard_normal()))

    def level(self, n: int) -> float:
        return level(n, self.noise_std) * self.prompts[n]

    def at_most_examples(self) -> float:
        return self.level(max(self.prompts))

    def trial(self, heads: Heads) -> list[dict[str, Any]]:
        """All rows of one model."""
        rows: list[dict[str, Any]] = []
        for step in self.steps:
            late = step / self.steps[-1]
            rows += [row | {"step": step} for row in self.risks(heads, 3 - 2 * late)]
            rows += [row | {"step": step} for row in self.importance(heads, late)]
        ends = [*self.pruned(heads), *self.probes(heads), _row("run/parameters", 1000.0 * len(heads))]
        rows += [row | {"step": self.steps[-1]} for row in ends]
        name = f"heads-{'-'.join(map(str, heads))}-noise-{self.noise_std}-seed-{self.seed}"
        keys = self.keys(name, len(heads)) | {"model.heads": json.dumps(list(heads))}
        return [row | keys for row in rows]

    def keys(self, trial: str, depth: int) -> dict[str, Any]:
        return {
            "trial": trial,
            "seed": self.seed,
            "depth": depth,
            "data.task": "SparseLinearRegression",
            "data.task.n_dims": 16,
            "data.task.noise_std": self.noise_std,
        }

    def risks(self, heads: Heads, untrained: float) -> list[dict[str, Any]]:
        """The transformer and the references, which know nothing of training."""
        rows = []
        for n in self.prompts:
            risk = self.drawn(self.truth.risk(heads, n) * self.level(n)) * untrained
            rows.append(_row("val/excess_risk/transformer", risk, n_points=n))
            for name, value in self.truth.references.items():
                scale = self.prompts[n] if name == "zero" else self.level(n)
                rows.append(_row(f"val/excess_risk/{name}", value * scale, n_points=n))
        for name in ("transformer", *self.truth.references):
            at_n = [row["value"] for row in rows if row["metric"] == f"val/excess_risk/{name}"]
            rows.append(_row(f"val/excess_risk/{name}", float(np.mean(at_n))))
        return rows

    def importance(self, heads: Heads, late: float) -> list[dict[str, Any]]:
        """Leave-one-out: layer 1 as it is from the start, later layers alike at first."""
        rows = [_row("heads/risk", self.truth.risk(heads, max(self.prompts)) * self.at_most_examples())]
        for layer, h in enumerate(heads, start=1):
            shares = self.shares(layer, h, late)
            silent = (self.seed, layer) in self.silent
            place = "heads/leave_one_out"
            for head, share in enumerate(shares, start=1):
                raw = 0.001 * self.generator.standard_normal() if silent else 0.5 * self.drawn(share)
                rows.append(_row(f"{place}/importance", raw, layer=layer, head=head))
                rows.append(_row(f"{place}/share", np.nan if silent else share, layer=layer, head=head))
            effective, top = (np.nan, np.nan) if silent else (effective_number(shares), shares.max())
            rows += [_row(f"{place}/effective", effective, layer=layer), _row(f"{place}/top_share", top, layer=layer)]
        return rows

    def shares(self, layer: int, h: int, late: float) -> np.ndarray:
        """Of one layer's heads, in an order of its own."""
        if layer == 1:
            shares = shares_with_effective(float(np.clip(self.drawn(self.truth.effective * h), 1, h)), h)
        else:
            top = late * self.drawn(self.truth.top_share) + (1 - late) / h
            shares = shares_with_top(float(np.clip(top, 1 / h, 1)), h)
        return self.generator.permutation(shares)

    def pruned(self, heads: Heads) -> list[dict[str, Any]]:
        """Pruned models; nothing is pruned, and no ratio is other than 1, where every layer has one head."""
        rows = []
        full = self.drawn(self.truth.risk(heads, max(self.prompts)) * self.at_most_examples())
        for model, true in self.truth.ratios.items():
            alike = model == "full" or max(heads) == 1
            ratio = 1.0 if alike else self.drawn(true)
            rows.append(_row(f"prune/as_is/{model}/ratio", ratio))
            rows.append(_row(f"prune/as_is/{model}/excess_risk", ratio * full))
            rows.append(_row(f"prune/read_out/{model}/ratio", 1 + (ratio - 1) / 2))
            rows.append(_row(f"prune/read_out/{model}/excess_risk", (1 + (ratio - 1) / 2) * full))
        return [*rows, _row("prune/paper/n_heads", heads[0] + len(heads) - 1)]

    def probes(self, heads: Heads) -> list[dict[str, Any]]:
        """The query token's states: what they know grows with depth; the algorithms' curves beside it."""
        rows = []
        scale = self.at_most_examples()
        for layer in range(len(heads) + 1):
            for target in ("f", "w", "r_hat", "preprocessed", "ridge", "gd_1", "preprocess_then_gd_1"):
                for arm, r2 in (("trained", 0.9 * layer / len(heads)), ("untrained", 0.1), ("shuffled", 0.001)):
                    known = self.drawn(r2)
                    rows.append(_row(f"probe/query/{target}/{arm}/r2", known, layer=layer))
                    rows.append(_row(f"probe/query/{target}/{arm}/risk", (1 - known) * scale, layer=layer))
            for arm, auc in (("trained", 0.5 + 0.4 * layer / len(heads)), ("untrained", 0.55), ("shuffled", 0.5)):
                rows.append(_row(f"probe/query/support/{arm}/auc", min(self.drawn(auc), 1.0), layer=layer))
                rows.append(_row(f"probe/context/preprocessed/{arm}/r2", min(self.drawn(auc), 1.0), layer=layer))
        for layer in range(1, len(heads) + 1):
            for algorithm, rate in (("gd", 0.8), ("preprocess_then_gd", 0.6)):
                rows.append(_row(f"probe/curve/{algorithm}", scale * 4 * rate ** (layer - 1), layer=layer))
        levels = {"transformer": self.truth.risk(heads, max(self.prompts))} | dict(self.truth.references)
        return [*rows, *(_row(f"probe/level/{n}", levels[n] * scale) for n in ("transformer", "ridge", "bayes"))]

    def p_probing_trial(self, depth: int) -> list[dict[str, Any]]:
        """Risks on each representation, of models with ``depth`` layers; more steps are better, attention's more so."""
        rows = [
            _row(f"p_probing/{optimiser}/{steps}/{arm}", self.drawn(value * rate**steps * self.at_most_examples()))
            for optimiser, rate in (("attention", 0.7), ("descent", 0.8))
            for steps in (1, 2)
            for arm, value in self.truth.p_probing.items()
        ]
        keys = self.keys(f"p_probing-layers-{depth}-noise-{self.noise_std}-seed-{self.seed}", depth)
        keys |= {"step": self.steps[-1]}
        return [row | keys | {"model.heads": None} for row in rows]


def _row(metric: str, value: float, **place: int) -> dict[str, Any]:
    """One number, with an interval over prompts of ``WIDTH`` to each side."""
    half = WIDTH * abs(float(value))
    return {"metric": metric, "value": float(value), "low": value - half, "high": value + half, **place}
