"""lightning-icl prune: a smaller checkpoint without some of the heads."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor

from lightning_icl.checkpoint import read, run_of, write
from lightning_icl.commands.pruned_checkpoint import pruned_checkpoint, smaller_model
from lightning_icl.commands.run import Run, open_run
from lightning_icl.functional.errors import InputError
from lightning_icl.functional.heads import HeadMask
from lightning_icl.transformer import as_transformer

N_PROMPTS = 256  # that predictions are compared on
TOLERANCE = 1e-5  # of a difference, in sizes of the predictions

KeptHeads = Literal["all"] | list[int]


def prune(
    ckpt_path: str,
    keep: list[KeptHeads],
    output: str | None = None,
    config: str | None = None,
    weights_only: bool = True,
) -> None:
    """Write a smaller checkpoint: some heads removed, the predictions those of the model with them masked.

    ``fit`` goes on training it, and every callback takes it, with the config that is written beside it.

    Args:
        ckpt_path: the checkpoint, such as RUN/checkpoints/last.ckpt.
        keep: the heads to keep in each layer, counted from 1, or all, such as '[all, [3], [5]]'; [] keeps none.
        output: the new folder, for config.yaml and checkpoints/last.ckpt; RUN_pruned, or the like, unless told.
        config: the config the checkpoint was trained with; config.yaml in RUN unless told.
        weights_only: false reads a checkpoint that brings code, and runs it.
    """
    if "://" in ckpt_path:
        raise InputError(f"ckpt_path is {ckpt_path}, but only a file on this machine can be pruned; fetch it.")
    run = open_run(ckpt_path, config, weights_only)
    transformer = as_transformer(run.module.network, "heads are removed")
    mask = keep_mask(keep, transformer.heads)
    folder = _new_folder(output, ckpt_path)
    partial = folder.with_name(folder.name + ".partial")  # so that what is not as good as promised is not there
    checkpoint = read(ckpt_path, weights_only=weights_only)
    smaller_path = _write(partial, checkpoint, run, mask)
    smaller = open_run(smaller_path, weights_only=weights_only)
    difference = _checked_difference(run, smaller, mask)
    partial.rename(folder)
    goes_on = "validate, or fit on," if "optimizer_states" in checkpoint else "validate (it has no optimizer's state)"
    print("\n".join(_report(run, smaller, keep, difference, Path(ckpt_path), folder, goes_on)))


def keep_mask(keep: Sequence[KeptHeads], heads: Sequence[int]) -> HeadMask:
    """The head mask of the heads named for each layer, counted from 1."""
    if len(keep) != len(heads):
        raise InputError(f"keep has {len(keep)} layers, but the model has {len(heads)}, with {list(heads)} heads.")
    mask = torch.zeros(len(heads), max(heads))
    for layer, (kept, n_heads) in enumerate(zip(keep, heads, strict=True)):
        numbers = list(range(1, n_heads + 1)) if kept == "all" else list(kept)
        _check_numbers(numbers, layer + 1, n_heads)
        mask[layer, [number - 1 for number in numbers]] = 1
    if not mask.any():
        raise InputError("keep names no head in any layer, but a model needs at least one.")
    return mask


def _check_numbers(numbers: Sequence[Any], layer: int, n_heads: int) -> None:
    for number in numbers:
        if not 1 <= number <= n_heads:
            known = f"whose heads are 1 to {n_heads}" if n_heads else "which has no heads"
            raise InputError(f"keep has head {number} in layer {layer}, {known}.")
        if numbers.count(number) > 1:
            raise InputError(f"keep has head {number} of layer {layer} {numbers.count(number)} times.")


def _new_folder(output: str | None, ckpt_path: str) -> Path:
    """The folder asked for, which must not exist, or the first free one beside the run's."""
    if output is not None:
        if Path(output).exists():
            raise InputError(f"output is {output}, but that exists already; name a folder that does not.")
        return Path(output)
    run = run_of(ckpt_path)
    names = itertools.chain([f"{run.name}_pruned"], (f"{run.name}_pruned_{i}" for i in itertools.count(2)))
    return next(run.with_name(name) for name in names if not run.with_name(name).exists())


def _write(folder: Path, checkpoint: Mapping[str, Any], run: Run, mask: HeadMask) -> Path:
    """The smaller checkpoint, in a folder laid out like a run's."""
    path = folder / "checkpoints" / "last.ckpt"
    write(pruned_checkpoint(checkpoint, run.module, mask), path)
    config = yaml.safe_load(run.config.read_text())
    transformer = as_transformer(run.module.network, "heads are removed")
    config["model"] = smaller_model(config.get("model", {}), transformer, mask)
    config["model"] |= {"construction": None}  # whose shape it no longer has
    config |= {key: None for key in ("ckpt_path", "weights") if key in config}  # what the unpruned run began from
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _checked_difference(run: Run, smaller: Run, mask: HeadMask) -> float:
    """The largest difference from the masked model's predictions, in sizes (root mean squares) of these."""
    masked, pruned = _predictions(run, mask), _predictions(smaller, None)
    difference = float((pruned - masked).abs().max() / masked.square().mean().sqrt())
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the pruned model's predictions differ by {difference:.2g} of their size from the masked model's, more "
            f"than {TOLERANCE}: this is an error in lightning_icl."
        )
    return difference


@torch.no_grad()
def _predictions(run: Run, mask: Tensor | None) -> Tensor:
    output = run.module.output(run.datamodule.held_out("prune", N_PROMPTS), mask)
    if output.prefix_prediction is None:
        return output.prediction
    return torch.cat([output.prediction, output.prefix_prediction], dim=1)


def _report(
    run: Run, smaller: Run, keep: Sequence[KeptHeads], difference: float, before: Path, folder: Path, goes_on: str
) -> list[str]:
    after = folder / "checkpoints" / "last.ckpt"
    layers = zip(run.module.network.heads, smaller.module.network.heads, keep, strict=True)
    sizes = [sum(p.numel() for p in which.module.network.parameters()) for which in (run, smaller)]
    files = [path.stat().st_size for path in (before, after)]
    return [
        *(f"layer {i}: {n} heads -> {kept}{_named(named)}" for i, (n, kept, named) in enumerate(layers, start=1)),
        f"parameters: {sizes[0]:,} -> {sizes[1]:,} ({sizes[1] / sizes[0]:.0%})",
        f"checkpoint: {files[0] / 1e6:.3g} MB -> {files[1] / 1e6:.3g} MB ({files[1] / files[0]:.0%})",
        f"largest difference from the masked model on {N_PROMPTS} fresh prompts: {difference:.1g} of the predictions' "
        "root mean square",
        f"{goes_on} with --config {folder / 'config.yaml'} --ckpt_path {after}",
    ]


def _named(kept: KeptHeads) -> str:
    return "" if kept == "all" or not kept else f" (head{'s' * (len(kept) > 1)} {', '.join(map(str, sorted(kept)))})"
