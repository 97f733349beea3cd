"""Adapters in the formats of other tools: written by `export_adapter`, read by `import_adapter`."""

from .exporting import FORMATS, export_adapter
from .importing import import_adapter
from .words import word_files, write_words

__all__ = ["FORMATS", "export_adapter", "import_adapter", "word_files", "write_words"]
