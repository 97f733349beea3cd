"""Tests what the papers claim: each claim is an experiment under evidence/, in a clone of the repository.

Results are JSON files in evidence/results, which are added and never edited: what they hold is not run again, so that
a fresh clone goes on from what is committed. Interrupt at any time; the same command goes on.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Failed, Refused
from ..files import at_home
from .arguments import add_base, load

if TYPE_CHECKING:
    from ..bases import Base
    from ..evidence import Evidence

BUDGET_HOURS = 25  # of one core, for a round of all papers
CALIBRATION_PAGE = """\
# Null and oracle of every definition

Made by `diffadapt evidence calibrate`, seed 0. In a **null** all contenders are one, each with another seed, on scores
made up with the scatter that the first round had, or that the design assumes: in 90 % of the experiments or more no
comparison may come out better or worse (30 experiments, up to 500 where those are not all quiet). In the **oracle**
claim and goal hold: both verdicts must say so. A definition that fails either is not run. What the null cannot show:
that real scores scatter as it assumes.

| claim | null quiet | oracle: the paper's claim, our goal |
|---|---|---|"""
SUMMARY = "run the experiments behind the papers' claims"
EXAMPLES = """\
  diffadapt evidence list
  diffadapt evidence run OFT-1
  diffadapt evidence run OFT-2 OFT-3 --data DATA --workers 2 --dry-run
  diffadapt evidence run all --data DATA --limit-minutes 60
  diffadapt evidence calibrate
  diffadapt evidence report
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the claims, and how much of each is done")
    running = actions.add_parser("run", help="run what no result file holds yet")
    running.add_argument("claims", nargs="+", metavar="CLAIM", help="such as OFT-2; all for every one")
    running.add_argument("--data", metavar="DATA", help="folder of the pictures that some claims need")
    running.add_argument("--workers", type=int, default=1, metavar="N", help="processes of one thread each (default 1)")
    running.add_argument("--out", default="runs/evidence", metavar="DIR", help="for trainings (default: runs/evidence)")
    running.add_argument("--limit-minutes", type=float, metavar="M", help="start nothing new after M minutes")
    running.add_argument("--dry-run", action="store_true", help="say what would be run, and stop")
    calibrating = actions.add_parser(
        "calibrate", help="put every definition to its null and oracle; a page in Markdown"
    )
    calibrating.add_argument("claims", nargs="*", metavar="CLAIM", help="such as OFT-2; default: every one")
    report = actions.add_parser("report", help="judge the results; write report.html and report.md beside them")
    for each in (listing, running, calibrating, report):
        add_base(each)
        each.add_argument("--seeds", default="0,1,2", metavar="N,N", help="of the trainings (default 0,1,2)")
        each.add_argument("--folder", default="evidence", metavar="DIR", help="of the definitions (default: evidence)")
        each.add_argument("--results", metavar="DIR", help="of the result files (default: results in the folder)")
        each.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, which inherit it
    from ..evidence import claim_names, load_claim

    folder = at_home(arguments.folder)
    claims = claim_names(folder)
    if arguments.action == "calibrate":
        return calibrate_claims(folder, arguments.claims or claims)
    if arguments.action == "run" and "all" not in arguments.claims:
        claims = [*dict.fromkeys(arguments.claims)]
    for name in claims:
        load_claim(folder, name)  # one that cannot be loaded is refused before hours of work
    base = load(arguments)
    evidence = open_evidence(folder, base, arguments)
    return {"list": list_claims, "run": run_claims, "report": report}[arguments.action](evidence, claims, arguments)


def open_evidence(folder: Path, base: "Base", arguments: argparse.Namespace) -> "Evidence":
    """The evidence on a base, with --seeds and --results read.

    Raises:
        Refused: the seeds are not whole numbers.
    """
    from ..evidence import Evidence, Settings

    try:
        seeds = tuple(dict.fromkeys(int(text) for text in arguments.seeds.split(",")))
    except ValueError:
        raise Refused(f"--seeds: expected whole numbers, such as 0,1,2; got {arguments.seeds!r}") from None
    name = Path(base.name).name if at_home(base.name).exists() else base.name  # no paths in results
    results = at_home(arguments.results) if arguments.results else folder / "results"
    return Evidence(folder, results, base.fingerprint, Settings(seeds=seeds, base=name))


def list_claims(evidence: "Evidence", claims: Sequence[str], arguments: argparse.Namespace) -> int:
    """Prints a line for each claim: what all of it costs, what is done, and what does not count."""
    from ..evidence.budget import budget_of
    from ..evidence.report import left_out, state

    total = 0.0
    print(f"{'':8}{'units':>6}{'core-hours':>12}{'half width':>12}  ")
    for name in claims:
        budget = budget_of(evidence, name)
        total += budget.hours
        print(f"{name:8}{budget.units:6}{budget.hours:12.2f}{budget.width:>12}  {state(evidence.plan(name))}")
        print(f"{'':40}{budget.title}")
        if budget.basis:
            print(f"{'':40}{budget.basis}")
        for sentence in left_out(evidence.stored(name)):
            print(f"{'':40}{sentence}")
    print(f"{'all':8}{'':6}{total:12.2f}{'':14}of {BUDGET_HOURS} that a round may take")
    if total > BUDGET_HOURS:
        print(f"{total - BUDGET_HOURS:.1f} core-hours too many: run fewer claims, or cut subjects or contenders")
    return 0


def calibrate_claims(folder: Path, claims: Sequence[str]) -> int:
    """Prints docs/evidence/calibration.md: how each definition stands its null and its oracle.

    Raises:
        Failed: a definition fails one of the two.
    """
    from ..evidence.calibration import calibrate

    print(CALIBRATION_PAGE)
    failed = []
    for name in claims:
        found = calibrate(folder, name)
        oracle = f"{found.oracle.paper.status}, {found.oracle.goal.status}"
        print(f"| {name} | {found.quiet:.0%} of {found.experiments} | {oracle} |", flush=True)
        failed += [] if found.passed else [name]
    if failed:
        raise Failed(f"definitions that cannot decide: {', '.join(failed)}; they are not run")
    return 0


def run_claims(evidence: "Evidence", claims: Sequence[str], arguments: argparse.Namespace) -> int:
    """Runs claims one after the other; with --dry-run only says what is missing."""
    from ..evidence.calibration import refuse_uncalibrated
    from ..evidence.plan import seconds_left
    from ..evidence.report import state
    from ..evidence.runner import estimate, in_words, run_claim
    from ..evidence.worker import Job

    failed = 0
    for name in claims:
        if arguments.dry_run:
            plan = evidence.plan(name)
            rest = f": {estimate(seconds_left(plan.pending, plan.results, arguments.workers))}" if plan.pending else ""
            print(f"{name}: {state(plan)}{rest}")
            for unit in plan.pending:
                print(f"  {in_words(unit)}")
            continue
        refuse_uncalibrated(evidence.folder, name, evidence.settings)
        job = Job(
            claim=name, folder=evidence.folder, work=at_home(arguments.out), pictures=evidence.pictures(name),
            data=at_home(arguments.data) if arguments.data else None,
            base={"name": arguments.base, "device": arguments.device, "dtype": arguments.dtype,
                  "config": arguments.base_config, "prediction_type": arguments.prediction_type},
        )  # fmt: skip
        failed += run_claim(
            evidence, job, facts=facts(name, evidence, arguments), workers=arguments.workers,
            minutes=arguments.limit_minutes,
        )  # fmt: skip
    if failed:
        raise Failed(f"units that failed: {failed}; their result files say why, and the same command tries them again")
    return 0


def facts(claim: str, evidence: "Evidence", arguments: argparse.Namespace) -> dict[str, Any]:
    """The head of a result file: what made it, without paths."""
    from ..evidence import load_claim
    from ..evidence.results import NO_BASE, commit_of
    from ..training.run import made_by

    commit, changed = commit_of(evidence.folder)
    seeds, definition = evidence.settings.seeds, load_claim(evidence.folder, claim)
    on = {"name": evidence.settings.base, "fingerprint": evidence.fingerprint}
    command = f"diffadapt evidence run {claim} --base {evidence.settings.base} --seeds {','.join(map(str, seeds))}"
    return {
        "claim": claim,
        "base": on if definition.needs_base else {"name": NO_BASE, "fingerprint": NO_BASE},
        "measures": definition.measures,
        "seeds": list(seeds),
        "commit": commit,
        "uncommitted_changes": changed,
        **made_by(),
        "command": command + f" --workers {arguments.workers}" + (" --data DATA" if arguments.data else ""),
    }


def report(evidence: "Evidence", claims: Sequence[str], arguments: argparse.Namespace) -> int:
    """Writes the report and prints the verdicts."""
    from ..evidence.report import write_report

    page, chapters = write_report(evidence, claims)
    for each in chapters:
        paper, goal = each.verdict.paper, each.verdict.goal
        print(f"{each.id:8}{paper.status:16}{'goal ' + goal.status:16}{paper.sentence}")
    print(page)
    return 0
