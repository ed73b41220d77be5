"""What the task tests share: a seeded generator, the margin of a statistical claim, and one of every task."""

import math

import numpy as np
import torch

from lightning_icl import (
    DecisionTree,
    GroupSparseLinearRegression,
    HiddenRepresentation,
    LinearClassification,
    LinearRegression,
    Mixture,
    PolynomialRegression,
    QuadraticRegression,
    ReLUNetwork,
    SparseLinearRegression,
    SparseRecovery,
    Spiked,
    TaskPool,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_mean_within_4_standard_errors(samples, expected):
    """``samples`` are independent along the first axis; 1e-6 allows for rounding where they do not vary."""
    samples = np.asarray(samples, dtype=np.float64)
    margin = 4 * samples.std(axis=0, ddof=1) / math.sqrt(len(samples)) + 1e-6
    assert (np.abs(samples.mean(axis=0) - expected) <= margin).all()


def every_task(d):
    """One of each family in d dimensions, by name."""
    sparse = SparseLinearRegression(d, (d + 1) // 2, noise_std=0.3)
    return {
        "sparse": sparse,
        "dense": LinearRegression(
            d, noise_std=[0.1, 0.5], correlation=0.4, spectrum=Spiked(1, 4.0), rotation="per_prompt"
        ),
        "group": GroupSparseLinearRegression(d, 1 if d % 2 else 2, 1, noise_std=0.3, weight_mean=1.0),
        "recovery": SparseRecovery(d, 1, noise_std=0.2, rotation="fixed"),
        "pool": TaskPool(sparse, 5),
        "quadratic": QuadraticRegression(d, noise_std=0.1, noise="laplace"),
        "polynomial": PolynomialRegression(d, 3, noise_std=0.1, features="uniform"),
        "relu": ReLUNetwork(d, 7, noise_std=0.2, noise="student_t"),
        "tree": DecisionTree(d, 3, noise_std=0.2, features="student_t"),
        "classification": LinearClassification(d, flip_probability=0.2, features="rademacher"),
        "representation": HiddenRepresentation(d, 6, 2, noise_std=0.1),
        "mixture": Mixture([sparse, ReLUNetwork(d, 7), TaskPool(LinearRegression(d), 3)], [1.0, 2.0, 1.0]),
    }


EVERY_TASK = every_task(4)
