"""What is asked of an adapted base: noise levels, where rows come from, their losses and what is minimised."""

from ..noise_schedule import NoiseSchedule
from .denoising import Denoising
from .masked import Masked
from .objective import Batch, Draw, Model, Objective
from .prior_preservation import PriorPreservation

__all__ = ["Batch", "Denoising", "Draw", "Masked", "Model", "NoiseSchedule", "Objective", "PriorPreservation"]
