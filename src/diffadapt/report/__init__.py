"""Run folders in, one self-contained HTML page out."""

from .comparison import write_comparison
from .run_report import write_report

__all__ = ["write_comparison", "write_report"]
