"""What a model is compared with unless told otherwise."""

from lightning_icl.functional.references import linear
from lightning_icl.functional.references.iterative import GD, PreprocessThenGD
from lightning_icl.functional.references.reference import Reference
from lightning_icl.functional.tasks import Law

__all__ = ["MAX_DEFAULT_TERMS", "default_bayes", "default_references"]

MAX_DEFAULT_TERMS = 5000  # hypotheses that Bayes may weigh without being asked: a second for 1,000 prompts


def default_references(task: Law, depth: int = 1) -> list[Reference]:
    """What a model of that many layers is compared with unless told otherwise.

    A step a layer where it shows layers; Bayes and the oracle where the task has what they need.

    Example:
        >>> from lightning_icl import SparseLinearRegression
        >>> from lightning_icl.functional.references import default_references
        >>> [r.key for r in default_references(SparseLinearRegression(n_dims=8, sparsity=2))][:4]
        ['zero', 'least_squares', 'ridge', 'lasso']
    """
    found: list[Reference] = [
        linear.ZeroPredictor(),
        linear.LeastSquares(),
        linear.Ridge(),
        linear.Lasso(),
        GD(steps="depth", scale=1.0),
        GD(steps="best", scale=1.0),
        PreprocessThenGD(steps="depth", scale=1.0),
        PreprocessThenGD(steps="best", scale=1.0),
        *default_bayes(task),
        *([linear.OracleLeastSquares()] if linear.has_weights(task) else []),
    ]
    return [reference for reference in found if depth or getattr(reference, "steps", None) != "depth"]


def default_bayes(task: Law) -> list[linear.Bayes]:
    """Bayes where the task's posterior is known and quick to compute, else nothing.

    Example:
        >>> from lightning_icl import DecisionTree
        >>> from lightning_icl.functional.references import default_bayes
        >>> default_bayes(DecisionTree(n_dims=8))  # none: its posterior has no closed form
        []
    """
    return [linear.Bayes()] if (task.posterior_terms or MAX_DEFAULT_TERMS + 1) <= MAX_DEFAULT_TERMS else []
