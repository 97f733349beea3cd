"""Bases: loading, roles and encode / denoise / decode of one model family per file."""

from ..network import Network
from .base import Base
from .load import load_base
from .vit import Classifier, load_classifier

__all__ = ["Base", "Classifier", "Network", "load_base", "load_classifier"]
