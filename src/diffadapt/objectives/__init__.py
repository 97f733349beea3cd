"""Training objectives: noise levels, the sources of rows, their losses and the scalar that is minimised."""

from ..noise_schedule import NoiseSchedule
from .cross_entropy import CrossEntropy
from .denoising import Denoising
from .diff_tuning import PRESETS, DiffTuning, MatchingTheBase, MixedWithMemory, preset
from .distillation import Distillation, Teacher
from .masked import Masked
from .objective import Batch, Draw, Model, Objective
from .prior_preservation import PriorPreservation

__all__ = [
    "PRESETS",
    "Batch",
    "CrossEntropy",
    "Denoising",
    "DiffTuning",
    "Distillation",
    "Draw",
    "Masked",
    "MatchingTheBase",
    "MixedWithMemory",
    "Model",
    "NoiseSchedule",
    "Objective",
    "PriorPreservation",
    "Teacher",
    "preset",
]
