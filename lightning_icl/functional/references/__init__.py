"""The reference estimators a model is compared with: each knows its settings, where they come from, and its name."""

from lightning_icl.functional.references.defaults import *
from lightning_icl.functional.references.iterative import *
from lightning_icl.functional.references.linear import *
from lightning_icl.functional.references.problems import *
from lightning_icl.functional.references.reference import *
