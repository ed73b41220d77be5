"""lightning-icl p_probe: is the first layer's output easier to optimise on than the examples?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_icl.callbacks.analysis import check_at_least
from lightning_icl.commands.output import new_folder, record_alone
from lightning_icl.commands.run import Run, open_run
from lightning_icl.figures.files import write_figure
from lightning_icl.figures.p_probing import p_probing_risks
from lightning_icl.functional.errors import MOST_THREADS, InputError, check_between
from lightning_icl.functional.risk import Interval
from lightning_icl.instruments.p_probing import (
    CORRELATION,
    GD_PLUS_PLUS,
    POWER,
    RAW,
    READ_IN,
    UNTRAINED,
    Comparison,
    Optimiser,
    PProbing,
    Training,
    claim,
    p_probing,
)
from lightning_icl.record.configs import shared_values
from lightning_icl.record.loading import read_config
from lightning_icl.record.rows import Measurement, Row, frame
from lightning_icl.terminal import progress

Accelerator = Literal["auto", "cpu", "gpu"]
WIDTH = 80  # columns of the report
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
    accelerator: Accelerator = "auto",
    cpu_threads: int = 1,
) -> None:
    """P-probing: train small optimisers on the frozen first layer of several models and on other representations.

    The models are best trained alike but for the number of heads in their first layer, such as 1, 2, 4 and 8. The
    claim holds if the risk is lower on the layer with most heads than on that with fewest and than on what that layer
    is given, the read-in of the examples, at every number of layers and steps. Writes record.jsonl, p_probing.png and
    .svg and TensorBoard's files.

    Args:
        ckpt_paths: the checkpoints, such as '[RUN_1/checkpoints/last.ckpt, RUN_2/checkpoints/last.ckpt]'.
        names: what to call them; their numbers of heads unless told, such as 8-8-8, or their class without heads.
        steps: training steps of each optimiser.
        seeds: how many of each are trained; the intervals need at least 2 to hold for other seeds.
        depths: the largest number of layers and of gradient steps.
        power: p of the arm |r_hat|^p x.
        prompts: how many to score on.
        output: the new folder; p_probing, or p_probing_2 and so on, unless told.
        seed: of the optimisers' starts and of all prompts.
        accelerator: cpu, gpu (CUDA), or auto, a GPU where there is one. Each draws other prompts from the same seed.
        cpu_threads: threads; 1 is fastest for models this small.
    """
    check_at_least(1, steps=steps, seeds=seeds)
    check_at_least(2, prompts=prompts)
    check_between(1, MOST_THREADS, cpu_threads=cpu_threads)
    torch.set_num_threads(cpu_threads)
    device = _device(accelerator)
    runs = _opened(ckpt_paths, names)
    _check_alike(runs, ckpt_paths)
    folder = new_folder(output, "p_probing")
    data = next(iter(runs.values())).datamodule
    models = {name: run.module.network.to(device) for name, run in runs.items()}
    training = Training(n_steps=steps, n_seeds=seeds, n_score=prompts, seed=seed)
    found = p_probing(models, data.task.fresh(), data.largest_n, depths, power, training, progress)
    labels = arm_labels(found)
    context = {
        "command": "p_probe",
        "seed": seed,
        "law": [{"stream": None, "task": repr(data.task), "n_points": [data.largest_n, data.largest_n]}],
        "checkpoints": dict(zip(runs, map(str, ckpt_paths), strict=True)),
        "models": shared_values([read_config(run.config.parent) for run in runs.values()]),
        "options": {"depths": depths, "power": power, "accelerator": device, "training": asdict(training)},
    }
    _write(folder, found, labels, context)
    print("\n".join(["", *report(found, labels, data.largest_n), "", f"figure and numbers: {folder}"]))


def arm_labels(found: PProbing) -> dict[str, str]:
    """What each arm is called in tables and figures; gamma is in units of 1 / lambda_max."""
    numbers = sorted(set(found.heads.values()), reverse=True)
    return {f"heads_{h}": "layer 1" + f", {h} head{'s' * (h != 1)}" * (h > 0) for h in numbers} | {
        READ_IN: "read-in",
        UNTRAINED: "untrained layer",
        RAW: "x",
        CORRELATION: "R_hat x",
        POWER: f"|r_hat|^{found.power:g} x",
        GD_PLUS_PLUS: f"GD++, gamma {found.shrinkage:.3g}",
    }


def p_probing_rows(found: PProbing, labels: Mapping[str, str]) -> Iterator[Row]:
    """The risk of each arm, with its name in words."""
    for optimiser, risks in found.risks().items():
        for arm, curve in risks.items():
            for depth, risk in enumerate(curve, start=1):
                place = f"p_probing/{optimiser}/{depth}/{arm}"
                yield Row(place, *risk, note=labels[arm])


def report(found: PProbing, labels: Mapping[str, str], n_points: int) -> list[str]:
    """The tables of risks and of differences, and what became of the claim."""
    comparisons = found.comparisons()
    lines = [f"Excess risk of what was trained on each; {n_points} examples.", "± is 95 %, over seeds and prompts."]
    for h in sorted(set(found.heads.values()), reverse=True):
        names = [name.partition("/")[2] for name, number in found.heads.items() if number == h]
        lines.append(f"{labels[f'heads_{h}']}: of {', '.join(names)}")
    for optimiser, risks in found.risks().items():
        cells = [(labels[arm], [_plus_minus(risk) for risk in curve]) for arm, curve in risks.items()]
        lines += ["", f"{HEADINGS[optimiser]}:", *_table(cells)]
    most = max(found.heads.values())
    lines += ["", f"Is layer 1{f' with most heads ({most})' * (most > 0)} better? Risk minus the other's, paired:"]
    for optimiser in found.errors:
        lines += ["", f"{HEADINGS[optimiser]}:", *_table(_differences(comparisons, optimiser, labels))]
    whole = f"The claim (against fewest heads and the read-in, at every k and t): {claim(comparisons)}"
    return [*lines, "", whole, _counted(comparisons, found)]


def _differences(
    comparisons: Sequence[Comparison], optimiser: Optimiser, labels: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    """Two lines a rival: the differences, and under each its verdict."""
    lines: list[tuple[str, list[str]]] = []
    for rival in dict.fromkeys(c.rival for c in comparisons):
        of_rival = [c for c in comparisons if (c.optimiser, c.rival) == (optimiser, rival)]
        differences = [_plus_minus(c.difference, "+") for c in of_rival]
        kind = "  claimed" if of_rival[0].claimed else "  a control"
        lines += [(f"vs {labels[rival]}", differences), (kind, [str(c.verdict) for c in of_rival])]
    return lines


def _plus_minus(interval: Interval, sign: str = "") -> str:
    return f"{interval.value:{sign}.3f} ±{interval.high - interval.value:.3f}"


def _table(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """A line for each name, with a column for each depth, from 1; continued below where it would be too wide."""
    first = max(len(name) for name, _ in rows) + 2
    width = max(len(cell) for _, cells in rows for cell in cells) + 2
    depths = range(len(rows[0][1]))
    at_once = max(1, (WIDTH - first + 2) // width)
    lines = []
    for start in depths[::at_once]:
        shown = slice(start, start + at_once)
        lines.append(" " * first + "".join(f"{depth + 1:<{width}}" for depth in depths[shown]))
        lines += [f"{name:<{first}}" + "".join(f"{cell:<{width}}" for cell in cells[shown]) for name, cells in rows]
    return [line.rstrip() for line in lines]


def _counted(comparisons: Sequence[Comparison], found: PProbing) -> str:
    parts = [comparison.verdict for comparison in comparisons if comparison.claimed]
    counts = ", ".join(f"{parts.count(verdict)} {verdict}" for verdict in ("HOLDS", "FAILS", "UNDECIDED"))
    alone = "" if len(set(found.heads.values())) > 1 else "; against the read-in alone, as no model has fewer heads"
    return f"Of {len(parts)} comparisons {counts}{alone}."


def _device(accelerator: Accelerator) -> str:
    """The torch device's name."""
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise InputError("accelerator is gpu, but there is no CUDA device here; use cpu or auto.")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


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
    networks = [run.module.network for run in runs]
    heads = ["-".join(map(str, network.heads)) or type(network).__name__ for network in networks]
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


def _write(folder: Path, found: PProbing, labels: Mapping[str, str], context: Mapping[str, Any]) -> None:
    rows = list(p_probing_rows(found, labels))
    pixels = write_figure(folder, "p_probing", p_probing_risks(frame(rows), labels))
    with SummaryWriter(str(folder)) as writer:
        writer.add_image("p_probing", pixels, dataformats="HWC")
        for row in rows:
            _, optimiser, depth, arm = row.metric.split("/")
            writer.add_scalar(f"p_probing/{optimiser}/{arm}", row.value, int(depth))
    comparisons = found.comparisons()
    arrays = {
        "heads": found.heads,
        "shrinkage": found.shrinkage,
        "comparisons": [c._asdict() for c in comparisons],
        "claim": claim(comparisons),
        "risk_by_seed": {  # of each model apart, one list of seeds for each depth
            optimiser: {arm: errors.mean(dim=-1) for arm, errors in by_arm.items()}
            for optimiser, by_arm in found.errors.items()
        },
    }
    steps = context["options"]["training"]["n_steps"]
    record_alone(folder, Measurement("PProbing", steps, context, rows, arrays))
