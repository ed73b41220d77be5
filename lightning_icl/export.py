"""A trained network leaves: weights in safetensors and a config, which open without Lightning.

network = load_network("exported")
predictions = Predictor(network)(x, y, x_query)
"""

import json
import re
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from lightning_icl.functional.errors import InputError
from lightning_icl.functional.prompts import Prompt
from lightning_icl.functional.seeds import seeded
from lightning_icl.network import InContextNetwork, check_remade, described, description

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Predictor(nn.Module):
    """A network as a function of tensors, from the examples to predictions at the queries.

    For a caller without prompts, and for torch.export::

        points, sizes = Dim("points", max=40), {0: Dim("batch")}
        shapes = {"x": sizes | {1: points}, "y": sizes | {1: points}, "x_query": sizes | {1: Dim("queries")}}
        torch.export.export(Predictor(network), (x, y, x_query), dynamic_shapes=shapes)

    What stops it is the network's own: an nn.LSTM is exported for one number of points, to which torch unrolls it, and
    learned positions allow no more than max_points.

    Example:
        >>> import torch
        >>> from lightning_icl import Predictor, Transformer
        >>> predictor = Predictor(Transformer(n_dims=3, d_model=16, heads=[4]))
        >>> x, y, x_query = torch.ones(2, 8, 3), torch.ones(2, 8), torch.ones(2, 5, 3)
        >>> predictor(x, y, x_query).shape
        torch.Size([2, 5])
    """

    def __init__(self, network: InContextNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self,
        x: Float[Tensor, "batch points dims"],
        y: Float[Tensor, "batch points"],
        x_query: Float[Tensor, "batch queries dims"],
    ) -> Float[Tensor, "batch queries"]:
        unknown = x_query.new_zeros(x_query.shape[:2])
        return self.network.on_prompt(Prompt(x, y, x_query, unknown, unknown)).prediction


def save_network(network: InContextNetwork, folder: str | Path) -> None:
    """Write a network into a new folder: its weights to model.safetensors, its class and arguments to config.json.

    A class of one's own is named, not copied: its file must be on the path where the network is loaded.

    Raises:
        InputError: where ``load_network`` could not make the network again, and for a folder that exists.

    Example:
        >>> import os
        >>> from lightning_icl import Transformer, save_network
        >>> save_network(Transformer(n_dims=3, d_model=16, heads=[4]), "exported")
        >>> sorted(os.listdir("exported"))
        ['config.json', 'model.safetensors']
    """
    folder = Path(folder)
    if folder.exists():
        raise InputError(f"the folder is {folder}, but that exists already; name one that does not.")
    text = json.dumps(description(network), indent=2)
    if own := re.search(r'"class_path": "__main__\.([^"]+)"', text):
        raise InputError(
            f"{own[1]} is defined in the script or notebook that runs, where no other will find it; move it to a file "
            "of its own and import it from there."
        )
    check_remade(network)
    folder.mkdir(parents=True)
    save_model(network, str(folder / WEIGHTS))
    (folder / CONFIG).write_text(text + "\n")  # last, so that where it is, all is


def load_network(folder: str | Path) -> InContextNetwork:
    """The network that ``save_network`` wrote, on the CPU, in evaluation mode; no random number is drawn.

    Raises:
        InputError: for what is no such folder, or of a class that is not here.

    Example:
        >>> from lightning_icl import Transformer, load_network, save_network
        >>> save_network(Transformer(n_dims=3, d_model=16, heads=[4]), "one_layer")
        >>> load_network("one_layer").heads
        [4]
    """
    config, weights = Path(folder, CONFIG), Path(folder, WEIGHTS)
    for path in (config, weights):
        if not path.is_file():
            raise InputError(f"the folder is {folder}, but there is no {path.name} in it, as save_network writes it.")
    try:
        with seeded(0):  # its weights are drawn before they are loaded
            network = described(json.loads(config.read_text()))
        saved = load_file(weights)
        for name, weight in network.state_dict(keep_vars=True).items():
            weight.data = weight.data.to(saved.get(name, weight).dtype)  # that of the file, such as float64
        load_model(network, weights)
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # JSON's errors are ValueErrors
        raise InputError(f"{config} is not the config of a network: {_in_a_line(error)}.") from error
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{weights} has not the weights of the network in {CONFIG}: {_in_a_line(error)}.") from error
    return network.eval()


def _in_a_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split()).rstrip(".")
