"""A network that is not what it says gets one sentence, before any work; one that is gets none."""

import re
import sys

import pytest
import torch
from conftest import small_data, small_trainer
from networks import LSTM, ShownLSTM
from torch import nn

from lightning_icl import GPT2, ICLModule, SparseLinearRegression, Transformer
from lightning_icl.callbacks import Curriculum, HeadImportance, LinearProbe
from lightning_icl.cli import main
from lightning_icl.functional.errors import InputError
from lightning_icl.gated_heads import GatedHeads
from lightning_icl.network import InContextNetwork, TransformerOutput, depth
from lightning_icl.network_check import check_network

TASK = SparseLinearRegression(4, 2, noise_std=0.3)


def prompts(n_points=5):
    return TASK.sample(4, n_points, 4, torch.Generator().manual_seed(1))


class Attention(InContextNetwork):
    """One layer of attention of all tokens to all but other queries; what is said when it is made goes wrong.

    Its projection starts at 0, behind which nothing counts, as in many networks.
    """

    def __init__(self, n_dims=4, wrong=""):
        super().__init__()
        self.n_dims, self.heads, self.wrong = n_dims, [2], wrong
        self.read_in, self.values = nn.Linear(n_dims + 1, 8), nn.Linear(8, 8)
        self.output, self.read_out = nn.Linear(8, 8), nn.Linear(8, 1)
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)
        nn.init.zeros_(self.output.weight)

    def on_prompt(self, prompt, head_mask=None):
        wrong, n = self.wrong, prompt.x.shape[1]
        query = torch.cat([prompt.x_query, torch.zeros_like(prompt.y_query)[..., None]], dim=-1)
        if wrong == "answers":
            query = torch.cat([prompt.x_query, prompt.y_query[..., None]], dim=-1)
        start = self.read_in(torch.cat([torch.cat([prompt.x, prompt.y[..., None]], dim=-1), query], dim=1))
        keys = torch.arange(start.shape[1])
        visible = (keys < n)[None] | (keys[:, None] == keys)
        if wrong == "earlier queries":
            visible = keys <= keys[:, None]
        elif wrong == "later queries":
            visible = (keys < n)[None] | (keys[:, None] <= keys)
        visible = visible[None].repeat(len(start), 1, 1)
        if prompt.point_mask is not None and wrong != "padding":
            visible[:, :, :n] &= prompt.point_mask[:, None]
        scores = (start @ start.mT).masked_fill(~visible, -torch.inf)
        mixed = scores.softmax(dim=-1) @ self.values(start)
        mask = torch.ones(2) if head_mask is None else head_mask[..., 0, :]
        if wrong == "mask of ones" and head_mask is not None:
            mask = mask / 2
        if wrong == "first mask" and mask.dim() == 2:
            mask = mask[0]
        if wrong == "one head":
            mask = torch.stack([mask[..., 0], torch.ones_like(mask[..., 0])], dim=-1)
        if wrong == "no mask":
            mask = torch.ones(2)
        if wrong == "shared masks alone":
            assert mask.dim() == 1, "too many masks"
        mixed = mixed * mask.repeat_interleave(4, dim=-1).view(-1, 1, 8)
        after = start + self.output(mixed)
        if wrong == "batch":
            after = self.norm(after.mT).mT
        prediction = self.read_out(after[:, n:]).squeeze(-1)
        if wrong == "random":
            prediction = nn.functional.dropout(prediction)
        queries, contexts = (start[:, n:], after[:, n:]), (start[:, :n], after[:, :n])
        match wrong:
            case "a tensor":
                return prediction
            case "shape":
                return TransformerOutput(prediction[..., None])
            case "double":
                return TransformerOutput(prediction.double())
            case "one tensor of states":
                return TransformerOutput(prediction, queries[0])
            case "nan":
                return TransformerOutput(prediction - torch.inf * prediction.sign())
            case "raises":
                raise KeyError("width")
            case "layers":
                return TransformerOutput(prediction, (*queries, after[:, n:]))
            case "width":
                return TransformerOutput(prediction, tuple(states.flatten(1) for states in queries))
            case "context":
                return TransformerOutput(prediction, queries, contexts[:1])
            case "context tokens":
                return TransformerOutput(prediction, queries, tuple(states[:, 1:] for states in contexts))
            case "prefix":
                return TransformerOutput(prediction, queries, contexts, self.read_out(after[:, :n]).squeeze(-1))
        return TransformerOutput(prediction, queries, contexts)

    def read(self, states):
        return self.read_out(states).squeeze(-1) * (2 if self.wrong == "read" else 1)


WRONG = {
    "one tensor of states": "query_states are a Tensor, but must be a tuple of tensors, one after the read-in",
    "a tensor": "on_prompt returns a Tensor, but it must return a TransformerOutput",
    "shape": "prediction has shape (4, 3, 1), but must have (4, 3) for 4 prompts of 5 examples and 3 queries.",
    "double": "prediction is of torch.float64, but must be a tensor of torch.float32.",
    "nan": "prediction is NaN or infinite in",
    "raises": "on_prompt cannot take 4 prompts of 5 examples and 3 queries: KeyError: 'width' (test_network_check.py",
    "layers": "query_states are 3, but must be one after the read-in and one after each of the 1 layers",
    "width": "query_states[0] has shape (4, 24), but must have (4, 3, width)",
    "context": "context_states are 1, but must be as many as its query_states, 2, or none",
    "context tokens": "context_states[0] has shape (4, 4, 8), but must have (4, 5, width)",
    "prefix": "prefix_prediction of an example changes with its label",
    "read": "read of the last of its query_states is not its prediction",
    "random": "predicts something else each time",
    "answers": "reads the answers",
    "batch": "sees other prompts of the batch",
    "earlier queries": "sees other queries",
    "later queries": "sees other queries",
    "padding": "counts padded examples: 5 examples, of which the first 2 are not padding",
    "no mask": "lists heads [2], but a head_mask of zeros changes nothing",
    "mask of ones": "changes with a head_mask of ones",
    "first mask": "does something else than the same for all",
    "one head": "to mask head 2 of layer 1 changes nothing",
    "shared masks alone": "queries and a head_mask of shape (4, 1, 2): AssertionError: too many masks",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_network_that_is_not_what_it_must_be_gets_one_sentence(wrong):
    torch.manual_seed(0)
    network = Attention(wrong=wrong)
    with pytest.raises(InputError, match=re.escape(WRONG[wrong])) as found:
        check_network(network, prompts(), shortest=2)
    assert str(found.value).startswith("Attention")
    assert "\n" not in str(found.value)


def sound(kind):
    torch.manual_seed(0)
    options = {"layout": kind, "mask": "causal", "position": "learned", "max_points": 5}
    return {
        "attention": Attention,
        "lstm": lambda: LSTM(4),
        "shown lstm": lambda: ShownLSTM(4, layers=2),
        "batch norm": BatchNormed,
        "gated": lambda: GatedHeads(Transformer(4, 16, [2, 0, 4]), "layers.*.attention.output", [2, 0, 4]),
        "gpt2": lambda: GPT2(4, 16, [2, 0, 4], max_points=5),
        "pairs": lambda: Transformer(4, 16, [2, 4]),
        "linear": lambda: Transformer(4, 16, [2, 0, 4], attention="linear", norm="none", mlp=False),
    }.get(kind, lambda: Transformer(4, 16, [2, 4], **options))()


class BatchNormed(LSTM):
    """In evaluation mode it goes by its running means, which are the same for every prompt."""

    def __init__(self):
        super().__init__(4)
        self.norm = nn.BatchNorm1d(8)

    def read(self, states):
        return super().read(self.norm(states.flatten(0, -2)).view_as(states))


@pytest.mark.parametrize(
    "kind",
    ["attention", "lstm", "shown lstm", "batch norm", "gated", "gpt2", "pairs", "linear", "prefixes", "alternating"],
)
def test_a_sound_network_passes_and_stays_as_it_is(kind):
    network = sound(kind)
    before, state = {name: value.clone() for name, value in network.state_dict().items()}, torch.random.get_rng_state()
    output = check_network(network, prompts(), n_points=[1, 3], shortest=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    expected = {"lstm": 0, "batch norm": 0, "shown lstm": 2, "attention": 1, "gpt2": 3, "gated": 3, "linear": 3}.get(
        kind, 2
    )
    assert depth(network, output) == expected
    alone = network.eval().on_prompt(prompts())
    assert torch.allclose(output.prediction, alone.prediction[:, :3], atol=1e-6)


@pytest.mark.parametrize(
    ("declared", "sentence"),
    [
        ({"n_dims": None}, "Attention has no n_dims"),
        ({"n_dims": 4.0}, "Attention.n_dims is 4.0, but it must be a whole number of at least 1"),
        ({"n_dims": 3}, "n_dims is 4, but that of the network, Attention, is 3"),
        ({"heads": None}, "Attention has no heads"),
        ({"heads": 4}, "Attention.heads is 4, but it must list the number of heads of each layer"),
        ({"heads": [4, -1]}, "Attention.heads is [4, -1]"),
        ({"heads": nn.ModuleList([nn.Linear(1, 1)])}, "Attention.heads is a ModuleList"),
    ],
)
def test_what_a_network_says_of_itself_is_checked_where_a_module_takes_it(declared, sentence):
    network = Attention()
    for name, value in declared.items():
        setattr(network, name, value)
    with pytest.raises(InputError, match=re.escape(sentence)):
        ICLModule(4, network=network)


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (nn.Linear(4, 1), "the network is a Linear, but it must be of a class that derives from"),
        (Transformer, "the network is the class Transformer, but it must be"),
    ],
)
def test_what_is_no_network_is_refused(network, sentence):
    with pytest.raises(InputError, match=sentence):
        ICLModule(4, network=network)


def test_a_network_without_on_prompt_is_refused_by_name():
    with pytest.raises(InputError, match="Bare has no on_prompt"):
        type("Bare", (InContextNetwork,), {})()


class Counting(ShownLSTM):
    trials = 0

    def __deepcopy__(self, memo):
        Counting.trials += 1
        memo[id(self)] = copied = self.untrained()
        return copied


@pytest.mark.usefixtures("undrawn")
def test_a_run_tries_its_network_once_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(Counting, "trials", 0)
    module = ICLModule(4, network=Counting(4, layers=3))
    trainer = small_trainer(tmp_path, [LinearProbe(8), HeadImportance(8)], max_steps=1)
    trainer.fit(module, small_data())
    assert Counting.trials == 2  # and once with noise
    assert (module.depth, module.has_states) == (3, True)


@pytest.mark.parametrize(
    ("callbacks", "options", "refused"),
    [([], {}, False), ([], {"n_points": (2, 5)}, True), ([Curriculum(points_start=3, points_step=1)], {}, True)],
)
def test_padding_is_tried_where_the_data_pads(tmp_path, callbacks, options, refused):
    trainer = small_trainer(tmp_path, callbacks, max_steps=1, limit_val_batches=0)
    module = ICLModule(4, network=Attention(wrong="padding"))
    if not refused:
        trainer.fit(module, small_data(**options))
        return
    with pytest.raises(InputError, match="counts padded examples"):
        trainer.fit(module, small_data(**options))
    assert trainer.global_step == 0


def test_every_size_that_there_will_be_is_tried(tmp_path):
    module = ICLModule(4, network=Fixed())
    with pytest.raises(InputError, match="cannot take 4 prompts of 9 examples"):
        small_trainer(tmp_path).fit(module, small_data(validation={"longer": {"n_points": 9}}))


MINE = """
from lightning_icl import InContextNetwork, TransformerOutput
from torch import nn

class Mine(InContextNetwork):
    def __init__(self, n_dims: int):
        super().__init__()
        self.n_dims, self.heads, self.layer = n_dims, [], nn.Linear(n_dims, 1)

    def on_prompt(self, prompt, head_mask=None):
        return TransformerOutput(self.layer(prompt.x_query))
"""


def test_on_the_command_line_it_is_one_sentence_and_nothing_is_left_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MINE)
    task = "{class_path: LinearRegression, init_args: {n_dims: 4}}"
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--data.task", task, "--model.network", "mine.Mine", "--trainer.max_steps=9", "--run_folder=run"])
    assert ended.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    shape = "Mine's prediction has shape (4, 3, 1), but must have (4, 3) for 4 prompts of 16 examples and 3 queries."
    assert said == f"lightning-icl: {shape}"
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["mine.py"]


class Fixed(InContextNetwork):
    """Takes five examples and no other number."""

    def __init__(self):
        super().__init__()
        self.n_dims, self.heads, self.layer = 4, [], nn.Linear(5, 1)

    def on_prompt(self, prompt, head_mask=None):
        weight = self.layer((prompt.x * prompt.y[..., None]).mT).mT
        return TransformerOutput((prompt.x_query * weight).sum(dim=-1))
