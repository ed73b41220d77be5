"""Checkpoints: written whole or not at all, read where they are whole and fit their model, the newest one found."""

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import escape
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.serialization import get_unsafe_globals_in_checkpoint

from lightning_icl.functional.errors import InputError
from lightning_icl.network import current_names, in_full, outline, path_of
from lightning_icl.transformer import Transformer, head_sizes

TRAINING_OPTIONS = {"optimizer", "learning_rate", "weight_decay", "warmup_steps", "schedule", "target", "init"}
# What an option is where the checkpoint, which may be older than the option, does not say.
DEFAULTS = {name: p.default for name, p in signature(Transformer).parameters.items() if p.default is not p.empty}
OF_TRAINING = {"optimizer_states", "lr_schedulers", "loops"}  # which save_weights_only leaves out
PREFIX = "network."  # of the weights
PARTIAL = "{name}.{process}.partial"  # of the target and the process: runs may share a folder
TRUST = "reading it runs what code the file brings, so do it where you trust its maker only"


class CheckpointFiles(TorchCheckpointIO):
    """Lightning's checkpoints, on a local disk written beside their place and moved there when they are on the disk.

    Lightning itself writes them to TMPDIR; from another filesystem the move is a copy, which a kill cuts in two. It
    reads a file of ``http`` by its last name from a cache, and runs what code it brings.
    """

    warned = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        files, place = url_to_fs(str(path))
        if not isinstance(files, LocalFileSystem) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        write(checkpoint, Path(place))
        if not self.warned and (held := _held(place)):
            self.warned = True
            rank_zero_warn(
                f"{whose(checkpoint)} holds {', '.join(held)}: {path}, and each checkpoint from here on, is "
                "read with --weights_only false alone. Numbers, strings, lists, dicts and tensors have no need of it."
            )

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None) -> Any:
        return torch.load(_opened(source(path)), map_location, weights_only=weights_only is not False)


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a local file that after a kill at any moment is the whole old or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(PARTIAL.format(name=path.name, process=os.getpid()))
    for left in path.parent.glob(PARTIAL.format(name=escape(path.name), process="*")):
        if _is_gone(left.name.split(".")[-2]):  # killed while it wrote
            left.unlink(missing_ok=True)
    try:
        torch.save(checkpoint, made := io.BytesIO())  # into a file, a full disk would be an error of torch's own
        with partial.open("wb") as file:
            file.write(made.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # which the error of a full disk does not say
        raise
    with suppress(OSError):  # not every filesystem has this for folders
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # the new name, too
        os.close(folder)


def _is_gone(process: str) -> bool:
    try:
        os.getpgid(int(process))
    except ProcessLookupError:
        return True
    except (ValueError, AttributeError):  # another's file; Windows does not say
        pass
    return False


def whose(checkpoint: Mapping[str, Any]) -> str:
    """Which callbacks' states hold what is not plain."""

    def is_plain(state: Any) -> bool:
        torch.save(state, made := io.BytesIO())
        return not _held(made.getvalue())

    names = [name for name, state in checkpoint.get("callbacks", {}).items() if not is_plain(state)]
    return f"the state of the callback {' and '.join(names)}" if names else "the checkpoint"


def source(path: str | Path, said: str = "ckpt_path") -> str | bytes:
    """The path of a local file, or the contents of one that fsspec fetches, such as s3://."""
    if "://" not in str(path):
        if not Path(path).is_file():
            raise InputError(f"{said} is {path}, but there is no such file.")
        return str(path)
    try:
        files, place = url_to_fs(str(path))
        return place if isinstance(files, LocalFileSystem) else files.cat_file(place)
    except FileNotFoundError as error:
        raise InputError(f"{said} is {path}, but there is no such file.") from error
    except Exception as error:  # each kind of storage has errors of its own
        raise InputError(f"{said} is {path}, but it cannot be fetched: {error}") from error


def read(path: str | Path, said: str = "ckpt_path", weights_only: bool = True) -> dict[str, Any]:
    """A checkpoint that is whole and a model's of ours, on the CPU.

    Raises InputError, one sentence that begins with ``said``, for any other. Code that the file brings is run only
    where ``weights_only`` is False.
    """
    file = source(path, said)
    if not is_whole(file):
        raise InputError(f"{said} is {path}, but that file is not a readable checkpoint: cut off, damaged or none.")
    try:
        checkpoint = _unpickled(file, weights_only)
    except Exception as error:  # whatever the bytes make of an unpickler
        held = ", ".join(_held(file)) if weights_only else ""
        why = f"which holds {held}: {TRUST}, by --weights_only false" if held else "but that file cannot be unpickled"
        raise InputError(f"{said} is {path}, {why}.") from error
    if not _is_ours(checkpoint):
        raise InputError(f"{said} is {path}, but that file is not a checkpoint of lightning_icl.")
    checkpoint["state_dict"] = current_names(checkpoint["state_dict"])
    if wrong := _wrong_weights(checkpoint["hyper_parameters"], checkpoint["state_dict"]):
        raise InputError(f"{said} is {path}, but {wrong}.")
    return checkpoint


def _is_ours(checkpoint: Any) -> bool:
    match checkpoint:
        case {"hyper_parameters": dict(), "state_dict": dict(), "global_step": int()}:
            return True
    return False


def is_whole(file: str | bytes) -> bool:
    """Whether a file is a zip archive, as checkpoints are, whose contents have the checksums they were written with."""
    try:
        with zipfile.ZipFile(_opened(file)) as archive:
            return archive.testzip() is None
    except PermissionError as error:
        raise InputError(f"the checkpoint {file!s} cannot be read: {error.strerror}.") from error
    except Exception:  # a byte that says how an entry is packed can make any error
        return False


def _opened(file: str | bytes) -> str | io.BytesIO:
    return file if isinstance(file, str) else io.BytesIO(file)


def _unpickled(file: str | bytes, weights_only: bool) -> Any:
    return torch.load(_opened(file), "cpu", weights_only=weights_only, mmap=isinstance(file, str))


def _held(file: str | bytes) -> Sequence[str]:
    """The classes and functions that a checkpoint names, besides those of plain values and tensors; runs nothing."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(_opened(file)))
    except Exception:
        return []


def network_of(model: Mapping[str, Any]) -> Any:
    """The network of a model's options as a description; its class alone where its arguments are not written down."""
    if network := model.get("network"):
        return network if isinstance(network, str) else {"init_args": {}} | dict(network)
    options = {name: model[name] for name in signature(Transformer).parameters if name in model}
    return {"class_path": path_of(Transformer), "init_args": options}


def _wrong_weights(options: Mapping[str, Any], weights: Mapping[str, Any]) -> str | None:
    """What the weights have that the model of these options has not, or the other way round."""
    try:
        model = outline(network_of(options)).state_dict(prefix=PREFIX)
    except (TypeError, ValueError, RuntimeError) as error:
        return f"its hyper_parameters are of no model: {' '.join(str(error).split()).rstrip('.')}"
    for name in [*model, *weights]:
        here, there = (getattr(of.get(name), "shape", None) for of in (model, weights))
        if here is None or there is None:
            return f"{name} {'is no weight of its model' if here is None else 'is missing in it'}"
        if here != there:
            return f"{name} has the shape {list(there)} in it, and {list(here)} in its model"
    return None


def newest(folder: str | Path, weights_only: bool = True, resuming: bool = False) -> str | Path | None:
    """The checkpoint of the most optimizer steps in a folder, of those that are whole; None where there is none at all.

    What training cannot go on from is passed over when ``resuming``. A folder of s3:// and the like is fetched. Raises
    InputError where there are files and none is whole: what they are is for the user to say.
    """
    if "://" not in str(folder):
        name = _newest(Path(folder), folder, weights_only, resuming)
        return Path(folder, name) if name else None
    with TemporaryDirectory() as copies:
        try:
            files, place = url_to_fs(str(folder))
            for path in files.find(place, maxdepth=1):
                if path.endswith(".ckpt"):
                    files.get_file(path, str(Path(copies, Path(path).name)))
        except Exception as error:  # each kind of storage has errors of its own
            raise InputError(f"the checkpoints in {folder} cannot be fetched: {error}") from error
        name = _newest(Path(copies), folder, weights_only, resuming)
        return f"{str(folder).rstrip('/')}/{name}" if name else None


def _newest(here: Path, folder: str | Path, weights_only: bool, resuming: bool) -> str | None:
    """The name of the newest of a folder's checkpoints, which lie here."""

    def known(path: Path) -> tuple[str, float]:
        """What speaks against a checkpoint, and its steps: what cannot be read may be the newest, and is told of."""
        try:
            checkpoint = _unpickled(str(path), weights_only)
        except Exception:
            return "", math.inf
        if not _is_ours(checkpoint):
            return "is no checkpoint of lightning_icl", math.inf
        return "has weights alone" * (resuming and not checkpoint.keys() >= OF_TRAINING), checkpoint["global_step"]

    faults = {path: known(path) for path in here.glob("*.ckpt")}
    paths = sorted(faults, key=lambda path: (faults[path][1], path.stat().st_mtime), reverse=True)
    # One with a fault only where all have one: then it is refused for what it is.
    found = next((path for path in sorted(paths, key=lambda path: faults[path][0] != "") if is_whole(str(path))), None)
    if paths and found is None:
        raise InputError(
            f"none of the checkpoints in {folder} is whole ({', '.join(path.name for path in paths)}); move them away "
            "to start anew."
        )
    if found is None:
        return None
    for path in paths[: paths.index(found)]:
        fault = faults[path][0] or "is cut off, damaged or no checkpoint"
        rank_zero_warn(f"{folder}/{path.name} {fault}; {found.name} is the newest that is whole.")
    return found.name


def check_checkpoint(
    path: str | Path | None, model: Mapping[str, Any], resuming: bool, weights_only: bool = True
) -> dict[str, Any] | None:
    """The checkpoint; refuses one that is none, or whose model is not the one the config asks for.

    Without this, Lightning lets the checkpoint's hyper-parameters silently win over YAML and flags. A resumed ``fit``
    must also agree on how it is trained, since the optimizer's state overrides such options; to evaluate, only the
    model must agree.
    """
    if path is None:
        return None
    checkpoint = read(path, weights_only=weights_only)
    check_options(path, checkpoint["hyper_parameters"], model, resuming)
    if resuming and not checkpoint.keys() >= OF_TRAINING:
        raise InputError(
            f"ckpt_path is {path}, which has weights alone, as save_weights_only writes it: it can be validated, but "
            "training cannot go on from it."
        )
    return checkpoint


def check_options(path: str | Path, saved: Mapping[str, Any], asked: Mapping[str, Any], resuming: bool) -> None:
    """Refuse a checkpoint's options that are not the config's."""
    saved, asked = ({"network": None} | (DEFAULTS if not of.get("network") else {}) | dict(of) for of in (saved, asked))
    for key in (key for key in asked if key in saved):
        if _plain(key, saved) != _plain(key, asked) and (resuming or key not in TRAINING_OPTIONS):
            raise InputError(
                f"the checkpoint {path} was trained with model.{key} = {saved[key]}, but the config asks for "
                f"{asked[key]}; use the config it was trained with, {_config_of(path)}."
            )


def run_of(ckpt_path: str | Path) -> Path:
    """RUN of RUN/checkpoints/NAME.ckpt, or the checkpoint's own folder where it has been moved."""
    folder = Path(ckpt_path).absolute().parent
    return folder.parent if folder.name == "checkpoints" else folder


def _config_of(path: str | Path) -> str:
    """Where the config of a checkpoint is, as far as that is known."""
    if "://" not in str(path) and (found := run_of(path) / "config.yaml").is_file():
        return f"--config {found}"
    return "config.yaml in its run's folder"


def _plain(key: str, options: Mapping[str, Any]) -> Any:
    """The option in its one form: a list for a tuple, since YAML knows no other, and each layer's size for head_dim."""
    if key == "network":
        return options[key] and in_full(options[key])
    if key == "head_dim":
        return head_sizes(options["d_model"], options["heads"], options["head_dim"])
    value = options[key]
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def step_of(checkpoint: Mapping[str, Any]) -> tuple[int, bool]:
    """The optimizer steps behind a checkpoint, and whether the validation of the last of them is behind it too.

    Where it is not, it may yet have been made (before the kill that the run goes on from), and will be made again.
    """
    step = checkpoint["global_step"]
    return step, checkpoint.get("lightning_icl", {}).get("validated_at", step) == step
