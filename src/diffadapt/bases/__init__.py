"""Bases: loading, roles and encode / denoise / decode of one model family per file."""

from .base import Base
from .load import load_base

__all__ = ["Base", "load_base"]
