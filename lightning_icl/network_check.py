"""Whether a network is what it says, found by a trial of a few prompts."""

import torch

from lightning_icl.functional.prompts import Prompt
from lightning_icl.network import InContextNetwork, TransformerOutput


@torch.no_grad()
def check_network(network: InContextNetwork, prompt: Prompt) -> TransformerOutput:
    """What the network makes of the prompts."""
    training = network.training
    output = network.eval().on_prompt(prompt)
    network.train(training)
    return output
