"""How far a prediction is from the noise-free target."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor


def squared_errors(
    prediction: Float[Tensor, "*batch queries"], f_query: Float[Tensor, "*batch queries"]
) -> Float[Tensor, "*batch"]:
    """Squared error of each prompt, averaged over its queries, in float64.

    The prompt is the unit of every standard error here: queries of one prompt share its examples, so they
    are not independent.
    """
    return (prediction.double() - f_query.double()).square().mean(dim=-1)


def excess_risk(
    prediction: Float[Tensor, "batch queries"], f_query: Float[Tensor, "batch queries"]
) -> Float[Tensor, ""]:
    """Mean of (prediction - f_query)^2 over prompts and queries, in float64.

    Against the noise-free target this has the same expectation as risk - sigma^2 and a lower variance.
    Units: squared label units.
    """
    return squared_errors(prediction, f_query).mean()


def mean_and_standard_error(
    values: Float[Tensor, "batch *rest"],
) -> tuple[Float[Tensor, "*rest"], Float[Tensor, "*rest"]]:
    """Mean over the first axis and its standard error, std / sqrt(batch), which is NaN for a batch of one."""
    return values.mean(dim=0), values.std(dim=0, correction=1) / values.shape[0] ** 0.5


def jackknife_errors(
    values: Float[Tensor, "batch *rest"], statistic: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Standard errors of functions of the mean over the first axis, by leaving each of its n entries out in turn.

    ``statistic`` maps means (n, *rest), of which the i-th leaves entry i out, to any number of tensors (n, ...) theta;
    their errors are sqrt((n - 1)/n sum_i (theta_i - mean theta)^2) (Tukey 1958). NaN for n = 1.
    """
    n = values.shape[0]
    left_out = (n * values.mean(dim=0) - values) / (n - 1)
    return tuple(((n - 1) * theta.var(dim=0, correction=0)).sqrt() for theta in statistic(left_out))
