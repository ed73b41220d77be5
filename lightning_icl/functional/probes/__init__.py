"""Closed-form linear probes: what a layer's state knows linearly, and how surely.

The samples are tokens, which come in prompts: tokens of one prompt share its examples and its weights, so the prompt is
the unit of every standard error.
"""

from lightning_icl.functional.probes.ridge import *
from lightning_icl.functional.probes.scores import *
from lightning_icl.functional.probes.targets import *
