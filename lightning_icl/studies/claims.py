"""What a reproduction of the paper must show, as functions of a study's table.

The bounds are ours: docs/explanation/science.md, What a reproduction must show.

Every claim is one or more comparisons; each has one number for every seed, for seeds are the independent replications.
Models are compared by the ratio of their risks on the prompts of one seed, so that what a seed's prompts add to both
cancels, and ratios are averaged geometrically. Models of different depth are never compared with each other.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd

from lightning_icl.figures.pruning import TREATMENTS
from lightning_icl.figures.style import estimator_label
from lightning_icl.functional.errors import InputError
from lightning_icl.studies.names import error_text, setting_text, value_text
from lightning_icl.studies.selection import Heads, by_seed, models, most_heads, uniform_models
from lightning_icl.studies.table import KEYS, by_setting, last_step
from lightning_icl.studies.verdicts import Finding, Part, Side, finding

Treatment = Literal["as_is", "read_out", "rescaled", "fine_tuned"]
MODEL = "val/excess_risk/transformer"
ZERO = 1e-12  # risks below it are rounding errors of 0, and a ratio needs more than 0


class Claim(ABC):
    """Something a study may find true or false.

    Attributes:
        statement: what it says, in words, with its bound.
        needs: what the table must have for it to be judged.
        which: what tells it from others of its class, if anything does.
        across: whether it compares settings, and so is judged once, on all of them together.
    """

    statement: str
    needs: str
    which: str = ""
    across: bool = False

    @property
    def name(self) -> str:
        """What its findings are called."""
        return type(self).__name__ + f" ({self.which})" * bool(self.which)

    @abstractmethod
    def parts(self, table: pd.DataFrame) -> Iterable[Part]:
        """The comparisons it needs, from one setting's last steps; none where the table lacks what it is about.

        With ``across`` they are from the last steps of all settings, whose options are columns of the table.
        """


def judge(
    claims: Sequence[Claim], table: pd.DataFrame, judged_where: Mapping[str, Any] = MappingProxyType({})
) -> list[Finding]:
    """What became of every claim: over all settings together, and then in each setting, where there are several.

    Over all settings together are those whose models have the config values ``judged_where``, which notes repeat.
    A setting that lacks what a claim is about has no finding of it, and the one over all settings says how many have.
    A claim that fails to be worked out is UNDECIDED, with its error as the note.
    """
    needed = (*KEYS, "depth", "model.heads")
    if missing := [column for column in needed if column not in table.columns]:
        raise InputError(f"the table has no column {missing[0]}, but a study's table has {', '.join(needed)}.")
    if table.empty:
        raise InputError("the table has no rows, but claims are judged by those of at least one trial.")
    if len(unknown := table[table["seed"].isna()]):
        raise InputError(f"trial {unknown['trial'].iloc[0]} has no seed, but seeds are what intervals are over.")
    settings, findings = by_setting(last_step(table)), []
    for claim in claims:
        try:
            findings += _findings(claim, settings, judged_where)
        except Exception as error:  # a claim is anyone's code, and the others and the report must stand
            statement = getattr(claim, "statement", "It has no statement.")
            findings.append(finding(claim.name, statement, None, [], error_text(error)))
    return findings


def _findings(
    claim: Claim, settings: Sequence[tuple[dict[str, Any], pd.DataFrame]], judged_where: Mapping[str, Any]
) -> list[Finding]:
    if claim.across:
        settings = [({}, pd.concat([rows for _, rows in settings if _has(rows, judged_where)] or [settings[0][1][:0]]))]
    found = [(setting, rows, parts) for setting, rows in settings if (parts := list(claim.parts(rows)))]
    apart = [finding(claim.name, claim.statement, setting, parts) for setting, _, parts in found if len(settings) > 1]
    found = [(setting, rows, parts) for setting, rows, parts in found if _has(rows, judged_where)]
    of_models = sum(rows["model.heads"].notna().any() for _, rows in settings if _has(rows, judged_where))
    together = [
        part._replace(label=": ".join(filter(None, [setting_text(setting), part.label])))
        for setting, _, parts in found
        for part in parts
    ]
    notes = [
        setting_text(judged_where),
        f"it needs {claim.needs}" if not found else "",
        f"in {len(found)} of {of_models} settings" if 0 < len(found) < of_models else "",
    ]
    return [finding(claim.name, claim.statement, None, together, ", ".join(filter(None, notes))), *apart]


def _has(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> bool:
    """Whether the rows of one setting are of models with these config values."""
    return all(key in rows and rows[key].map(value_text).eq(value_text(value)).all() for key, value in wanted.items())


class RiskFallsWithHeads(Claim):
    """The ratio of the risks of each number of heads to the next smaller one, of uniform models, is below 1.

    Example:
        >>> from lightning_icl.studies.claims import RiskFallsWithHeads
        >>> RiskFallsWithHeads().statement
        'The excess risk falls from each number of heads to the next larger one.'
    """

    statement = "The excess risk falls from each number of heads to the next larger one."
    needs = "uniform models of at least two numbers of heads"

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        risks = [(heads[0], risk) for heads in uniform_models(table) if len(risk := by_seed(table, MODEL, heads))]
        for (fewer, other), (more, risk) in pairwise(risks):
            yield from lower_risk(f"{more} heads against {fewer}", risk, other)


class OneHeadWorst(Claim):
    """At every number of examples, the risk of each uniform model over that with one head a layer is below 1.

    Example:
        >>> from lightning_icl.studies.claims import OneHeadWorst
        >>> OneHeadWorst().statement
        'One head a layer is worst at every number of examples.'
    """

    statement = "One head a layer is worst at every number of examples."
    needs = "a model with one head in every layer, a uniform one with more, and risks by number of examples"

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        one, *more = uniform_models(table) or [()]
        numbers = table.loc[table["metric"] == MODEL, "n_points"].dropna() if one[:1] == (1,) else ()
        for n in sorted(set(map(int, numbers))):
            worst = by_seed(table, MODEL, one, n_points=n)
            for heads in more:
                risk = by_seed(table, MODEL, heads, n_points=n)
                yield from lower_risk(f"{heads[0]} heads against 1, n = {n}", risk, worst)


class FirstLayerUsesAllHeads(Claim):
    """Nearly all heads of layer 1 matter: the effective number is at least a fraction of h.

    Of the uniform model with most heads, by leave-one-out.

    Args:
        fraction: of the heads of layer 1, above 0 and at most 1.

    Example:
        >>> from lightning_icl.studies.claims import FirstLayerUsesAllHeads
        >>> FirstLayerUsesAllHeads(fraction=0.5).statement
        'Layer 1 uses its heads: at least 0.5 of them in effect, by leave-one-out.'
    """

    needs = "the importance of heads in a uniform model with several"

    def __init__(self, fraction: float = 0.75) -> None:
        self.fraction = checked_fraction("fraction", fraction)
        self.statement = f"Layer 1 uses its heads: at least {fraction:g} of them in effect, by leave-one-out."

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        heads, metric = several_heads(table), "heads/leave_one_out/effective"
        effective, errors = (by_seed(table, metric, heads, layer=1, column=column) for column in ("value", "error"))
        if len(effective):
            label, bound = f"effective heads of layer 1, of {heads[0]}", self.fraction * heads[0]
            yield comparison(label, effective, "above", bound, errors=errors)


class LaterLayersUseOneHead(Claim):
    """One head dominates each later layer: the median share of the top head is at least a bound.

    Of the uniform model with most heads, by leave-one-out. A seed's number is the median over its later layers; it has
    none where the heads of one of them matter too little together for shares.

    Args:
        share: of the top head, above 0 and at most 1.

    Example:
        >>> from lightning_icl.studies.claims import LaterLayersUseOneHead
        >>> LaterLayersUseOneHead(share=0.8).statement
        "Later layers use one head: the top one's share is at least 0.8 (median over layers)."
    """

    needs = "the importance of heads in a uniform model with several heads and layers"

    def __init__(self, share: float = 0.6) -> None:
        self.share = checked_fraction("share", share)
        self.statement = f"Later layers use one head: the top one's share is at least {share:g} (median over layers)."

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        heads, metric = several_heads(table), "heads/leave_one_out/top_share"
        by_layer = (by_seed(table, metric, heads, layer=layer) for layer in range(2, len(heads) + 1))
        if shares := [share for share in by_layer if len(share)]:
            median = pd.concat(shares, axis=1).median(axis=1, skipna=False)
            yield comparison(f"top share of later layers, of {heads[0]} heads", median, "above", self.share)


class OfPruning(Claim):
    """What the claims about pruned models share. Of the uniform model with most heads.

    Args:
        ratio: of the pruned model's excess risk to the full one's.
        treatment: what was done to the pruned model: as_is, read_out (refitted), rescaled or fine_tuned.

    Attributes:
        says: the statement, but for its treatment and its ratio.
        label: what is compared.
        model: the pruned model whose risk is compared, on the side of the bound that is ``wanted``.
        against: with the risk of which pruned model; with the full model's if "".
    """

    needs = "head pruning of a uniform model with several heads and layers"
    says: ClassVar[str]
    label: ClassVar[str]
    model: ClassVar[str] = "paper"
    against: ClassVar[str] = ""
    wanted: ClassVar[Side] = "below"

    def __init__(self, ratio: float = 1.1, treatment: Treatment = "as_is") -> None:
        if treatment not in get_args(Treatment):
            raise InputError(f"treatment is {treatment!r}, but it must be one of {', '.join(get_args(Treatment))}.")
        self.ratio, self.treatment = checked_ratio(ratio), treatment
        self.which = treatment if treatment != "as_is" else ""
        self.statement = self.says.format(treated=TREATMENTS[treatment][0], ratio=ratio)

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        heads = several_heads(table)
        metric = f"prune/{self.treatment}/{self.model}/ratio"
        ratios = by_seed(table, metric, heads)
        if len(heads) == 1:  # no later layer to prune
            return
        if self.against:
            yield from lower_risk(self.label, ratios, by_seed(table, metric.replace(self.model, self.against), heads))
        elif len(ratios):
            errors = by_seed(table, metric, heads, column="error") / ratios
            yield comparison(self.label, ratios, self.wanted, self.ratio, log=True, errors=errors)


class PrunedKeepsRisk(OfPruning):
    """All heads of layer 1 and the top head of each later layer do nearly as well as all heads.

    Example:
        >>> from lightning_icl.studies.claims import PrunedKeepsRisk
        >>> PrunedKeepsRisk(ratio=1.2, treatment="read_out").statement
        'Pruned to one head in each later layer, read-out refitted, the excess risk is at most 1.2 times the full.'
    """

    says = "Pruned to one head in each later layer, {treated}, the excess risk is at most {ratio:g} times the full."
    label = "pruned over full"


class FirstLayerCannotBePruned(OfPruning):
    """The control of PrunedKeepsRisk: the top head of layer 1 and all later heads do much worse than all heads.

    Example:
        >>> from lightning_icl.studies.claims import FirstLayerCannotBePruned
        >>> FirstLayerCannotBePruned(ratio=1.5).statement
        'With layer 1 pruned instead, masked as is, the excess risk is at least 1.5 times the full.'
    """

    says = "With layer 1 pruned instead, {treated}, the excess risk is at least {ratio:g} times the full."
    label, model, wanted = "layer 1 pruned over full", "prune_layer1_instead", "above"

    def __init__(self, ratio: float = 2.0, treatment: Treatment = "as_is") -> None:
        super().__init__(ratio, treatment)


class PaperHeadsBeatRandom(OfPruning):
    """The control of which heads are kept: the top head of each later layer does better than a random one.

    Example:
        >>> from lightning_icl.studies.claims import PaperHeadsBeatRandom
        >>> PaperHeadsBeatRandom().label
        'top heads over random ones'
    """

    says = (
        "Pruned to the top head of each later layer, {treated}, the excess risk is lower than with random heads "
        "instead."
    )
    label, against = "top heads over random ones", "random_head"

    def __init__(self, treatment: Treatment = "as_is") -> None:
        super().__init__(1.0, treatment)


class BeatsReference(Claim):
    """The model's excess risk over all examples is below a reference's on the same prompts, or below ``ratio`` of it.

    Of the uniform model with most heads.

    Args:
        reference: its name in the table, such as ridge, lasso, gd_at_depth, gd_best or preprocess_then_gd_at_depth.
        ratio: of the model's excess risk to the reference's; above 1 for what is only said to be comparable.

    Example:
        >>> from lightning_icl.studies.claims import BeatsReference
        >>> BeatsReference(reference="lasso").statement
        "The model's excess risk is below that of lasso."
    """

    def __init__(self, reference: str = "ridge", ratio: float = 1.0) -> None:
        self.which, self.ratio = reference, checked_ratio(ratio)
        times = "" if ratio == 1 else f"{ratio:g} times "
        self.statement = f"The model's excess risk is below {times}that of {estimator_label(reference)}."
        self.needs = f"a uniform model and val/excess_risk/{reference}"

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        heads, paired = most_heads(table), f"against/{self.which}/ratio"
        model, other = (by_seed(table, metric, heads) for metric in (MODEL, f"val/excess_risk/{self.which}"))
        errors = by_seed(table, paired, heads, column="error") / by_seed(table, paired, heads)
        label = f"{max(heads, default=0)} heads over {estimator_label(self.which)}"
        yield from lower_risk(label, model, other, errors, self.ratio)


class HeadsBelongInFirstLayer(Claim):
    """The risk of [h, 1, .., 1] over that of [1, .., 1, h] is below 1.

    Example:
        >>> from lightning_icl.studies.claims import HeadsBelongInFirstLayer
        >>> HeadsBelongInFirstLayer().statement
        'Heads belong in layer 1: [h, 1, .., 1] has a lower excess risk than [1, .., 1, h].'
    """

    statement = "Heads belong in layer 1: [h, 1, .., 1] has a lower excess risk than [1, .., 1, h]."
    needs = "models [h, 1, .., 1] and [1, .., 1, h] with the same h"

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        for heads in models(table):
            if heads[0] > 1 == max(heads[1:], default=0):
                first, last = (by_seed(table, MODEL, h) for h in (heads, heads[::-1]))
                yield from lower_risk(f"{list(heads)} against {list(heads[::-1])}", first, last)


class FirstLayerPreprocesses(Claim):
    """P-probing, at every depth of each optimiser; against the read-in alone where all have as many heads.

    Example:
        >>> from lightning_icl.studies.claims import FirstLayerPreprocesses
        >>> FirstLayerPreprocesses().statement
        'Small optimisers do better on layer 1 with most heads than with fewest, and than on its read-in.'
    """

    statement = "Small optimisers do better on layer 1 with most heads than with fewest, and than on its read-in."
    needs = "P-probing of a first layer with several heads"

    def parts(self, table: pd.DataFrame) -> Iterator[Part]:
        arms = table["metric"].drop_duplicates().str.extract(r"^p_probing/(.+)/(.+)/heads_(\d+)$").dropna()
        for (optimiser, depth), found in arms.groupby([0, 1]):
            fewest, *_, most = sorted(map(int, [*found[2]] * 2))
            if most == 1:
                continue
            risk = by_seed(table, f"p_probing/{optimiser}/{depth}/heads_{most}")
            for rival in [f"heads_{fewest}"] * (fewest < most) + ["read_in"]:
                label = f"{optimiser} {depth}: {most} heads against {rival.removeprefix('heads_')}"
                yield from lower_risk(label, risk, by_seed(table, f"p_probing/{optimiser}/{depth}/{rival}"))


def several_heads(table: pd.DataFrame) -> Heads:
    """The uniform model with most heads, if those are several; else (), of which there are no numbers."""
    heads = most_heads(table)
    return heads if heads[:1] > (1,) else ()


def comparison(
    label: str, values: pd.Series, wanted: Side, bound: float, log: bool = False, errors: pd.Series | None = None
) -> Part:
    """A comparison by one number a seed, of which those that are missing (NaN) are counted.

    ``errors``: the standard errors of the numbers over prompts, with ``log`` those of their logarithms, where known.

    Example:
        >>> import pandas as pd
        >>> from lightning_icl.studies.claims import comparison
        >>> part = comparison("model over zero", pd.Series({1: 0.4, 2: 0.5}), "below", 0.5, log=True)
        >>> part.wanted, part.bound
        ('below', 0.5)
    """
    found, known = values.dropna(), pd.Series(errors, dtype=float)
    known = known[np.isfinite(known)]
    error = float(np.sqrt(np.mean(known**2))) if len(known) else 0.0
    numbers = tuple(found.clip(lower=ZERO) if log else found)
    return Part(label, numbers, wanted, bound, log, len(values) - len(found), error)


def lower_risk(
    label: str, risk: pd.Series, other: pd.Series, errors: pd.Series | None = None, bound: float = 1.0
) -> Iterator[Part]:
    """Whether a risk is below ``bound`` of another, by their ratio in each seed; nothing where one was not measured.

    Example:
        >>> import pandas as pd
        >>> from lightning_icl.studies.claims import lower_risk
        >>> (part,) = lower_risk("8 heads against 1", pd.Series({1: 0.2}), pd.Series({1: 0.4}))
        >>> part.values  # the ratio, one number a seed
        (0.5,)
    """
    if len(risk) and len(other):
        ratio = risk.clip(lower=ZERO) / other.clip(lower=ZERO)
        yield comparison(label, ratio, "below", bound, log=True, errors=errors)


def checked_ratio(value: float) -> float:
    if not 0 < value < np.inf:
        raise InputError(f"ratio is {value}, but it must be a finite number above 0.")
    return value


def checked_fraction(name: str, value: float) -> float:
    if not 0 < value <= 1:
        raise InputError(f"{name} is {value}, but it must be above 0 and at most 1.")
    return value
