"""From result files to the report: each claim is judged by its own definition."""

from collections.abc import Sequence
from pathlib import Path

from ..report.evidence_page import Chapter, Verdict, write_evidence
from ..report.finding import Finding
from ..report.page import duration, number
from .claim import Claim, load_claim
from .plan import Evidence, Plan
from .results import Stored
from .runner import in_words


def write_report(evidence: Evidence, claims: Sequence[str]) -> tuple[Path, list[Chapter]]:
    """Writes `report.html` and `report.md` beside the results.

    Returns:
        the HTML page, and the chapters in it
    """
    chapters = [chapter(evidence, claim) for claim in claims]
    base = f"{evidence.settings.base} ({evidence.fingerprint})"
    return write_evidence(evidence.results.parent, chapters, base=base), chapters


def chapter(evidence: Evidence, claim: str) -> Chapter:
    """One claim with its verdict; undecided until all its units are finished."""
    definition, stored = load_claim(evidence.folder, claim), evidence.stored(claim)
    plan = evidence.plan(claim)
    if plan.complete:
        verdict = definition.judge(plan.results)
    else:
        open_ = Finding(status="undecided", sentence=f"It {state(plan)}.")
        verdict = Verdict(paper=open_, goal=open_)
    facts = {
        "seeds": ", ".join(map(str, evidence.settings.seeds)),
        "units": f"{len(plan.results):,}" if len(plan.results) else "",
        "computing time": duration(sum(each.seconds for each in plan.results)) if len(plan.results) else "",
        "reads": ", ".join(definition.uses),
        "commit": " and ".join(commits(stored)),
        **{name: " and ".join(stored.facts(name)) for name in ("hardware", "torch", "diffusers")},
    }
    return Chapter(
        id=claim,
        title=definition.title,
        paper=definition.paper,
        goal=definition.goal,
        verdict=verdict,
        pictures=evidence.pictures(claim),
        facts=[(name, value) for name, value in facts.items() if value],
        commands=commands(evidence, [*definition.uses, claim]),
        design=designed(definition),
        failed=[(in_words(unit), error) for unit, error in stored.failed.values()],
        left_out=[*left_out(stored), *([definition.earlier] if definition.earlier else [])],
    )


def designed(claim: Claim) -> list[tuple[str, str]]:
    """The design that was fixed before anything was run, as names and values."""
    design = claim.design
    if design.half_width is None:
        return [("resampled", design.resampled), ("margin", design.margin)]
    width = f"{number(design.half_width)} ({design.pilot})"
    return [("resampled", design.resampled), ("margin", design.margin), ("half width expected", width)]


def left_out(stored: Stored) -> list[str]:
    """The results that do not count, one sentence each."""
    return [f"{count} units were run {why}: not counted here." for why, count in stored.elsewhere.items()]


def state(plan: Plan) -> str:
    """How far a claim is, in a few words."""
    if plan.waits_for:
        return f"waits for {' and '.join(plan.waits_for)}"
    to_do = f" and {len(plan.pending)} of this stage to do" if plan.pending else ""
    return f"has {len(plan.results)} units finished{to_do}"


def commands(evidence: Evidence, claims: Sequence[str]) -> str:
    """How to run claims once more from nothing, and to see what comes of it."""
    seeds = ",".join(map(str, evidence.settings.seeds))
    options = f"--base {evidence.settings.base} --seeds {seeds} --results again/results"
    data = any("--data" in command for claim in claims for command in evidence.stored(claim).facts("command"))
    run = f"diffadapt evidence run {' '.join(claims)} {options} --out again/runs" + (" --data DATA" if data else "")
    return f"{run}\ndiffadapt evidence report {options}"


def commits(stored: Stored) -> list[str]:
    """The commits that made the results; of those with uncommitted changes it is said."""
    return list(
        dict.fromkeys(
            file["commit"] + (" with uncommitted changes" if file.get("uncommitted_changes") else "")
            for file in stored.files
        )
    )
