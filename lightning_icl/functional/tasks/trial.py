"""Whether a law of one's own draws what a law must, found by a trial before any work is done."""

from inspect import get_annotations

import torch
from torch import Tensor

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.tasks.law import Law
from lightning_icl.functional.tasks.task import Task

BATCH, POINTS, QUERIES = 4, 3, 2


def check_law(law: Law) -> None:
    """Refuse a law whose targets or prompts could not be used, by drawing a few on the CPU."""
    name, own = type(law).__name__, type(law)
    if "__dataclass_params__" not in vars(own) and (options := get_annotations(own)):
        raise InputError(
            f"{name} has {', '.join(options)} as an annotation, but that is an option only with "
            "@dataclass(frozen=True) above the class."
        )
    if isinstance(law, Task):
        _check_targets(law)
    first, again = (law.sample(BATCH, POINTS, QUERIES, torch.Generator().manual_seed(0)) for _ in range(2))
    for field, one, other in zip(first._fields, first, again, strict=True):
        if one is not None and not one.isfinite().all():
            raise InputError(f"{name} draws prompts whose {field} is NaN or infinite in some places.")
        if one is not None and (other is None or not torch.equal(one, other)):
            raise InputError(
                f"{name} draws another {field} from the same generator: every random number must come from the "
                "generator that it is given, as in torch.randn(..., generator=generator, device=generator.device)."
            )


def _check_targets(task: Task) -> None:
    """What ``sample_targets`` returns."""
    name, generator = type(task).__name__, torch.Generator().manual_seed(0)
    x = task.sample_inputs(BATCH, POINTS, QUERIES, generator)
    if not isinstance(found := task.sample_targets(x, generator), tuple) or len(found) != 2:
        raise InputError(
            f"{name}.sample_targets returns a {type(found).__name__}, but it must return two things: the targets, and "
            "the weights behind them or None, as in return f, None."
        )
    for what, values, shape in (("targets", found[0], x.shape[:2]), ("weights", found[1], x[:, 0].shape)):
        if values is None and what == "weights":
            continue
        if not isinstance(values, Tensor) or values.shape != shape or values.dtype != x.dtype:
            kind = f"{tuple(values.shape)} of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"{name}.sample_targets returns {what} {kind}, but for x of shape {tuple(x.shape)} they must be "
                f"{tuple(shape)} of {x.dtype}."
            )
    f, w = found
    if w is not None and not torch.allclose(torch.einsum("bpd,bd->bp", x, w), f, rtol=1e-3, atol=1e-4):
        raise InputError(
            f"{name}.sample_targets returns weights w, but its targets are not <w, x>: return None where they are not "
            "linear in x."
        )
