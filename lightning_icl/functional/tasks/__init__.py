"""Laws of regression problems, one file a family."""

from lightning_icl.functional.tasks.linear import LinearRegression, SparseLinearRegression
from lightning_icl.functional.tasks.task import Task

__all__ = ["LinearRegression", "SparseLinearRegression", "Task"]
