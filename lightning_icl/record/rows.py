"""The one form of every number: a row, and what a set of rows was measured on.

Metrics by analysis. "(layer)" and so on are the fields that say where; intervals are 95 %, over prompts unless said:

- ReferenceRisk (streams but the first have a ``stream``): val/excess_risk/<estimator>, in ``test`` test/excess_risk/...
  (n_points, or none for all prompts; the note has the estimator in words with its settings); against/<estimator>/ratio,
  the model's risk over the estimator's, and against/<estimator>/difference, the estimator's minus the model's, both
  paired over prompts.
- HeadImportance, at all examples (no n_points) and at each of its ``n_points``: heads/risk;
  heads/<score>/importance, share (layer, head); heads/<score>/effective, top_share, total (layer);
  heads/agreement/<score>_and_<score> (none over all heads, or layer).
- HeadPruning: prune/<treatment>/<model>/excess_risk, ratio, difference (to the full model, paired), the note of the
  first the model in words; the treatment "checkpoint" is of models it was told to show beside; prune/<model>/n_heads
  (none in all, with the heads kept as its note, or layer); prune/<treatment>/paper/rank, its place among the
  random choices of heads, 1 the best (the note says of how many); of the greedy path
  prune/greedy_path/heads_<n>/excess_risk, n_heads, and prune/greedy_path/removed (layer, head; 1 is the first to go).
- PruningSchedule: prune/schedule/n_heads (none in all, or layer), left by each cut.
- LinearProbe: probe/<token>/<target>/<arm>/risk, r2, auc and probe/<token>/<target>/selectivity/<control>, R^2 minus
  the control's, paired (layer, 0 is the read-in); probe/curve/<algorithm> (layer); probe/level/<estimator>.
- AlgorithmMatch (layer, n_points): algorithm/<reading>/<algorithm>/<distance>, rank and setting/<name>; the reading is
  "read_out", the model's own applied to that layer, or "probe"; the note of relative_spd is the algorithm in words with
  its settings. A distance excess_over_closest is SPD over that of the closest algorithm, less 1, paired; from_closest
  is that of the two algorithms' predictions; the rank of the closest is 1; the interval of setting/steps is of those
  that the prompts cannot tell from the chosen ones.
- Circuits: circuits/<scalar> (layer, head).
- ConstructionComparison: construction/risk/construction (its note is the algorithm in words), .../model and
  .../difference, the model's minus the construction's, paired, .../better, the share of prompts where it is lower;
  construction/states, R^2 of the construction's states
  from the model's, and construction/beyond_input, the same of what they hold beyond the tokens (layer, 0 is the
  read-in); construction/weights, the cosine of what the layers do, and construction/step, how many times the
  construction's update the model's is (layer); construction/heads/overlap, the part of the work that the same heads
  do, and construction/heads/effective/<network>, construction or model (layer).
- p_probe: p_probing/<optimiser>/<depth>/<arm>, with the arm heads_<h> for the first layer of models with h heads there,
  read_in for what that layer is given in those with most, and untrained, raw, r_hat, r_hat_power and gd_plus_plus.
- theory: theory/<axis>/<value>/risk/<rule>/<estimator>, without the rule where it takes no steps (the note has the
  estimator in words with its settings); .../difference/<rule>/<rival>, preprocess-then-GD's risk minus the rival's,
  paired; .../unstable/shared/<estimator>, the share of prompts on which the one step size is above 2/lambda_max;
  .../leading_order/<s or d>, s or d times sigma^2/n; all with n_points.
- any other analysis: what its rows say.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor


class Row(NamedTuple):
    """One number: its 95 % interval and its place; None where there is none.

    Attributes:
        metric: its name, grouped by slashes.
        value: the number, None where it has no value (a share of a layer whose total is within noise).
        low, high: the ends of its 95 % interval.
        layer, head, n_points: counted from 1 (layer 0 is the read-in); None where it is not about one.
        stream: the validation stream, where it has a name.
        note: what the number is in words, such as "ridge, alpha 0.64 (from the law)".

    Example:
        >>> from lightning_icl import Row
        >>> Row("heads/leave_one_out/share", 0.25, low=0.2, high=0.3, layer=1, head=2)._asdict()["layer"]
        1
    """

    metric: str
    value: float | Tensor | None
    low: float | Tensor | None = None
    high: float | Tensor | None = None
    layer: int | None = None
    head: int | None = None
    n_points: int | None = None
    stream: str | None = None
    note: str | None = None


COLUMNS = Row._fields
NUMBERS = ("value", "low", "high")
TYPES = dict.fromkeys(("metric", "stream", "note"), "str") | dict.fromkeys(NUMBERS, "float64")
TYPES |= dict.fromkeys(("layer", "head", "n_points"), "Int64")


class Measurement(NamedTuple):
    """What one analysis found at one time.

    Attributes:
        analysis: its name, that of its class.
        step: optimizer steps behind the weights.
        context: what it was measured on: command, seed, law, prompts, options; see ``lightning_icl.record.context``.
        rows: the numbers.
        arrays: what is no table of numbers, such as a head's maps, as nested lists by name.
    """

    analysis: str
    step: int
    context: Mapping[str, Any]
    rows: Sequence[Row]
    arrays: Mapping[str, Any] = {}


def tag(row: Row) -> str:
    """The row's name in a logger, its metric and its place: heads/leave_one_out/share/layer1/head2.

    A stream comes after the first part of the metric: val/noisier/excess_risk/ridge.

    Example:
        >>> from lightning_icl import Row
        >>> from lightning_icl.record.rows import tag
        >>> tag(Row("heads/leave_one_out/share", 0.25, layer=1, head=2))
        'heads/leave_one_out/share/layer1/head2'
        >>> tag(Row("val/excess_risk/ridge", 0.5, stream="noisier"))
        'val/noisier/excess_risk/ridge'
    """
    first, _, rest = row.metric.partition("/")
    places = {"n": row.n_points, "layer": row.layer, "head": row.head}
    return "/".join(
        part
        for part in (first, row.stream, rest, *(f"{name}{at}" for name, at in places.items() if at is not None))
        if part
    )


def plain(value: Any) -> Any:
    """The value as JSON knows it: tensors as lists, and null for what is not a finite number."""
    match value:
        case Tensor():
            return plain(value.tolist())
        case tuple() if hasattr(value, "_asdict"):
            return plain(value._asdict())
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float() if not math.isfinite(value):
            return None
        case None | bool() | int() | float() | str():
            return value
    return getattr(value, "item", lambda: repr(value))()  # numpy's numbers; else a text


def plain_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows with numbers in place of tensors, and None for what is not finite."""

    def number(given: Any) -> float | None:
        return None if given is None or not math.isfinite(given) else float(given)

    return [row._replace(value=number(row.value), low=number(row.low), high=number(row.high)) for row in rows]


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table with the columns of Row; what is missing is NaN, <NA> or None."""
    columns = zip(*rows, strict=True) if (rows := list(rows)) else ((),) * len(COLUMNS)
    return pd.DataFrame({key: pd.array(list(column), TYPES[key]) for key, column in zip(COLUMNS, columns, strict=True)})
