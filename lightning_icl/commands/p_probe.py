"""lightning-icl p_probe: is the first layer's output easier to optimise on than the examples?"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

from lightning_icl.callbacks.analysis import check_at_least, plain, write_figure
from lightning_icl.callbacks.figures import p_probing_risks
from lightning_icl.commands.run import Run, open_run
from lightning_icl.functional.errors import InputError
from lightning_icl.instruments.p_probing import (
    CORRELATION,
    GD_PLUS_PLUS,
    POWER,
    RAW,
    UNTRAINED,
    Comparison,
    Optimiser,
    PProbing,
    Training,
    claim,
    p_probing,
)

HEADINGS: dict[Optimiser, str] = {
    "attention": "k trained layers of single-head linear attention",
    "descent": "a trained linear map, then t tuned gradient steps",
}


def p_probe(
    ckpt_paths: list[str],
    names: list[str] | None = None,
    steps: int = 500,
    seeds: int = 3,
    depths: int = 4,
    power: float = 0.5,
    prompts: int = 2048,
    output: str | None = None,
    seed: int = 0,
    cpu_threads: int = 1,
) -> None:
    """P-probing: train small optimisers on the frozen first layer of several models and on other representations.

    The models are best trained alike but for the number of heads in their first layer, such as 1, 2, 4 and 8. The
    claim holds if the risk is lower on the layer with most heads than on that with fewest and than on the raw examples,
    at every number of layers and steps. Writes p_probing.json, .png and .svg and TensorBoard's files.

    Args:
        ckpt_paths: the checkpoints, such as '[RUN_1/checkpoints/last.ckpt, RUN_2/checkpoints/last.ckpt]'.
        names: what to call them; their numbers of heads unless told, such as 8-8-8.
        steps: training steps of each optimiser.
        seeds: how many of each are trained; the intervals need at least 2 to hold for other seeds.
        depths: the largest number of layers and of gradient steps.
        power: p of the arm |r_hat|^p x.
        prompts: how many to score on.
        output: the new folder; p_probing, or p_probing_2 and so on, unless told.
        seed: of the optimisers' starts and of all prompts.
        cpu_threads: threads; 1 is fastest for models this small.
    """
    for option, value, smallest in (("steps", steps, 1), ("seeds", seeds, 1), ("prompts", prompts, 2)):
        check_at_least(option, value, smallest)
    check_at_least("cpu_threads", cpu_threads, 1)
    torch.set_num_threads(cpu_threads)
    runs = _opened(ckpt_paths, names)
    _check_alike(runs, ckpt_paths)
    folder = _new_folder(output)
    data = next(iter(runs.values())).datamodule
    models = {name: run.module.transformer for name, run in runs.items()}
    training = Training(n_steps=steps, n_seeds=seeds, n_score=prompts, seed=seed)
    found = p_probing(models, data.task.fresh(), data.largest_n, depths, power, training, _bar)
    labels = arm_labels(found)
    settings = {
        "checkpoints": dict(zip(runs, map(str, ckpt_paths), strict=True)),
        "task": repr(data.task),
        "n_points": data.largest_n,
        "training": training,
    }
    _write(folder, found, labels, settings)
    print("\n".join(["", *report(found, labels, data.largest_n), "", f"figure and numbers: {folder}"]))


def arm_labels(found: PProbing) -> dict[str, str]:
    """What each arm is called in tables and figures."""
    layers = {arm: f"layer 1 of {arm.partition('/')[2]}, {n} head{'s' * (n != 1)}" for arm, n in found.heads.items()}
    return layers | {
        UNTRAINED: f"untrained layer 1, {max(found.heads.values())} heads",
        RAW: "x",
        CORRELATION: "R_hat x",
        POWER: f"|r_hat|^{found.power:g} x",
        GD_PLUS_PLUS: f"GD++: (I - {found.shrinkage:g} C/λmax) x",
    }


def report(found: PProbing, labels: Mapping[str, str], n_points: int) -> list[str]:
    """The table of risks, and what became of the claim."""
    width = max(map(len, labels.values())) + 2
    lines = [f"Excess risk (95 % interval over seeds and prompts; {n_points} examples) of what was trained on each:"]
    for optimiser, risks in found.risks().items():
        depths = range(1, len(next(iter(risks.values()))) + 1)
        lines += ["", f"{HEADINGS[optimiser]}:", " " * width + "".join(f"{depth:<16}" for depth in depths)]
        for arm, curve in risks.items():
            cells = "".join(f"{f'{risk.mean:.3f} +- {risk.half_width:.3f}':<16}" for risk in curve)
            lines.append(f"{labels[arm]:<{width}}{cells}".rstrip())
    comparisons = found.comparisons()
    lines += ["", f"Is layer 1 with most heads ({max(found.heads.values())}) better? Risk minus the other's, paired:"]
    lines += [_verdict_line(comparison, labels) for comparison in comparisons]
    return [*lines, "", f"The claim (against fewest heads and x, at every k and t): {_overall(found, comparisons)}"]


def _verdict_line(comparison: Comparison, labels: Mapping[str, str]) -> str:
    depth = f"{comparison.optimiser}, {comparison.depth}"
    rival = f"against {labels.get(comparison.rival, comparison.rival)}"
    difference = f"{comparison.difference.mean:+.3f} +- {comparison.difference.half_width:.3f}"
    kind = "" if comparison.claimed else " (control)"
    return f"  {depth:<14}{rival:<40}{difference:<19} {comparison.verdict}{kind}"


def _overall(found: PProbing, comparisons: Sequence[Comparison]) -> str:
    parts = [comparison.verdict for comparison in comparisons if comparison.claimed]
    counts = ", ".join(f"{parts.count(verdict)} {verdict}" for verdict in ("HOLDS", "FAILS", "UNDECIDED"))
    alone = "" if len(set(found.heads.values())) > 1 else "; against x alone, as no model has fewer heads"
    return f"{claim(comparisons)} (of {len(parts)} comparisons {counts}{alone})"


def _opened(ckpt_paths: Sequence[str], names: Sequence[str] | None) -> dict[str, Run]:
    """The runs by name."""
    if not ckpt_paths:
        raise InputError("ckpt_paths is [], but P-probing needs at least one checkpoint.")
    if names is not None and len(names) != len(ckpt_paths):
        raise InputError(f"names has {len(names)} entries, but ckpt_paths has {len(ckpt_paths)}; give one for each.")
    if names is not None and len(set(names)) < len(names):
        raise InputError(f"names is {list(names)}, but each must be there once.")
    runs = [open_run(path) for path in ckpt_paths]
    return dict(zip(names or _names(runs), runs, strict=True))


def _names(runs: Sequence[Run]) -> list[str]:
    """The numbers of heads, such as 8-8-8; with a number after those that were there before."""
    heads = ["-".join(map(str, run.module.transformer.heads)) for run in runs]
    before = [heads[:i].count(name) for i, name in enumerate(heads)]
    return [f"{name}_{n + 1}" if n else name for name, n in zip(heads, before, strict=True)]


def _check_alike(runs: Mapping[str, Run], ckpt_paths: Sequence[str]) -> None:
    """Refuse models of different tasks or numbers of examples: their first layers answer to different prompts."""
    laws = [
        f"{run.datamodule.task!r} with n_points {[run.datamodule.smallest_n, run.datamodule.largest_n]}"
        for run in runs.values()
    ]
    for path, law in zip(ckpt_paths, laws, strict=True):
        if law != laws[0]:
            raise InputError(
                f"{path} was trained on {law}, but {ckpt_paths[0]} on {laws[0]}; compare models of one law."
            )


def _new_folder(output: str | None) -> Path:
    """The folder asked for, which must not exist, or the first free one here."""
    if output is not None:
        if Path(output).exists():
            raise InputError(f"output is {output}, but that exists already; name a folder that does not.")
        return Path(output)
    names = itertools.chain(["p_probing"], (f"p_probing_{i}" for i in itertools.count(2)))
    return next(Path(name) for name in names if not Path(name).exists())


def _bar(items: Sequence[Any], description: str) -> Iterable[Any]:
    return tqdm(items, desc=description, leave=False)


def _write(folder: Path, found: PProbing, labels: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    risks = found.risks()
    pixels = write_figure(folder, "p_probing", p_probing_risks(risks, labels, found.heads))
    with SummaryWriter(str(folder)) as writer:
        writer.add_image("p_probing", pixels, dataformats="HWC")
        for optimiser, by_arm in risks.items():
            for arm, curve in by_arm.items():
                for depth, risk in enumerate(curve, start=1):
                    writer.add_scalar(f"p_probe/{optimiser}/{arm}", risk.mean, depth)
    # Last, and whole or not at all: where it is there, all is.
    partial = folder / "p_probing.json.partial"
    partial.write_text(json.dumps(_record(found, settings), indent=1, allow_nan=False) + "\n")
    partial.replace(folder / "p_probing.json")


def _record(found: PProbing, settings: Mapping[str, Any]) -> Any:
    """Everything that was measured, as JSON knows it."""
    comparisons = found.comparisons()
    by_seed = {
        optimiser: {arm: errors.mean(dim=-1) for arm, errors in by_arm.items()}
        for optimiser, by_arm in found.errors.items()
    }
    return plain(
        {
            "lightning_icl": version("lightning-icl"),
            **settings,
            "heads": found.heads,
            "power": found.power,
            "shrinkage": found.shrinkage,
            "risk": found.risks(),
            "risk_by_seed": by_seed,  # one list of seeds for each depth
            "comparisons": [c._asdict() | {"verdict": c.verdict} for c in comparisons],
            "claim": claim(comparisons),
        }
    )
