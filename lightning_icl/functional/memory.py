"""What would not fit into memory, told before it is asked for."""

import math
import os
from importlib import import_module
from importlib.util import find_spec

import torch

from lightning_icl.functional.errors import InputError

GIB = 2**30


def check_memory(said: str, n_numbers: int, device: torch.device | str = "cpu") -> None:
    """Refuse what would need more numbers in float32 than the device has memory for: once, which is the least."""
    needed, there = 4 * n_numbers, memory(torch.device(device))
    if needed > there:
        raise InputError(f"{said} would take {needed / GIB:,.0f} GiB of memory, but there are {there / GIB:,.0f}.")


def memory(device: torch.device) -> float:
    """The bytes of a device, and of the CPU's those that this process may have (``ulimit -v``)."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if find_spec("resource") is None:  # Windows tells neither
        return math.inf
    resource = import_module("resource")
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return float(there if allowed == resource.RLIM_INFINITY else min(there, allowed))
