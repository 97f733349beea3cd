"""What is asked of an adapted base: noise levels, where rows come from, their losses and what is minimised."""

from .denoising import Denoising, NoiseSchedule
from .masked import Masked
from .objective import Batch, Draw, Model, Objective
from .prior_preservation import PriorPreservation

__all__ = ["Batch", "Denoising", "Draw", "Masked", "Model", "NoiseSchedule", "Objective", "PriorPreservation"]
