"""The papers' claims as experiments: what a definition under `evidence/` needs, and the harness that runs it."""

from ..report.evidence_page import Curve, Forest, Plot, Table, Verdict
from .claim import Claim, Settings, claim_names, load_claim
from .context import Context
from .plan import Evidence, Plan
from .results import Finished, Results, Unit

__all__ = [
    "Claim",
    "Context",
    "Curve",
    "Evidence",
    "Finished",
    "Forest",
    "Plan",
    "Plot",
    "Results",
    "Settings",
    "Table",
    "Unit",
    "Verdict",
    "claim_names",
    "load_claim",
]
