"""The settings of recipes that can keep what the base knows: `train.objective` and the table [train.memory]."""

from dataclasses import dataclass

from ..config import option
from ..objectives.diff_tuning import ESTIMATORS, MEMORY_CONDITIONS, PRESETS, DiffTuning, preset
from ..objectives.psi import FAMILIES
from .loop_config import LoopConfig


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The table [train.memory]: how the base's knowledge is kept where `objective` is not standard.

    Unset options of the mixture are those of the objective's preset.
    """

    latents: int = option(2000, "latents sampled once from the untouched base", low=1)
    folder: str = option("", "of the latents; empty means memory_banks beside the run's folder", path=True)
    prompts: tuple[str, ...] = option((), "what the base is asked for; empty means its world, or general prompts")
    steps: int = option(0, "sampling steps of the latents; 0 means the base's default", low=0)
    guidance: float | None = option(None, "guidance of the latents; unset means the base's default", low=0)
    condition: str | None = option(
        None,
        "what memory is conditioned on: nothing, one prompt of no content, or the prompt that made it",
        choices=MEMORY_CONDITIONS,
    )
    estimator: str | None = option(None, "how target and memory are mixed", choices=ESTIMATORS)
    psi: str | None = option(None, "family of the share that is re-learned at a noise level", choices=FAMILIES)
    tau: float | None = option(None, "exponent of psi = power", low=0)
    step_at: float | None = option(None, "noise-level quantile of psi = step", low=0, high=1)
    psi_table: tuple[float, ...] = option((), "values of psi = table, equally spaced over noise levels", low=0, high=1)
    weight: float | None = option(None, "factor of the memory's loss", low=0)
    share: float | None = option(None, "share of memory rows where the estimator fixes it", low=0, high=1)

    def mixture(self, objective: str) -> DiffTuning:
        """The settings of an objective's preset with what is set here.

        Raises:
            Refused: there is no such objective.
        """
        named = {
            "memory_condition": self.condition, "estimator": self.estimator, "psi": self.psi, "tau": self.tau,
            "step_at": self.step_at, "psi_table": self.psi_table or None, "memory_weight": self.weight,
            "memory_share": self.share,
        }  # fmt: skip
        return preset(objective, **{name: value for name, value in named.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class RetentionConfig(LoopConfig):
    """The loop's settings, with Diff-Tuning's."""

    objective: str = option(
        "standard", "standard, or how the base's knowledge is kept: Diff-Tuning and its variants", choices=PRESETS
    )
    memory: MemoryConfig = MemoryConfig()
