"""Run folders in, one self-contained HTML page out."""

from .comparison import compare
from .run_report import write_report

__all__ = ["compare", "write_report"]
