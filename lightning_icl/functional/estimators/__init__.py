"""Reference estimators, batched over prompts.

Those of linear weights take x (batch, points, dims) and y (batch, points) and return w_hat (batch, dims); iterative
ones return the whole path, (iterates, batch, dims). The prediction is ``predictions(w_hat, x_query)``. n counts every
row of x, so pass unpadded prompts.
"""

from lightning_icl.functional.estimators.adaptive_lasso import (
    adaptive_lasso,
    adaptive_lasso_fit,
    adaptive_lasso_from_moments,
)
from lightning_icl.functional.estimators.bayes import (
    Posterior,
    gaussian_posterior,
    gaussian_posterior_from_moments,
    mixed,
    pool_posterior,
    pool_posterior_from_moments,
    sign_posterior,
    sign_posterior_from_moments,
)
from lightning_icl.functional.estimators.descent import (
    feature_scale,
    gradient_descent_path,
    gradient_descent_path_from_moments,
    inverse_curvature,
    inverse_curvature_from_moments,
    preprocess_then_gd_path,
    preprocess_then_gd_path_from_moments,
    preprocessed,
)
from lightning_icl.functional.estimators.elastic_net import elastic_net, elastic_net_fit, elastic_net_from_moments
from lightning_icl.functional.estimators.greedy import (
    iterative_hard_thresholding_path,
    iterative_hard_thresholding_path_from_moments,
    orthogonal_matching_pursuit,
    orthogonal_matching_pursuit_from_moments,
)
from lightning_icl.functional.estimators.lasso import (
    CertifiedFit,
    lasso,
    lasso_duality_gap,
    lasso_duality_gap_from_moments,
    lasso_fit,
    lasso_from_moments,
    lasso_path,
    lasso_path_fit,
)
from lightning_icl.functional.estimators.least_squares import (
    averaging,
    averaging_from_moments,
    least_squares,
    least_squares_prefixes,
    oracle_least_squares,
    oracle_least_squares_prefixes,
    predictions,
    ridge,
    ridge_from_moments,
    ridge_prefixes,
)
from lightning_icl.functional.estimators.moments import Moments, moments, over_prefixes, prefix_moments
from lightning_icl.functional.estimators.neighbours import (
    nearest_neighbours,
    nearest_neighbours_prefixes,
)
from lightning_icl.functional.estimators.proximal import (
    fista_path,
    fista_path_from_moments,
    ista_path,
    ista_path_from_moments,
)
from lightning_icl.functional.estimators.second_order import (
    Eigenbasis,
    eigenbasis,
    gd_plus_plus_factors,
    gd_plus_plus_path,
    gd_plus_plus_path_from_moments,
    newton_path,
    newton_path_from_moments,
)
from lightning_icl.functional.estimators.subsets import (
    all_supports,
    best_subset,
    best_subset_from_moments,
    group_supports,
)

__all__ = [
    "CertifiedFit",
    "Eigenbasis",
    "Moments",
    "Posterior",
    "adaptive_lasso",
    "adaptive_lasso_fit",
    "adaptive_lasso_from_moments",
    "all_supports",
    "averaging",
    "averaging_from_moments",
    "best_subset",
    "best_subset_from_moments",
    "eigenbasis",
    "elastic_net",
    "elastic_net_fit",
    "elastic_net_from_moments",
    "feature_scale",
    "fista_path",
    "fista_path_from_moments",
    "gaussian_posterior",
    "gaussian_posterior_from_moments",
    "gd_plus_plus_factors",
    "gd_plus_plus_path",
    "gd_plus_plus_path_from_moments",
    "gradient_descent_path",
    "gradient_descent_path_from_moments",
    "group_supports",
    "inverse_curvature",
    "inverse_curvature_from_moments",
    "ista_path",
    "ista_path_from_moments",
    "iterative_hard_thresholding_path",
    "iterative_hard_thresholding_path_from_moments",
    "lasso",
    "lasso_duality_gap",
    "lasso_duality_gap_from_moments",
    "lasso_fit",
    "lasso_from_moments",
    "lasso_path",
    "lasso_path_fit",
    "least_squares",
    "least_squares_prefixes",
    "mixed",
    "moments",
    "nearest_neighbours",
    "nearest_neighbours_prefixes",
    "newton_path",
    "newton_path_from_moments",
    "oracle_least_squares",
    "oracle_least_squares_prefixes",
    "orthogonal_matching_pursuit",
    "orthogonal_matching_pursuit_from_moments",
    "over_prefixes",
    "pool_posterior",
    "pool_posterior_from_moments",
    "predictions",
    "prefix_moments",
    "preprocess_then_gd_path",
    "preprocess_then_gd_path_from_moments",
    "preprocessed",
    "ridge",
    "ridge_from_moments",
    "ridge_prefixes",
    "sign_posterior",
    "sign_posterior_from_moments",
]
