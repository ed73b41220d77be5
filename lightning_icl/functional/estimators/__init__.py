"""Reference estimators, batched over prompts.

Those of linear weights take x (batch, points, dims) and y (batch, points) and return w_hat (batch, dims); iterative
ones return the whole path, (iterates, batch, dims). The prediction is ``predictions(w_hat, x_query)``. n counts every
row of x, so pass unpadded prompts.
"""

from lightning_icl.functional.estimators.adaptive_lasso import (
    adaptive_lasso,
    adaptive_lasso_fit,
)
from lightning_icl.functional.estimators.bayes import (
    Posterior,
    gaussian_posterior,
    mixed,
    pool_posterior,
    sign_posterior,
)
from lightning_icl.functional.estimators.descent import (
    feature_scale,
    gradient_descent_path,
    inverse_curvature,
    preprocess_then_gd_path,
    preprocessed,
)
from lightning_icl.functional.estimators.elastic_net import elastic_net, elastic_net_fit
from lightning_icl.functional.estimators.greedy import (
    iterative_hard_thresholding_path,
    orthogonal_matching_pursuit,
)
from lightning_icl.functional.estimators.lasso import (
    CertifiedFit,
    lasso,
    lasso_duality_gap,
    lasso_fit,
    lasso_path,
    lasso_path_fit,
)
from lightning_icl.functional.estimators.least_squares import (
    averaging,
    least_squares,
    least_squares_prefixes,
    oracle_least_squares,
    oracle_least_squares_prefixes,
    predictions,
    ridge,
    ridge_prefixes,
)
from lightning_icl.functional.estimators.moments import Moments, moments, over_prefixes, prefix_moments
from lightning_icl.functional.estimators.neighbours import (
    nearest_neighbours,
    nearest_neighbours_prefixes,
)
from lightning_icl.functional.estimators.proximal import (
    fista_path,
    ista_path,
)
from lightning_icl.functional.estimators.second_order import (
    Eigenbasis,
    eigenbasis,
    gd_plus_plus_factors,
    gd_plus_plus_path,
    newton_path,
)
from lightning_icl.functional.estimators.subsets import (
    all_supports,
    best_subset,
    group_supports,
)

__all__ = [
    "CertifiedFit",
    "Eigenbasis",
    "Moments",
    "Posterior",
    "adaptive_lasso",
    "adaptive_lasso_fit",
    "all_supports",
    "averaging",
    "best_subset",
    "eigenbasis",
    "elastic_net",
    "elastic_net_fit",
    "feature_scale",
    "fista_path",
    "gaussian_posterior",
    "gd_plus_plus_factors",
    "gd_plus_plus_path",
    "gradient_descent_path",
    "group_supports",
    "inverse_curvature",
    "ista_path",
    "iterative_hard_thresholding_path",
    "lasso",
    "lasso_duality_gap",
    "lasso_fit",
    "lasso_path",
    "lasso_path_fit",
    "least_squares",
    "least_squares_prefixes",
    "mixed",
    "moments",
    "nearest_neighbours",
    "nearest_neighbours_prefixes",
    "newton_path",
    "oracle_least_squares",
    "oracle_least_squares_prefixes",
    "orthogonal_matching_pursuit",
    "over_prefixes",
    "pool_posterior",
    "predictions",
    "prefix_moments",
    "preprocess_then_gd_path",
    "preprocessed",
    "ridge",
    "ridge_prefixes",
    "sign_posterior",
]
