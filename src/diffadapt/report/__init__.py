"""A run folder in, one self-contained HTML page out."""

from .run_report import write_report

__all__ = ["write_report"]
