"""Numbers by seed, chosen from the rows of one setting of a study's table, of the last step each was measured at."""

import json

import numpy as np
import pandas as pd

from lightning_icl.functional.errors import InputError
from lightning_icl.studies.table import MISSING, head_list

Heads = tuple[int, ...]
ERRORS_WIDE = 2 * 1.96  # a 95 % interval over many prompts, in standard errors


def models(table: pd.DataFrame) -> list[Heads]:
    """The heads of each model, as tuples, fewest in layer 1 first.

    Example:
        >>> import pandas as pd
        >>> from lightning_icl.studies.selection import models
        >>> models(pd.DataFrame({"model.heads": ["[8, 8]", "[8, 1]", "[1, 1]"]}))
        [(1, 1), (8, 1), (8, 8)]
    """
    return sorted(map(head_list, table["model.heads"].dropna().unique()))


def uniform_models(table: pd.DataFrame) -> list[Heads]:
    """The heads of those models that have the same number in every layer, as tuples, fewest first.

    Example:
        >>> import pandas as pd
        >>> from lightning_icl.studies.selection import uniform_models
        >>> uniform_models(pd.DataFrame({"model.heads": ["[8, 8]", "[8, 1]", "[1, 1]"]}))
        [(1, 1), (8, 8)]
    """
    return [heads for heads in models(table) if len(set(heads)) == 1]


def most_heads(table: pd.DataFrame) -> Heads:
    """The heads of the uniform model with most, as a tuple; () where there is no uniform one.

    Example:
        >>> import pandas as pd
        >>> from lightning_icl.studies.selection import most_heads
        >>> most_heads(pd.DataFrame({"model.heads": ["[8, 8]", "[8, 1]", "[1, 1]"]}))
        (8, 8)
    """
    return max(uniform_models(table), default=())


def by_seed(
    table: pd.DataFrame,
    metric: str,
    heads: Heads | None = None,
    layer: int | None = None,
    n_points: int | None = None,
    column: str = "value",
) -> pd.Series:
    """A metric in one place, by seed: NaN for one of the table's seeds that has no number; empty where none has any.

    Of one model if told, on the first stream; without a layer or a number of examples, what is about none. What is not
    finite, as of a run that diverged, is no number. A model that failed in every seed has NaN of what others have.
    ``column`` "error" gives the standard errors over prompts instead.

    Example:
        >>> import pandas as pd
        >>> from lightning_icl.studies.selection import by_seed
        >>> table = pd.DataFrame(
        ...     {"trial": ["a", "b"], "seed": [1, 2], "metric": "m", "value": [0.5, 0.4], "model.heads": "[8, 8]"}
        ... )
        >>> table[["stream", "layer", "n_points", "low", "high"]] = None
        >>> by_seed(table, "m", heads=(8, 8)).to_dict()  # heads are a tuple
        {1: 0.5, 2: 0.4}
    """
    found = table[table["metric"] == metric]
    for key, wanted in {"layer": layer, "n_points": n_points, "stream": None}.items():
        found = found[found[key].isna() if wanted is None else found[key].eq(wanted).fillna(False)]
    failed = False
    if heads is not None:
        of_model = table["metric"][table["model.heads"].eq(json.dumps(heads)).fillna(False)]
        failed = len(found) > 0 and set(of_model) == {MISSING}
        found = found[found["model.heads"].eq(json.dumps(heads)).fillna(False)]
    if len(again := found[found.duplicated("seed", keep=False)]):
        seed = again["seed"].iloc[0]
        trials = again["trial"][again["seed"] == seed].unique()
        raise InputError(
            f"{' and '.join(trials)} have {metric} of seed {seed} more than once in one setting, but seeds are the "
            "replications: each needs one trial."
        )
    found = found.set_index("seed")
    errors = (found["high"] - found["low"]) / ERRORS_WIDE
    numbers = errors if column == "error" else found["value"].where(np.isfinite(found["value"]))
    return numbers.reindex(sorted(table["seed"].dropna().unique())) if len(found) or failed else numbers
