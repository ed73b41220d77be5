"""Which step-size rule makes preprocess-then-GD win? The tables of docs/explanation/science.md, The step size decides.

    python benchmarks/preprocess_then_gd.py

Each cell is a procedure repeated: 300 prompts, the free numbers (best stopping time, best step size) chosen on them,
and the risk on the same. Shown is the mean over the repeats, +- the standard deviation of ONE repeat, then in brackets
what other code, of which nothing is left, found on a few hundred prompts; marked * where that is more than two standard
deviations and more than 10 % away, its rounding allowed for. Excess risks are exact in the
query: ||w_hat - w||^2, as x_q ~ N(0, I).
"""

import argparse

import torch
from torch import Tensor

from lightning_icl import Prompt, SparseLinearRegression
from lightning_icl.functional import estimators

STEPS = (1, 5, 20, 100)
RELATIVE = (0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.6, 1.8, 1.9)  # c of c / lambda_max

# s = 4, sigma = .5, non-zeros +-1/2, n = 256, best stopping time, step 1/lambda_max of each prompt
BY_DIMENSION = {
    16: {"GD": 0.0169, "ridge": 0.0170, "P-GD": 0.0050},
    64: {"GD": 0.0751, "ridge": 0.0715, "P-GD": 0.0084},
    128: {"GD": 0.180, "ridge": 0.173, "P-GD": 0.0127},
    256: {"GD": 0.406, "ridge": 0.393, "P-GD": 0.0234},
}
# d = 16, s = 4, non-zeros N(0, 1), sigma = .4; GD and P-GD after 1, 5, 20, 100 steps
SHARED, PER_PROMPT = "one eta for all prompts", "c/lambda_max per prompt"
BY_RULE = {
    (16, SHARED): ([2.08, 1.18, 0.87, 0.81], [3.06, 2.28, 1.44, 0.82], [0.78, 0.23, 0.06]),
    (16, PER_PROMPT): ([2.16, 1.18, 0.86, 0.85], [1.62, 0.95, 0.63, 0.56], [0.82, 0.23, 0.05]),
    (32, PER_PROMPT): ([1.46, 0.36, 0.167, 0.166], [1.00, 0.38, 0.173, 0.140], [0.159, 0.063, 0.025]),
    (64, SHARED): ([0.87, 0.09, 0.055, 0.055], [2.08, 0.87, 0.31, 0.093], [0.054, 0.028, 0.011]),
}


def risks(w_hat: Tensor, w: Tensor) -> Tensor:
    """Excess risk of every fit of a path (..., prompts, dims); infinite where it diverged."""
    return (w_hat - w).square().sum(-1).mean(-1).nan_to_num(torch.inf)


def inverse_curvature(prompt: Prompt, power: float) -> Tensor:
    """1/lambda_max of each prompt's rescaled features."""
    m = estimators.moments(prompt.x, prompt.y)
    return estimators.inverse_curvature(m.rescaled(estimators.feature_scale(m, power)))


def descent(prompt: Prompt, n_steps: int, step_size: Tensor, power: float) -> Tensor:
    """The path of GD (power 0) or preprocess-then-GD (power 1)."""
    return estimators.preprocess_then_gd_path(prompt.x, prompt.y, n_steps, step_size, power)


def by_dimension(prompt: Prompt, task: SparseLinearRegression) -> dict[str, float]:
    """The first table's row."""
    x, y, w = prompt.x, prompt.y, prompt.w
    paths = {
        name: risks(descent(prompt, 60, inverse_curvature(prompt, power), power), w)
        for name, power in (("GD", 0.0), ("P-GD", 1.0))
    }
    assert all(0 < int(path.argmin()) < 60 for path in paths.values()), "the best stopping time is at the edge"
    return {
        "GD": float(paths["GD"].min()),
        "ridge": float(risks(estimators.ridge(x, y, task.ridge_alpha), w)),
        "P-GD": float(paths["P-GD"].min()),
    }


def by_rule(prompt: Prompt, task: SparseLinearRegression, rule: str) -> dict[str, float]:
    """The second table's row: the best step size for each number of steps; the lasso at its best alpha."""
    x, y, w = prompt.x, prompt.y, prompt.w
    shared = rule == SHARED
    # A shared step is stable below 2/lambda_max of the steepest prompt, and may overshoot a little for a few steps.
    scales = [2 * 10 ** (k / 10) for k in range(-15, 16)] if shared else RELATIVE
    row = {}
    for name, power in (("GD", 0.0), ("P-GD", 1.0)):
        unit = inverse_curvature(prompt, power)
        unit = unit.min().expand_as(unit) if shared else unit
        paths = torch.stack([risks(descent(prompt, max(STEPS), c * unit, power)[list(STEPS)], w) for c in scales])
        row |= {f"{name} T={t}": float(risk) for t, risk in zip(STEPS, paths.amin(0), strict=True)}
    row["ridge"] = float(risks(estimators.ridge(x, y, task.ridge_alpha), w))
    row["lasso"] = float(risks(estimators.lasso_path(x, y, [10 ** (-k / 8) for k in range(4, 17)], 1e-6), w).min())
    row["oracle"] = float(risks(estimators.oracle_least_squares(x, y, w != 0), w))
    return row


def shown(rows: list[dict[str, float]], table: dict[str, float]) -> tuple[str, int]:
    """One line of results, and how many of its cells are off."""
    cells, off = [], 0
    for name, expected in table.items():
        values = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        mean, deviation = float(values.mean()), float(values.std())
        rounding = 0.5 * 10 ** -len(f"{expected}".partition(".")[2])
        far = abs(expected - mean) - rounding > max(2 * deviation, 0.1 * mean)
        off += far
        cells.append(f"{name} {mean:.3g} +- {deviation:.1g} [{expected:g}{'*' if far else ''}]")
    return "  ".join(cells), off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=300, help="prompts of one repeat")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(options.seed)
    off = cells = 0

    print("s = 4, sigma = .5, non-zeros +-1/2, n = 256; best stopping time, steps of 1/lambda_max per prompt")
    for d, table in BY_DIMENSION.items():
        task = SparseLinearRegression(d, 4, noise_std=1.0, weight_law="sign")  # in units of 1/2: risks are 4 times ours
        rows = []
        for _ in range(options.repeats):
            prompt = task.sample(options.prompts, 256, 1, generator).double()
            rows.append({name: risk / 4 for name, risk in by_dimension(prompt, task).items()})
        line, far = shown(rows, table)
        off, cells = off + far, cells + len(table)
        print(f"  d = {d:3}: {line}  s sigma^2/n {4 * 0.25 / 256:.2g}  d sigma^2/n {d * 0.25 / 256:.2g}", flush=True)

    print("d = 16, s = 4, non-zeros N(0, 1), sigma = .4; best step size for each number of steps T")
    for (n, rule), (gd, p_gd, others) in BY_RULE.items():
        task = SparseLinearRegression(16, 4, noise_std=0.4)
        prompts = [task.sample(options.prompts, n, 1, generator).double() for _ in range(options.repeats)]
        rows = [by_rule(prompt, task, rule) for prompt in prompts]
        print(f"  n = {n}, {rule}:")
        for names, figures in (
            ([f"GD T={t}" for t in STEPS], gd),
            ([f"P-GD T={t}" for t in STEPS], p_gd),
            (["ridge", "lasso", "oracle"], others),
        ):
            line, far = shown(rows, dict(zip(names, figures, strict=True)))
            off, cells = off + far, cells + len(names)
            print(f"    {line}", flush=True)
    print(f"{cells - off} of {cells} cells agree with the tables within two standard deviations or 10 %.")


if __name__ == "__main__":
    main()
