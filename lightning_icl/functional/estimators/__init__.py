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
    inverse_curvature,
    preprocess_then_gd_path,
    preprocessed,
)
from lightning_icl.functional.estimators.elastic_net import elastic_net, elastic_net_fit, elastic_net_from_moments
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
from lightning_icl.functional.estimators.subsets import (
    all_supports,
    best_subset,
    best_subset_from_moments,
    group_supports,
)

__all__ = [
    "CertifiedFit",
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
    "elastic_net",
    "elastic_net_fit",
    "elastic_net_from_moments",
    "feature_scale",
    "gaussian_posterior",
    "gaussian_posterior_from_moments",
    "gradient_descent_path",
    "group_supports",
    "inverse_curvature",
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
    "oracle_least_squares",
    "oracle_least_squares_prefixes",
    "over_prefixes",
    "pool_posterior",
    "pool_posterior_from_moments",
    "predictions",
    "prefix_moments",
    "preprocess_then_gd_path",
    "preprocessed",
    "ridge",
    "ridge_from_moments",
    "ridge_prefixes",
    "sign_posterior",
    "sign_posterior_from_moments",
]
