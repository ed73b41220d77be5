"""How fast are ridge and the lasso over all prefixes, against a loop over scikit-learn fits, and are they as good?

    python benchmarks/estimators.py [--repeats 5] [--profile]

One thread; 64 prompts, their first k = 1 .. 41 examples, d = 16, 4 non-zero weights N(0, 1), noise 0 and 0.5, float64:
2,624 problems, for the lasso times five strengths. The peers:

- ridge: ``Ridge(alpha, fit_intercept=False)`` fitted to each prefix.
- lasso: ``Lasso(alpha, fit_intercept=False, max_iter=2000)`` fitted to each prefix at each strength, the code of
  Garg et al. 2022 (github.com/dtsip/in-context-learning).
- lasso, tuned: ``lasso_path(X, y, alphas=..., precompute=True, max_iter=2000)`` on each prefix, a competent user's
  loop: the Gram matrix once and each strength started from the one before.

``excess`` is the largest (ours - theirs) / theirs of the objective over all problems: below 0, ours is lower on every
one. ``gap`` is our largest duality gap over (1/2n) ||y||^2. ``stopped`` counts the peers' fits that ended with a
convergence warning. Times are medians; ours are from x and y to certified weights.

What limits our lasso (--profile): neither arithmetic nor the dispatch of small operations, but memory passes. A path
takes 22 (noise 0) to 38 (noise 0.5) pivots, one after another; each is one update of rank one of a float64 18 x 16
tableau a problem and some 25 elementwise passes over (problems, dims) to find the next event, and finished problems
are dropped by copying the rest. One prompt alone (41 problems), which is dispatch only, takes a seventh of the time of
64. One strength costs three quarters of five.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from sklearn import linear_model
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch.profiler import ProfilerActivity, profile

from lightning_icl import SparseLinearRegression
from lightning_icl.functional import estimators

POINTS, DIMS, SPARSITY = 41, 16, 4
ALPHAS = [1.0, 0.1, 0.01, 1e-3, 1e-4]
RIDGE_ALPHA = 0.25  # sigma^2 / Var(w_j) at noise 0.5 on the support


class Timed(NamedTuple):
    seconds: float
    weights: np.ndarray  # (strengths, problems, dims)
    stopped: int = 0


def prompts(noise_std: float, n_prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    task = SparseLinearRegression(DIMS, SPARSITY, noise_std=noise_std)
    prompt = task.sample(n_prompts, POINTS, 1, torch.Generator().manual_seed(0)).double()
    return prompt.x, prompt.y


def prefixes(x: torch.Tensor, y: torch.Tensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for features, labels in zip(x.numpy(), y.numpy(), strict=True):
        for k in range(1, POINTS + 1):
            yield features[:k], labels[:k]


def timed(fit: Callable[..., np.ndarray], x: torch.Tensor, y: torch.Tensor, repeats: int) -> Timed:
    seconds = []
    for _ in range(repeats):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            start = time.perf_counter()
            weights = fit(x, y)
            seconds.append(time.perf_counter() - start)
    return Timed(statistics.median(seconds), weights, sum(w.category is ConvergenceWarning for w in caught))


def ridge_loop(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    fits = [linear_model.Ridge(RIDGE_ALPHA, fit_intercept=False).fit(a, b).coef_ for a, b in prefixes(x, y)]
    return np.stack(fits)[None]


def lasso_loop(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    def fit(a: np.ndarray, b: np.ndarray, alpha: float) -> np.ndarray:
        return linear_model.Lasso(alpha, fit_intercept=False, max_iter=2000).fit(a, b).coef_

    return np.stack([[fit(a, b, alpha) for a, b in prefixes(x, y)] for alpha in ALPHAS])


def lasso_path_loop(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    paths = [linear_model.lasso_path(a, b, alphas=ALPHAS, precompute=True, max_iter=2000)[1] for a, b in prefixes(x, y)]
    return np.stack(paths).transpose(2, 0, 1)


def our_ridge(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    return estimators.ridge_prefixes(x, y, RIDGE_ALPHA).flatten(0, 1)[None].numpy()


def our_lasso(x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    return estimators.lasso_path_fit(estimators.prefix_moments(x, y), ALPHAS, relative_gap=1e-6).w.numpy()


def objectives(x: torch.Tensor, y: torch.Tensor, weights: np.ndarray, penalty: Callable) -> np.ndarray:
    """(1/2n) ||y - X w||^2 + penalty(w, strength's place, n), from the data in plain numpy: (strengths, problems)."""
    values = [
        [((b - a @ w) ** 2).mean() / 2 + penalty(w, place, len(b)) for place, w in enumerate(each)]
        for (a, b), each in zip(prefixes(x, y), weights.transpose(1, 0, 2), strict=True)
    ]
    return np.array(values).T


def ridge_penalty(w: np.ndarray, place: int, n_points: int) -> float:
    return RIDGE_ALPHA * (w @ w) / (2 * n_points)


def lasso_penalty(w: np.ndarray, place: int, n_points: int) -> float:
    return ALPHAS[place] * np.abs(w).sum()


def largest_gap(x: torch.Tensor, y: torch.Tensor, weights: np.ndarray) -> float:
    """Primal minus dual over (1/2n) ||y||^2 from the data in plain numpy, at the scaled residual as dual point."""
    gaps = []
    for (a, b), each in zip(prefixes(x, y), weights.transpose(1, 0, 2), strict=True):
        for alpha, w in zip(ALPHAS, each, strict=True):
            residual = b - a @ w
            theta = residual * min(1.0, alpha / max(np.abs(a.T @ residual).max() / len(b), 1e-300))
            primal = (residual @ residual) / (2 * len(b)) + alpha * np.abs(w).sum()
            gaps.append((primal - (theta @ b - theta @ theta / 2) / len(b)) / ((b @ b) / (2 * len(b))))
    return max(gaps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="of ours; the peers run a third as often")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--profile", action="store_true", help="where the time of our lasso goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    comparisons = [
        ("ridge", our_ridge, "Ridge loop", ridge_loop, ridge_penalty),
        ("lasso", our_lasso, "Lasso loop (Garg et al.)", lasso_loop, lasso_penalty),
        ("lasso", our_lasso, "lasso_path loop (tuned)", lasso_path_loop, lasso_penalty),
    ]
    print("| noise | estimator | peer | peer, s | ours, s | ratio | excess | gap | stopped |")
    print("|---|---|---|---|---|---|---|---|---|")
    for noise_std in (0.0, 0.5):
        x, y = prompts(noise_std, arguments.prompts)
        for name, ours, peer_name, peer, penalty in comparisons:
            mine = timed(ours, x, y, arguments.repeats)
            theirs = timed(peer, x, y, max(1, arguments.repeats // 3))
            values = [objectives(x, y, fit.weights, penalty) for fit in (mine, theirs)]
            excess = ((values[0] - values[1]) / values[1]).max()
            gap = f"{largest_gap(x, y, mine.weights):.0e}" if name == "lasso" else "-"
            print(
                f"| {noise_std} | {name} | {peer_name} | {theirs.seconds:.2f} | {mine.seconds:.4f} "
                f"| {theirs.seconds / mine.seconds:.0f} | {excess:.0e} | {gap} | {theirs.stopped} |",
                flush=True,
            )
        if arguments.profile:
            with profile(activities=[ProfilerActivity.CPU]) as trace:
                our_lasso(x, y)
            print(trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=30))


if __name__ == "__main__":
    main()
