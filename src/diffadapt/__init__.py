"""Adapts diffusion models: what may change, what is asked of it, what comes in, and in what order.

The public names are loaded when first used, so that `import diffadapt` and `diffadapt --help` are instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .threads import bound_spinning

if TYPE_CHECKING:
    from .adapters import (
        IA3,
        OFT,
        Attachment,
        CLoRA,
        DiffFit,
        DoRA,
        GainedLoRA,
        Hint,
        LoRA,
        Perfusion,
        PromptPool,
        Selective,
        StyleInject,
        Token,
        attach,
        load_adapter,
    )
    from .adapters.control_net import ControlNet
    from .bases import Base, Classifier, Network, load_base, load_classifier
    from .data.captioned import load_captioned
    from .data.class_folders import load_classes
    from .data.class_tasks import split_classes
    from .data.concept import Concept, load_concept
    from .data.control_pairs import ControlPairs, load_control_pairs
    from .data.joined import join_concepts
    from .data.sequence import load_sequence
    from .data.styles import Styles, load_styles
    from .errors import Failed, Refused
    from .evaluation.evaluate import evaluate
    from .evaluation.evaluate_control import evaluate_control
    from .evaluation.evaluate_style import evaluate_style
    from .interchange import export_adapter, import_adapter
    from .recipes.classify import ClassifyConfig, train_classify
    from .recipes.control import ControlConfig, train_control
    from .recipes.distill import DistillConfig, train_distill
    from .recipes.sequence import SequenceConfig, train_sequence
    from .recipes.style import StyleConfig, train_style
    from .recipes.subject import SubjectConfig, train_subject
    from .report import compare
    from .sampling.sample import sample
    from .training.run import Run

_HOME = {
    "Attachment": "adapters",
    "Base": "bases",
    "CLoRA": "adapters",
    "Classifier": "bases",
    "ClassifyConfig": "recipes.classify",
    "DiffFit": "adapters",
    "Concept": "data.concept",
    "ControlConfig": "recipes.control",
    "ControlNet": "adapters.control_net",
    "ControlPairs": "data.control_pairs",
    "DistillConfig": "recipes.distill",
    "DoRA": "adapters",
    "Failed": "errors",
    "GainedLoRA": "adapters",
    "Hint": "adapters",
    "IA3": "adapters",
    "LoRA": "adapters",
    "OFT": "adapters",
    "Network": "bases",
    "Perfusion": "adapters",
    "PromptPool": "adapters",
    "Refused": "errors",
    "Run": "training.run",
    "Selective": "adapters",
    "SequenceConfig": "recipes.sequence",
    "StyleConfig": "recipes.style",
    "StyleInject": "adapters",
    "Styles": "data.styles",
    "SubjectConfig": "recipes.subject",
    "Token": "adapters",
    "attach": "adapters",
    "compare": "report",
    "evaluate": "evaluation.evaluate",
    "evaluate_control": "evaluation.evaluate_control",
    "evaluate_style": "evaluation.evaluate_style",
    "export_adapter": "interchange",
    "import_adapter": "interchange",
    "join_concepts": "data.joined",
    "load_adapter": "adapters",
    "load_base": "bases",
    "load_captioned": "data.captioned",
    "load_classes": "data.class_folders",
    "load_classifier": "bases",
    "load_concept": "data.concept",
    "load_control_pairs": "data.control_pairs",
    "load_sequence": "data.sequence",
    "load_styles": "data.styles",
    "sample": "sampling.sample",
    "split_classes": "data.class_tasks",
    "train_classify": "recipes.classify",
    "train_control": "recipes.control",
    "train_distill": "recipes.distill",
    "train_sequence": "recipes.sequence",
    "train_style": "recipes.style",
    "train_subject": "recipes.subject",
}

__all__ = [
    "Attachment",
    "Base",
    "CLoRA",
    "Classifier",
    "ClassifyConfig",
    "DiffFit",
    "Concept",
    "ControlConfig",
    "ControlNet",
    "ControlPairs",
    "DistillConfig",
    "DoRA",
    "Failed",
    "GainedLoRA",
    "Hint",
    "IA3",
    "LoRA",
    "OFT",
    "Network",
    "Perfusion",
    "PromptPool",
    "Refused",
    "Run",
    "Selective",
    "SequenceConfig",
    "StyleConfig",
    "StyleInject",
    "Styles",
    "SubjectConfig",
    "Token",
    "attach",
    "compare",
    "evaluate",
    "evaluate_control",
    "evaluate_style",
    "export_adapter",
    "import_adapter",
    "join_concepts",
    "load_adapter",
    "load_base",
    "load_captioned",
    "load_classes",
    "load_classifier",
    "load_concept",
    "load_control_pairs",
    "load_sequence",
    "load_styles",
    "sample",
    "split_classes",
    "train_classify",
    "train_control",
    "train_distill",
    "train_sequence",
    "train_style",
    "train_subject",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'diffadapt' has no attribute {name!r}")
    bound_spinning()  # before torch is imported
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
