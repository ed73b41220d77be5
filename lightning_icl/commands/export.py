"""lightning-icl export: a trained network in files that open without Lightning."""

from lightning_icl.commands.output import new_folder
from lightning_icl.export import CONFIG, WEIGHTS, save_network
from lightning_icl.network import InContextNetwork
from lightning_icl.record.loading import loaded_module


def export(ckpt_path: str, output: str | None = None, weights_only: bool = True) -> None:
    """Write a trained network's weights (model.safetensors) and its class and arguments (config.json) to a new folder.

    From there it opens in three lines of plain torch, without Lightning; the command prints them.

    Args:
        ckpt_path: the checkpoint, such as RUN/checkpoints/last.ckpt.
        output: the new folder; exported, or exported_2 and so on, unless told.
        weights_only: false reads a checkpoint that brings code, and runs it.
    """
    network = loaded_module(ckpt_path, weights_only=weights_only).network
    folder = new_folder(output, "exported")
    save_network(network, folder)
    # Of the network and those in it.
    modules = {type(part).__module__ for part in network.modules() if isinstance(part, InContextNetwork)}
    files = ", ".join(sorted(module for module in modules if not module.startswith("lightning_icl.")))
    needs = f" (with the file of {files} on the path)" if files else ""
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{type(network).__name__} of {n_parameters:,} parameters: {folder / WEIGHTS} and {CONFIG}",
        f"it opens without Lightning{needs}; x is (batch, points, {network.n_dims}), y (batch, points):",
        "  from lightning_icl import Predictor, load_network",
        f'  network = load_network("{folder}")',
        "  predictions = Predictor(network)(x, y, x_query)",
        sep="\n",
    )
