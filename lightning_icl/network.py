"""What every network under the instruments is: a torch module that predicts at the queries of a prompt.

A network of one's own is a class:

class LSTM(InContextNetwork):
    def __init__(self, n_dims: int, width: int = 64) -> None:
        super().__init__()
        self.n_dims, self.heads = n_dims, []
        ...

    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        ...
        return TransformerOutput(prediction)  # (batch, queries)
"""

import pydoc
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, signature
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.seeds import seeded

Made = TypeVar("Made")


class TransformerOutput(NamedTuple):
    """Predictions at the queries and, of a network that has them, the states that they came from.

    ``query_states`` and ``context_states`` hold one tensor after the read-in (index 0) and one after each layer, or
    none at all (the context's not after the last layer where a Transformer was told to leave that out). The context
    tokens are the examples, or the 2 points x and y tokens of the alternating layout. ``prefix_prediction`` holds
    the prediction of each example's target from the examples before it, of a network that predicts those.

    Example:
        >>> import torch
        >>> from lightning_icl import TransformerOutput
        >>> output = TransformerOutput(prediction=torch.zeros(2, 5))
        >>> output.query_states, output.prefix_prediction  # of a network that shows none
        ((), None)
    """

    prediction: Float[Tensor, "batch queries"]
    query_states: tuple[Float[Tensor, "batch queries width"], ...] = ()
    context_states: tuple[Float[Tensor, "batch context width"], ...] = ()
    prefix_prediction: Float[Tensor, "batch points"] | None = None


class InContextNetwork(nn.Module, ABC):
    """A torch module that learns in context: from a prompt to predictions at its queries.

    A prompt and a query are predicted alone, whatever else is in the batch; padded examples (``prompt.point_mask``)
    do not count. The number of examples is that of the run's streams and of analyses that look at fewer. ``on_prompt``
    takes a head mask, (layers, heads of the widest layer) or the same for each prompt, which multiplies each head's
    output before the output projection; without heads it is always None.

    A subclass may also have ``read(states)``, its predictions from the states after any layer: AlgorithmMatch then
    reads every layer by it.

    Attributes:
        n_dims: length of x. A constructor with an argument of this name is given the task's by the command line.
        heads: number of heads of each layer, first layer first, 0 for a layer without; [] for a network without heads.
        options: the constructor's arguments, so that ``type(network)(**network.options)`` is an untrained one.

    Example:
        >>> import torch
        >>> from lightning_icl import InContextNetwork, LinearRegression, TransformerOutput
        >>> class Mean(InContextNetwork):
        ...     def __init__(self, n_dims):
        ...         super().__init__()
        ...         self.n_dims, self.heads = n_dims, []
        ...     def on_prompt(self, prompt, head_mask=None):
        ...         return TransformerOutput(prompt.y.mean(dim=1, keepdim=True).expand_as(prompt.f_query))
        >>> prompt = LinearRegression(n_dims=3).sample(2, 8, 5, torch.Generator().manual_seed(0))
        >>> Mean(n_dims=3).on_prompt(prompt).prediction.shape
        torch.Size([2, 5])
    """

    n_dims: int
    heads: Sequence[int]
    options: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "InContextNetwork":
        if cls.__abstractmethods__:
            raise InputError(
                f"{cls.__name__} has no on_prompt; define on_prompt(prompt, head_mask=None), which returns a "
                "TransformerOutput."
            )
        network = super().__new__(cls)
        nn.Module.__init__(network)  # also where a constructor forgets to
        parameters = signature(cls.__init__).parameters
        try:
            given = signature(cls.__init__).bind_partial(network, *args, **kwargs)
        except TypeError:  # which the constructor says better
            return network
        given.apply_defaults()
        options = dict(list(given.arguments.items())[1:])
        for name in list(options):
            if parameters[name].kind is Parameter.VAR_KEYWORD:
                options |= options.pop(name)
            elif parameters[name].kind is Parameter.VAR_POSITIONAL and (unnamed := options.pop(name)):
                raise InputError(
                    f"{cls.__name__} is given {', '.join(map(repr, unnamed))} as *{name}, but the arguments of a "
                    "network need names, by which it is made again."
                )
        network.options = options
        return network

    @abstractmethod
    def on_prompt(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        """Predictions at the queries, and the states that they came from."""

    def for_training(self, prompt: Prompt, head_mask: Tensor | None = None) -> TransformerOutput:
        """``on_prompt`` where nothing but predictions is asked for."""
        return self.on_prompt(prompt, head_mask)

    def hidden_matrices(self) -> list[nn.Parameter]:
        """The matrices that Muon and SOAP train; AdamW trains the rest."""
        return [parameter for parameter in self.parameters() if parameter.dim() == 2]

    def untrained(self, seed: int = 0) -> "InContextNetwork | None":
        """A network of the same architecture with fresh weights, the same for each seed; None where none can be made.

        The control of what is read from trained states. A network among the options is made anew too; of another
        module there it is not known how.
        """

        def fresh(value: Any) -> Any:
            match value:
                case nn.Module():
                    made = value.untrained(seed) if isinstance(value, InContextNetwork) else None
                    if made is None:
                        unknown.append(value)
                    return made
                case dict():
                    return {key: fresh(inner) for key, inner in value.items()}
                case list() | tuple():
                    return type(value)(map(fresh, value))
            return value

        unknown: list[nn.Module] = []
        options = fresh(self.options)
        if unknown:
            return None
        with seeded(seed):
            network = type(self)(**options)
        first = next(self.parameters(), torch.empty(0))  # of a network without weights
        return network.to(first.device, first.dtype)


def depth(network: InContextNetwork, output: TransformerOutput) -> int:
    """How many layers of a network can be looked at, from what it shows of any prompt.

    Those with states, or else those that say how many heads they have; 0 where neither is there.
    """
    return len(output.query_states) - 1 if output.query_states else len(network.heads)


def description(network: InContextNetwork) -> dict[str, Any] | None:
    """A network's class and arguments as a config writes them, from which ``described`` makes an untrained one.

    None where an argument is no plain value, list, mapping or network, and not its own default.
    """
    try:
        return _plain(network)
    except TypeError:
        return None


def check_remade(network: InContextNetwork) -> None:
    """Refuse a network that could not be made again from its description, whose trained weights would be lost."""
    kind, config = type(network).__name__, description(network)
    if config is None:
        raise InputError(
            f"this {kind} was made with an argument that is no number, text, list, mapping or network, from which it "
            "cannot be made again; let its constructor take such values alone."
        )
    fresh = outline(config).state_dict()
    own = network.state_dict()
    for name in [*own, *fresh]:
        here, there = (None if of.get(name) is None else list(of[name].shape) for of in (own, fresh))
        if here != there:
            raise InputError(
                f"{name} of this {kind} has the shape {here}, but {there} in a {kind} of its arguments, from which it "
                "would be loaded; let the arguments say what the network is."
            )


def _plain(value: Any) -> Any:
    match value:
        case InContextNetwork():
            parameters, own = signature(type(value).__init__).parameters, dict[str, Any]()
            for name, argument in value.options.items():
                try:
                    own[name] = _plain(argument)
                except TypeError:
                    if name not in parameters or argument is not parameters[name].default:
                        raise
            return {"class_path": path_of(type(value)), "init_args": own}
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(value)


def described(config: Mapping[str, Any] | str, n_dims: int | None = None) -> InContextNetwork:
    """The untrained network of a description; makes networks alone, whatever a file may name.

    ``n_dims`` is for the constructors that take it and are not given it, as on the command line.
    """

    def made(value: Any) -> Any:
        match value:
            case {"class_path": _}:
                return described(value, n_dims)
            case dict():
                return {key: made(inner) for key, inner in value.items()}
            case list():
                return [made(inner) for inner in value]
        return value

    kind = _class_of(config)
    arguments = made(dict(config.get("init_args") or {}))  # type: ignore[union-attr]  # else there is no class
    if n_dims is not None and "n_dims" in signature(kind.__init__).parameters:
        arguments.setdefault("n_dims", n_dims)
    return kind(**arguments)


def outline(config: Mapping[str, Any] | str, n_dims: int | None = None) -> InContextNetwork:
    """The network of a description with the names and shapes of its weights; no random number is drawn."""
    return shapes_alone(lambda: described(config, n_dims))


def shapes_alone(make: Callable[[], Made]) -> Made:
    """What ``make`` makes, at no cost however large where its constructor allows; no random number is drawn."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return make()
        except (RuntimeError, NotImplementedError):  # a network that computes with its weights
            return make()


def in_full(config: Mapping[str, Any]) -> dict[str, Any]:
    """A description with every argument that its classes have, and the paths by which they know themselves."""

    def full(value: Any) -> Any:
        match value:
            case {"class_path": _}:
                return in_full(value)
            case dict():
                return {key: full(inner) for key, inner in value.items()}
            case list() | tuple():
                return [full(inner) for inner in value]
        return value

    kind = _class_of(config)
    known = {name: p.default for name, p in signature(kind.__init__).parameters.items() if p.default is not p.empty}
    return {"class_path": path_of(kind), "init_args": full(known | dict(config.get("init_args") or {}))}


def path_of(kind: type) -> str:
    """Where a class is imported from, as a config names it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _class_of(config: Mapping[str, Any] | str) -> type[InContextNetwork]:
    if isinstance(config, str):
        raise InputError(
            f"the network is a {config} with arguments that are not written down; open it in Python, by "
            "ICLModule.load_from_checkpoint(path, network=...)."
        )
    path = str(config["class_path"])
    try:
        kind = pydoc.locate(path)
    except pydoc.ErrorDuringImport as error:
        raise InputError(f"the network is a {path}, whose file cannot be imported: {error.value}.") from error
    if not (isinstance(kind, type) and issubclass(kind, InContextNetwork)):
        raise InputError(f"the network is a {path}, but there is no such network here; put its file on the path.")
    return kind


def current_names(state: dict[str, Any]) -> dict[str, Any]:
    """A module's weights by their names of today: before 0.7 the network was called transformer."""
    old, new = "transformer.", "network."
    if not any(name.startswith(old) for name in state):
        return state
    return {new + name.removeprefix(old) if name.startswith(old) else name: value for name, value in state.items()}
