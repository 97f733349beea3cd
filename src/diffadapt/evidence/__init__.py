"""The papers' claims as experiments: what a definition under `evidence/` needs, and the harness that runs it."""

from ..report.evidence_page import Curve, Forest, Plot, Table, Verdict
from ..report.finding import Comparison, Finding
from .calibration import Calibration, calibrate, simulated
from .claim import Claim, Design, Settings, claim_names, load_claim
from .contender import Contender, rates_to_try, tuned
from .context import Context
from .plan import Evidence, Plan
from .results import Finished, Results, Unit

__all__ = [
    "Calibration",
    "Claim",
    "Comparison",
    "Contender",
    "Context",
    "Curve",
    "Design",
    "Evidence",
    "Finding",
    "Finished",
    "Forest",
    "Plan",
    "Plot",
    "Results",
    "Settings",
    "Table",
    "Unit",
    "Verdict",
    "calibrate",
    "claim_names",
    "load_claim",
    "rates_to_try",
    "simulated",
    "tuned",
]
