"""From the records of results.json to rows of the tidy table: a small function for each analysis.

Metrics by analysis; "(layer)" and so on are the columns that say where, and errors are over prompts:

- ReferenceRisk: excess_risk/<estimator>, <stream>/excess_risk/<estimator> (n_points, or none for all prompts); the
  first validation stream also without its name, as in the logs.
- HeadImportance, at all examples (no n_points) and at each of its ``n_points``: heads/risk;
  heads/<score>/importance, share (layer, head); heads/<score>/effective, top_share, total (layer);
  heads/agreement/<score>_and_<score> (none over all heads, or layer).
- HeadPruning: prune/<treatment>/<model>/excess_risk, ratio, difference (to the full model, paired), with the treatment
  "checkpoint" for models it was told to show beside; prune/<model>/n_heads (none in all, or layer); of the greedy path
  prune/greedy_path/heads_<n>/excess_risk, n_heads, and prune/greedy_path/removed (layer, head; 1 is the first to go).
- PruningSchedule: prune/schedule/n_heads (none in all, or layer), left by each cut.
- LinearProbe: probe/<token>/<target>/<arm>/risk, r2, auc and probe/<token>/<target>/selectivity/<control>, R^2 minus
  the control's, paired (layer, 0 is the read-in); probe/curve/<algorithm> (layer); probe/level/<estimator>.
- AlgorithmMatch: algorithm/<reading>/<algorithm>/<distance> and .../setting/<name> (n_points); the reading is "layer"
  (layer) or "read_out".
- Circuits: circuits/<scalar> (layer, head).
- p_probe: p_probing/<optimiser>/<depth>/<arm>, with the arm heads_<h> for the first layer of models with h heads there.
- any other analysis: <ClassName>/<key/...>, by the conventions of results.json (``other_rows``).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from lightning_icl.callbacks.algorithm_match import KINDS
from lightning_icl.callbacks.circuits import SCALARS
from lightning_icl.callbacks.linear_probe import CURVES

Record = Mapping[str, Any]
Number = float | int | None  # null is what has no value


class Row(NamedTuple):
    """One number of a record, its standard error over prompts and its place; None where there is none."""

    metric: str
    value: Number
    error: Number = None
    layer: int | None = None
    head: int | None = None
    n_points: int | None = None


def reference_risk_rows(record: Record) -> Iterator[Row]:
    for i, stream in enumerate(record["streams"]):
        groups = ["excess_risk"] if i == 0 else []
        groups += [] if stream["name"] is None else [f"{stream['name']}/excess_risk"]
        for group in groups:
            for n_points, risks in ((None, stream["overall"]), *stream["by_points"].items()):
                for estimator, (risk, error) in risks.items():
                    yield Row(f"{group}/{estimator}", risk, error, n_points=None if n_points is None else int(n_points))


def head_importance_rows(record: Record) -> Iterator[Row]:
    yield from _head_scores(record)
    for n_points, found in record["by_points"].items():
        yield from (row._replace(n_points=int(n_points)) for row in _head_scores(found))


def _head_scores(found: Record) -> Iterator[Row]:
    """What HeadScores holds."""
    yield Row("heads/risk", found["risk"], found["risk_error"])
    for name, scores in found["scores"].items():
        yield from _by_head(f"heads/{name}/importance", scores["raw"], scores["standard_error"])
        yield from _by_head(f"heads/{name}/share", scores["share"], scores["share_error"])
        yield from _by_layer(f"heads/{name}/effective", scores["effective_heads"], scores["effective_error"])
        yield from _by_layer(f"heads/{name}/top_share", scores["top_share"], scores["top_error"])
        yield from _by_layer(f"heads/{name}/total", scores["total"], scores["total_error"])
    for pair, agreement in found["agreement"].items():
        yield Row(f"heads/agreement/{pair}", agreement["overall"])
        yield from _by_layer(f"heads/agreement/{pair}", agreement["by_layer"])


def head_pruning_rows(record: Record) -> Iterator[Row]:
    for treatment, models in {**record["risks"], "checkpoint": record["checkpoints"]}.items():
        for model, risk in models.items():
            for metric, field in (("excess_risk", "risk"), ("ratio", "ratio"), ("difference", "difference")):
                yield Row(f"prune/{treatment}/{model}/{metric}", risk[field], risk[f"{field}_error"])
    for model, keep in record["keep"].items():
        yield from _n_heads(f"prune/{model}/n_heads", [len(heads) for heads in keep])
    if record["greedy_path"] is not None:
        yield from _greedy_path(record["greedy_path"])


def _greedy_path(path: Record) -> Iterator[Row]:
    """What ScoredPath holds."""
    for n, (risk, error), by_layer in zip(path["heads_left"], path["risks"], path["allocation"], strict=True):
        yield Row(f"prune/greedy_path/heads_{n}/excess_risk", risk, error)
        yield from _n_heads(f"prune/greedy_path/heads_{n}/n_heads", by_layer)
    for i, (layer, head) in enumerate(path["removed"], start=1):
        yield Row("prune/greedy_path/removed", i, layer=layer, head=head)


def pruning_schedule_rows(record: Record) -> Iterator[Row]:
    yield from _n_heads("prune/schedule/n_heads", [len(heads) for heads in record["keep"]])


def linear_probe_rows(record: Record) -> Iterator[Row]:
    for probe in record["probes"]:
        place, layer = f"probe/{probe['token']}/{probe['target']}", probe["layer"]
        for arm in ("trained", "untrained", "shuffled"):
            scored = probe[arm] or {}
            for measure in ("risk", "r2", "auc"):
                if scored.get(measure) is not None:  # only a support has an auc
                    yield _estimated(f"{place}/{arm}/{measure}", scored[measure], layer)
        for control in ("untrained", "shuffled"):
            if probe[f"over_{control}"] is not None:
                yield _estimated(f"{place}/selectivity/{control}", probe[f"over_{control}"], layer)
    names = {label: name for name, label in CURVES.items()}
    for label, curve in record["curves"].items():
        for layer, estimate in enumerate(curve, start=1):
            yield _estimated(f"probe/curve/{names[label]}", estimate, layer)
    for estimator, estimate in record["levels"].items():
        yield _estimated(f"probe/level/{estimator}", estimate)


def algorithm_match_rows(record: Record) -> Iterator[Row]:
    for distance in record["distances"]:
        reading, _, layer = distance["reading"].partition("layer")
        place = f"algorithm/{reading or 'layer'}/{distance['algorithm']}"
        at: dict[str, Any] = {"layer": int(layer) if layer else None, "n_points": distance["n_points"]}
        for kind in KINDS:
            yield Row(f"{place}/{kind}", distance[kind], distance[f"{kind}_error"], **at)
        for name, value in distance["setting"].items():
            yield Row(f"{place}/setting/{name}", value, **at)


def circuits_rows(record: Record) -> Iterator[Row]:
    for name in SCALARS:
        yield from _by_head(f"circuits/{name}", [layer[name] for layer in record["layers"]])


ROWS: dict[str, Callable[[Record], Iterator[Row]]] = {
    "ReferenceRisk": reference_risk_rows,
    "HeadImportance": head_importance_rows,
    "HeadPruning": head_pruning_rows,
    "PruningSchedule": pruning_schedule_rows,
    "LinearProbe": linear_probe_rows,
    "AlgorithmMatch": algorithm_match_rows,
    "Circuits": circuits_rows,
}


def other_rows(name: str, record: Record) -> Iterator[Row]:
    """The rows of a user's analysis, by the conventions of results.json.

    A list is by layer, a list of lists by layer and head; ``x_error`` beside ``x`` is its standard error, and so is
    "standard_error" beside "value". Texts, intervals and what is deeper than lists of lists have no place in the table.
    """
    return _tree(name, {key: value for key, value in record.items() if key != "step"})


def _tree(metric: str, value: Any, error: Any = None, place: tuple[int, ...] = ()) -> Iterator[Row]:
    match value:
        case None | bool() | int() | float():
            layer, head = (*place, None, None)[:2]
            yield Row(metric, value, error if isinstance(error, float) else None, layer, head)
        case {"value": number, "standard_error": its_error}:
            yield from _tree(metric, number, its_error, place)
        case Mapping():
            of_others = {f"{key}_error" for key in value}
            for key, item in value.items():
                if key not in of_others and not key.endswith("interval"):
                    yield from _tree(f"{metric}/{key}", item, value.get(f"{key}_error"), place)
        case list() if len(place) < 2:
            errors = error if isinstance(error, list) and len(error) == len(value) else [None] * len(value)
            for i, (item, its_error) in enumerate(zip(value, errors, strict=True), start=1):
                yield from _tree(metric, item, its_error, (*place, i))


def p_probe_rows(found: Record) -> Iterator[Row]:
    """The rows of a p_probing.json; models with equally many heads in layer 1 count as one, by the mean of their risks.

    Without errors: the intervals there are over seeds of the optimisers and prompts together.
    """
    for optimiser, risks in found["risk"].items():
        curves = defaultdict(list)
        for arm, curve in risks.items():
            name = f"heads_{found['heads'][arm]}" if arm in found["heads"] else arm
            curves[name].append([risk["mean"] for risk in curve])
        for name, alike in curves.items():
            for depth, at_depth in enumerate(zip(*alike, strict=True), start=1):
                yield Row(f"p_probing/{optimiser}/{depth}/{name}", None if None in at_depth else fmean(at_depth))


def is_there(row: Row, heads: Sequence[int]) -> bool:
    """Whether the model, with so many heads in each layer, has the head of a row.

    Tables by layer and head are as wide as the widest layer, with null where a layer has fewer heads. A head that is
    there keeps its row also where it has no value, such as a share of a total within noise.
    """
    if row.head is None or row.layer is None or row.value is not None or row.layer > len(heads):
        return True
    return row.head <= heads[row.layer - 1]


def _estimated(metric: str, estimate: Record, layer: int | None = None) -> Row:
    """The row of an Estimate."""
    return Row(metric, estimate["value"], estimate["standard_error"], layer)


def _n_heads(metric: str, by_layer: Sequence[int]) -> Iterator[Row]:
    yield Row(metric, sum(by_layer))
    yield from _by_layer(metric, by_layer)


def _by_layer(metric: str, values: Sequence[Number], errors: Sequence[Number] | None = None) -> Iterator[Row]:
    for i, value in enumerate(values):
        yield Row(metric, value, errors[i] if errors else None, layer=i + 1)


def _by_head(
    metric: str,
    values: Sequence[Sequence[Number]],
    errors: Sequence[Sequence[Number]] | None = None,
) -> Iterator[Row]:
    for i, layer in enumerate(values):
        for row in _by_layer(metric, layer, errors[i] if errors else None):
            yield row._replace(layer=i + 1, head=row.layer)
