"""Laws of regression problems, one file a family."""

from lightning_icl.functional.tasks.classification import LinearClassification as LinearClassification
from lightning_icl.functional.tasks.law import Law as Law
from lightning_icl.functional.tasks.linear import GroupSparseLinearRegression as GroupSparseLinearRegression
from lightning_icl.functional.tasks.linear import LinearRegression as LinearRegression
from lightning_icl.functional.tasks.linear import LinearTask as LinearTask
from lightning_icl.functional.tasks.linear import SparseLinearRegression as SparseLinearRegression
from lightning_icl.functional.tasks.mixture import Mixture as Mixture
from lightning_icl.functional.tasks.nonlinear import DecisionTree as DecisionTree
from lightning_icl.functional.tasks.nonlinear import HiddenRepresentation as HiddenRepresentation
from lightning_icl.functional.tasks.nonlinear import PolynomialRegression as PolynomialRegression
from lightning_icl.functional.tasks.nonlinear import QuadraticRegression as QuadraticRegression
from lightning_icl.functional.tasks.nonlinear import ReLUNetwork as ReLUNetwork
from lightning_icl.functional.tasks.pool import TaskPool as TaskPool
from lightning_icl.functional.tasks.sparse_recovery import SparseRecovery as SparseRecovery
from lightning_icl.functional.tasks.spectrum import Eigenvalues as Eigenvalues
from lightning_icl.functional.tasks.spectrum import Flat as Flat
from lightning_icl.functional.tasks.spectrum import PowerLaw as PowerLaw
from lightning_icl.functional.tasks.spectrum import Spectrum as Spectrum
from lightning_icl.functional.tasks.spectrum import Spiked as Spiked
from lightning_icl.functional.tasks.task import Task as Task
