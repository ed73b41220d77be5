"""Reference estimators, batched over prompts.

Those of linear weights take x (batch, points, dims) and y (batch, points) and return w_hat (batch, dims); iterative
ones return the whole path, (iterates, batch, dims). The prediction is ``predictions(w_hat, x_query)``. n counts every
row of x, so pass unpadded prompts.
"""

from lightning_icl.functional.estimators.descent import (
    feature_scale,
    gradient_descent_path,
    inverse_curvature,
    preprocess_then_gd_path,
    preprocessed,
)
from lightning_icl.functional.estimators.lasso import lasso, lasso_duality_gap
from lightning_icl.functional.estimators.least_squares import (
    least_squares,
    oracle_least_squares,
    predictions,
    ridge,
)
from lightning_icl.functional.estimators.moments import Moments, moments, over_prefixes, prefix_moments

__all__ = [
    "Moments",
    "feature_scale",
    "gradient_descent_path",
    "inverse_curvature",
    "lasso",
    "lasso_duality_gap",
    "least_squares",
    "moments",
    "oracle_least_squares",
    "over_prefixes",
    "predictions",
    "prefix_moments",
    "preprocess_then_gd_path",
    "preprocessed",
    "ridge",
]
