"""What a run measured, where it lies, and how it is read again: rows with their context, in one file of lines."""

from lightning_icl.record.loading import LoadedRun, load_run
from lightning_icl.record.rows import Measurement, Row, frame, tag

__all__ = ["LoadedRun", "Measurement", "Row", "frame", "load_run", "tag"]
