"""Training a network to predict in context."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_icl.data import PromptDataModule
from lightning_icl.divergence import DivergedError, Watch
from lightning_icl.functional.constructions import Construction
from lightning_icl.functional.errors import InputError, check_at_least, check_not_negative, check_positive
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.references import MAX_DEFAULT_TERMS
from lightning_icl.loggers import flush, log_scalars, logs_this_step
from lightning_icl.metrics import ExcessRisk
from lightning_icl.network import (
    InContextNetwork,
    TransformerOutput,
    check_remade,
    current_names,
    depth,
    described,
    description,
    path_of,
)
from lightning_icl.network_check import check_declared, check_network
from lightning_icl.optimizers import BlockMuon, Blocks, OptimizerPair, adamw
from lightning_icl.soap import SOAP
from lightning_icl.transformer import Transformer

OptimizerName = Literal["adamw", "muon", "muon_per_head", "soap"]
Target = Literal["noise_free", "noisy", "posterior_mean"]
Schedule = Literal["cosine", "constant"]


class ICLModule(LightningModule):
    """A Transformer, or any other network, trained on mean squared error at every position it predicts.

    The positions are the queries and, in the layouts "prefixes" and "alternating", the examples, each predicted from
    those before it; all have equal weight, as in Garg et al. (2022).

    Logs train/loss (of rank 0's share of the batch) and train/learning_rate every ``trainer.log_every_n_steps``
    optimizer steps, when the bar shows the loss too; what monitors a run finds it after any step. At validation it logs
    val/excess_risk/transformer, of the predictions at the queries, and where the data module's validation streams have
    names, val/<name>/excess_risk/transformer for each; what monitors a run finds the first stream's without its name
    too. At test the same under test/. Everything is logged at the number of optimizer steps behind the weights, in a
    standalone run at the checkpoint's.

    Args:
        n_dims: length of x. The command line takes it from the task.
        optimizer: "adamw"; or "muon" for the hidden matrices with AdamW for the rest, which orthogonalises across the
            heads of a layer and so spreads work over them; or "muon_per_head", with each head's query, key, value and
            output blocks as matrices of their own; or "soap" (Vyas et al. 2024) in Muon's place, Adam in the eigenbases
            of each matrix's gradients, which also mix heads. benchmarks/RESULTS.md compares them.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
        warmup_steps: optimizer steps of linear warm-up.
        schedule: what follows the warm-up: "cosine" is a decay to 0 at trainer.max_steps (constant if the run has no
            max_steps), "constant" none.
        target: what the loss compares with: the "noisy" label, as in the literature, the "noise_free" target f(x), or
            its "posterior_mean" given the examples, where the law has it in closed form. All have the same minimiser,
            that posterior mean, and each has a lower variance than the one before (Rao-Blackwell).
        network: an InContextNetwork of another kind, such as GPT2 or my_model.LSTM, instead of a Transformer.
        construction: start from the weights of a network whose algorithm is known, such as {class_path: ConstructedGD,
            init_args: {steps: 3, step_size: 0.2}}, instead of random ones. The shape follows from it; on the command
            line a shape option at its default is taken as not given.
        **transformer: the options of the Transformer: d_model, heads, attention, mask, mlp, norm, layout, ...

    Example:
        >>> from lightning_icl import ICLModule
        >>> module = ICLModule(n_dims=3, d_model=16, heads=[4, 4], learning_rate=2e-3)
        >>> type(module.network).__name__, module.network.heads
        ('Transformer', [4, 4])
    """

    def __init__(
        self,
        n_dims: int,
        optimizer: OptimizerName = "adamw",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        schedule: Schedule = "cosine",
        target: Target = "noisy",
        network: InContextNetwork | None = None,
        construction: Construction | None = None,
        **transformer: Any,
    ) -> None:
        super().__init__()
        if isinstance(network, Mapping | str):  # from a checkpoint
            network = described(network)
        if network is not None:
            check_declared(network)
            if network.n_dims != n_dims:
                raise InputError(
                    f"n_dims is {n_dims}, but that of the network, {type(network).__name__}, is {network.n_dims}."
                )
        if network is not None and (construction or transformer):
            others = ["construction"] if construction else list(transformer)
            raise InputError(
                f"{', '.join(others)} and network are given, but {others[0]} is of the Transformer alone; give the "
                "network options of its own."
            )
        if construction is not None:
            transformer = constructed_options(construction, n_dims, transformer)
        # A checkpoint has the construction's weights and shape.
        self.save_hyperparameters(ignore=["construction", "network"])
        if network is not None:
            self.save_hyperparameters({"network": description(network) or path_of(type(network))})
        # By it Lightning would make the module through a command line's parser, with all options of a Transformer.
        self.hparams.pop("_instantiator", None)
        self.network: InContextNetwork = Transformer(n_dims, **transformer) if network is None else network
        if construction is not None:
            self.network.load_state_dict(construction.state(n_dims))
        # Of another network than a Transformer a trial tells, in check_run.
        self.depth, self.has_states = len(self.network.heads), isinstance(self.network, Transformer)
        self._tried: tuple[object, ...] | None = None
        self.construction = construction
        self.started_as = None if construction is None else construction.arguments()
        self.optimizer, self.learning_rate, self.weight_decay = optimizer, learning_rate, weight_decay
        self.warmup_steps, self.schedule = warmup_steps, schedule
        self.target = target
        self.trained_steps = 0  # of the checkpoint these weights come from
        self.validations = 0  # of the fit so far, over all resumes
        self.validated_at = -1  # the optimizer step of the last of them
        self._watch = Watch()
        self._logged_at = -1  # the optimizer step of the last training loss that is logged
        self.closing = False  # whether training has ended, and a last validation is made for what is due then
        self._check()

    def _check(self) -> None:
        for name, literal in (("optimizer", OptimizerName), ("schedule", Schedule), ("target", Target)):
            if getattr(self, name) not in get_args(literal):
                choices = ", ".join(get_args(literal))
                raise InputError(f"{name} is {getattr(self, name)!r}, but it must be one of {choices}.")
        check_positive(learning_rate=self.learning_rate)
        check_not_negative(weight_decay=self.weight_decay)
        check_at_least(0, warmup_steps=self.warmup_steps)
        if self.optimizer == "muon_per_head" and not isinstance(self.network, Transformer):
            raise InputError(
                f"optimizer is 'muon_per_head', but only a Transformer says which weights are of which head, and the "
                f"network is a {type(self.network).__name__}; use muon."
            )
        layout = getattr(self.network, "layout", "pairs")
        if self.target == "posterior_mean" and layout != "pairs":
            raise InputError(
                f"target is 'posterior_mean', but layout is {layout!r}: posterior means are computed at the queries "
                "alone; set layout to 'pairs', or target to 'noise_free'."
            )

    def forward(self, prompt: Prompt, head_mask: Tensor | None = None) -> Tensor:
        """Predictions (batch, queries); ``head_mask`` as in InContextNetwork."""
        return self.output(prompt, head_mask).prediction

    def output(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        """Predictions and the states they came from."""
        return self.network.on_prompt(prompt, head_mask)

    def setup(self, stage: str) -> None:
        """One metric for each validation stream, by the names the data module gives them."""
        streams = getattr(self.trainer.datamodule, "streams", None)  # type: ignore[attr-defined]
        self.stream_names: list[str | None] = [stream.name for stream in streams] if streams else [None]
        self.risks = nn.ModuleList(ExcessRisk() for _ in self.stream_names)
        self.check_run(self.trainer, self.trainer.datamodule, stage)  # type: ignore[attr-defined]
        if stage == "fit":
            try:
                check_remade(self.network)
            except InputError as error:
                rank_zero_warn(f"{error} Until then ICLModule.load_from_checkpoint(path, network=...) alone opens it.")

    def check_run(self, trainer: Trainer, data: LightningDataModule | None, stage: str) -> None:
        """Refuse a network that is not what it must be on these prompts, and a target that the data has not."""
        if stage == "fit" and not any(weight.requires_grad for weight in self.network.parameters()):
            raise InputError(f"{type(self.network).__name__} has no weights that can be trained; validate it instead.")
        if isinstance(data, PromptDataModule) and not isinstance(self.network, Transformer):
            self._try_network(trainer, data, stage)
        if stage == "fit" and self.target == "posterior_mean":
            task = getattr(data, "task", None)
            law = "the data module" if task is None else f"this {type(task).__name__}"
            terms = getattr(task, "posterior_terms", None)
            if terms is None or terms > MAX_DEFAULT_TERMS:
                lacks = "no exact posterior in closed form" if terms is None else f"one of {terms:,} terms, too many"
                raise InputError(
                    f"target is 'posterior_mean', but {law} has {lacks}; set it to 'noise_free' or 'noisy'."
                )

    def _try_network(self, trainer: Trainer, data: PromptDataModule, stage: str) -> None:
        """On prompts of each size that there will be; once, whoever asks."""
        device = trainer.strategy.root_device
        sizes = {n for stream in data.streams for n in (stream.smallest_n, stream.largest_n)}
        shortest = None
        if stage == "fit":
            sizes |= {data.smallest_n, data.largest_n}
            starts = data.curriculum.points.start if data.curriculum.points else data.smallest_n
            shortest = starts if starts < data.largest_n else None
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            sizes |= {n for n in getattr(callback, "looks_at", lambda data: ())(data) if 1 <= n <= max(sizes)}
        if self._tried != (sizes, shortest, device, stage == "fit"):
            prompt = data.held_out("network", 4, device, max(sizes))
            seen = check_network(self.network, prompt, sorted(sizes - {max(sizes)}), shortest, stage == "fit")
            self.depth, self.has_states = depth(self.network, seen), bool(seen.query_states)
            self._tried = sizes, shortest, device, stage == "fit"

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._refuse(self._watch.settle())  # never a checkpoint of spoiled weights
        if self._trainer is not None and self._trainer.state.fn != "fit":
            checkpoint["global_step"] = self.trained_steps  # not the trainer's, which made none of them
        checkpoint["lightning_icl"] = {"validations": self.validations, "validated_at": self.validated_at}
        if self.started_as is not None:
            checkpoint["lightning_icl"]["started_as"] = self.started_as
        if self._trainer is not None:
            self._log_training()
            flush(self._trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = current_names(checkpoint["state_dict"])
        self.trained_steps = checkpoint.get("global_step", 0)
        # A checkpoint of before 0.2 has the count in each analysis' state.
        states = [state for state in checkpoint.get("callbacks", {}).values() if isinstance(state, Mapping)]
        older = [state["validations"] for state in states if "validations" in state]
        known: dict[str, Any] = {"validations": max(older, default=0), "validated_at": self.trained_steps}
        known |= checkpoint.get("lightning_icl", {})
        resumes = self._trainer is not None and self._trainer.state.fn == "fit"
        if resumes and known.get("started_as") != self.started_as:
            raise InputError(
                f"the checkpoint's training started from {known.get('started_as') or 'random weights'}, but "
                f"model.construction is {self.started_as}; resume it with the construction it had."
            )
        self.started_as = known.get("started_as")  # whatever the config says
        self.validations, self.validated_at = known["validations"], known["validated_at"]

    def on_train_start(self) -> None:
        """Refuse to go on from the middle of an accumulated step, whose gradients no checkpoint holds."""
        loop = self.trainer.fit_loop.epoch_loop
        done, accumulate = loop.batch_progress.current.ready, self.trainer.accumulate_grad_batches
        if done % accumulate:
            raise InputError(
                f"the checkpoint was saved after {done} batches, which trainer.accumulate_grad_batches, {accumulate}, "
                "does not divide: resume with one that does."
            )

    def training_step(self, prompt: Prompt, batch_idx: int) -> Tensor:
        loss = self.loss(prompt)
        # For what monitors a run. self.log would read it back from the device at every step, for the bar.
        self.trainer.callback_metrics["train/loss"] = loss.detach()
        self._learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]  # of this step; then the schedule moves
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Stop at a step whose loss or gradient is no number, before the weights are spoiled by it."""
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        gradients = [p.grad.flatten() for p in parameters if p.grad is not None]
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None  # which passes over such gradients
        # A sum is finite where all its terms are, and cheaper than a norm.
        total = torch.zeros((), device=self.device) if scaled or not gradients else torch.cat(gradients).sum()
        # Of several processes each has a loss of its own, but all the same gradient, and so the same to say.
        if scaled or self.trainer.world_size == 1:
            total = total + self.trainer.callback_metrics.get("train/loss", 0.0)
        if scaled and self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)  # all of them stop, or none
        self._refuse(self._watch.add(self.global_step, total))

    def _refuse(self, step: int | None) -> None:
        if step is not None:
            seed = getattr(self.trainer.datamodule, "seed", None)  # type: ignore[attr-defined]
            raise DivergedError(
                f"the loss or gradient of step {step} (from 0) is not finite: training has diverged on the batch of "
                f"seed {seed}, stream train, step {step}, all blocks; lower learning_rate (now {self.learning_rate}) "
                "or set trainer.gradient_clip_val.",
                before_it=step == self.global_step,
            )

    def on_train_batch_end(self, outputs: Any, batch: Prompt, batch_idx: int) -> None:
        self._log_training()

    def _log_training(self) -> None:
        """The loss of the step that was just made and its learning rate, once; before a checkpoint, if one is due."""
        found = self.trainer.callback_metrics.get("train/loss")
        if found is not None and self._logged_at != self.global_step and logs_this_step(self.trainer):
            self._logged_at = self.global_step
            self.trainer.progress_bar_metrics["train/loss"] = loss = float(found)
            scalars = {"train/loss": loss, "train/learning_rate": self._learning_rate}
            log_scalars(self.trainer, scalars, self.global_step)

    def loss(self, prompt: Prompt) -> Tensor:
        """Mean squared error over the queries and, where the layout predicts them, over the examples alike."""
        output = self.network.for_training(prompt)
        if self.target == "posterior_mean":
            at_queries = self.trainer.datamodule.posterior_mean(prompt)  # type: ignore[attr-defined]
        else:
            at_queries = prompt.f_query if self.target == "noise_free" else prompt.y_query
        if output.prefix_prediction is None:
            return torch.nn.functional.mse_loss(output.prediction, at_queries)
        at_points = prompt.f if self.target == "noise_free" else prompt.y
        if at_points is None:
            raise InputError(
                "the task's prompts have no noise-free targets at the examples (Prompt.f), which a network that "
                "predicts the examples trains on; have the task give them, or set target to 'noisy'."
            )
        errors = torch.cat([output.prediction - at_queries, output.prefix_prediction - at_points], dim=1).square()
        if prompt.point_mask is None:
            return errors.mean()
        counted = torch.cat([torch.ones_like(at_queries, dtype=torch.bool), prompt.point_mask], dim=1)
        return errors.where(counted, 0.0).sum() / counted.sum()

    # Lightning hands any output on to the callbacks; only its annotations know no named tuples.
    def validation_step(  # type: ignore[override]
        self, prompt: Prompt, batch_idx: int, dataloader_idx: int = 0
    ) -> TransformerOutput:
        """The predictions, which the callbacks score beside the reference estimators."""
        return self._evaluated(prompt, "val", dataloader_idx)

    def test_step(  # type: ignore[override]
        self, prompt: Prompt, batch_idx: int, dataloader_idx: int = 0
    ) -> TransformerOutput:
        return self._evaluated(prompt, "test", dataloader_idx)

    def predict_step(self, prompt: Prompt, batch_idx: int) -> Tensor:
        return self(prompt)

    def _evaluated(self, prompt: Prompt, stage: str, stream: int) -> TransformerOutput:
        output, risk = self.output(prompt), self._risk(stream)
        risk.update(output.prediction, prompt.f_query)
        keys = [self._risk_key(stage, stream)]
        if stream == 0 and self.stream_names[0]:
            keys.append(f"{stage}/excess_risk/transformer")  # for what monitors a run, whatever its streams
        for key in keys:  # to monitors and the bar; loggers get it at the end, at its step
            bar, n = stream == 0, len(prompt.x)
            self.log(key, risk, prog_bar=bar, logger=False, batch_size=n, add_dataloader_idx=False)
        return output

    def _risk_key(self, stage: str, stream: int) -> str:
        return "/".join(filter(None, [stage, self.stream_names[stream], "excess_risk", "transformer"]))

    def _log_risks(self, stage: str) -> None:
        """The risks of all streams to the loggers, at the steps behind the weights."""
        step = self.global_step if self.trainer.state.fn == "fit" else self.trained_steps
        risks = {self._risk_key(stage, i): float(self._risk(i).compute()) for i in range(len(self.stream_names))}
        log_scalars(self.trainer, risks, step)

    def _risk(self, stream: int) -> ExcessRisk:
        risk = self.risks[stream]
        assert isinstance(risk, ExcessRisk)
        return risk

    def on_validation_epoch_end(self) -> None:
        """Stop where the first stream's risk is no number; on a shifted one it may be, and is only logged."""
        standalone = self.trainer.state.fn != "fit"
        if standalone or not (self.trainer.sanity_checking or self.validated_at == self.global_step):
            self._log_risks("val")
            if not standalone:
                self.validations, self.validated_at = self.validations + 1, self.global_step
        risk = self._risk(0).compute()
        if not torch.isfinite(risk):
            raise InputError(
                f"val/excess_risk/transformer is {risk.item()} at step {self.global_step}: training has diverged; "
                f"lower learning_rate (now {self.learning_rate}) or set trainer.gradient_clip_val. "
                "The last checkpoint is kept."
            )

    def on_test_epoch_end(self) -> None:
        self._log_risks("test")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        # A plain function: LambdaLR pickles the attributes of any other callable into every checkpoint.
        schedule = LambdaLR(optimizer := self.fresh_optimizer(), lambda step: self._learning_rate_factor(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def fresh_optimizer(self) -> Optimizer:
        """The optimizer as it is before the first step, its parameters in the order of its checkpoints."""
        if self.optimizer == "adamw":
            return adamw(self.parameters(), self.learning_rate, self.weight_decay)
        matrices = self.network.hidden_matrices()
        hidden = {id(p) for p in matrices}
        others = [p for p in self.parameters() if id(p) not in hidden]
        rates = self.learning_rate, self.weight_decay
        if self.optimizer == "soap":
            on_matrices: Optimizer = SOAP(matrices, *rates)
        else:
            on_matrices = BlockMuon(matrices, *rates, self._head_blocks() if self.optimizer == "muon_per_head" else {})
        return OptimizerPair(on_matrices, adamw(others, *rates))

    def _head_blocks(self) -> dict[Tensor, Blocks]:
        """How the matrices of attention part into heads."""
        found: dict[Tensor, Blocks] = {}
        assert isinstance(self.network, Transformer)
        for attention in (layer.attention for layer in self.network.blocks if layer.attention):
            for rows in (attention.query, attention.key, attention.value):
                found[rows.weight] = Blocks(0, attention.n_heads)
            found[attention.output.weight] = Blocks(1, attention.n_heads)
        return found

    def _learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 at trainer.max_steps, or 1 throughout."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        total = self.trainer.max_steps
        if self.schedule == "constant" or total <= self.warmup_steps:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - self.warmup_steps) / (total - self.warmup_steps))))


def constructed_options(construction: Construction, n_dims: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a Transformer with those that a construction needs; refuses others that were ``given``."""
    if given.get("init", "default") != "default":
        raise InputError(f"init is {given['init']!r}, but the weights are those of model.construction; leave it out.")
    needed = construction.options(n_dims)
    for name, value in needed.items():
        if name in given and given[name] != value:
            raise InputError(
                f"{name} is {given[name]}, but {type(construction).__name__} is a network with {name} {value}; "
                "leave it out (a run's own config.yaml has the shape that its construction needed)."
            )
    return {**given, **needed}
