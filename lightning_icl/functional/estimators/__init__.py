"""Reference estimators, batched over problems: w_hat (rows, dims), or all iterates (iterates, rows, dims).

An estimator is a function of the problems' ``Moments``, or in their place of a ``Prompt``, whose padding counts for
nothing, or of the examples of unpadded prompts, x (batch, points, dims) and y (batch, points): ``lasso(x, y, alpha)``
is ``lasso(moments(x, y), alpha)`` in y's dtype. The prediction is ``predictions(w_hat, x_query)``.

Some see x itself. ``least_squares``, and ``ridge`` where it is given examples, go by its singular values, as X^T X has
the square of its condition number. Those of every prefix need one factorisation a prompt where moments would need one a
prefix. Nearest neighbours are about distances to the queries, and ``inverse_curvature`` needs no labels.
"""

from lightning_icl.functional.estimators.bayes import *
from lightning_icl.functional.estimators.descent import *
from lightning_icl.functional.estimators.lasso import *
from lightning_icl.functional.estimators.least_squares import *
from lightning_icl.functional.estimators.moments import *
from lightning_icl.functional.estimators.neighbours import *
from lightning_icl.functional.estimators.subsets import *
