"""The stages of a run, each declared once, and the run that they make up."""

from elfs_lib.stages.run import STAGES, Run

__all__ = ["STAGES", "Run"]
