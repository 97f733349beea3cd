"""Bases: loading, roles and encode / denoise / decode of one model family per file."""

from .base import Base
from .load import load_base
from .network import Network

__all__ = ["Base", "Network", "load_base"]
