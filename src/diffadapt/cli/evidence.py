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
from .arguments import add_base, load

if TYPE_CHECKING:
    from ..bases import Base
    from ..evidence import Evidence

SUMMARY = "run the experiments behind the papers' claims"
EXAMPLES = """\
  diffadapt evidence list
  diffadapt evidence run OFT-1
  diffadapt evidence run OFT-2 OFT-3 --data DATA --workers 2 --dry-run
  diffadapt evidence run all --data DATA --limit-minutes 60
  diffadapt evidence report
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    each = actions.add_parser(
        "list", help="the claims and how far each is", description="The claims and how far each is."
    )
    _add_shared(each)
    each = actions.add_parser("run", help="run what is missing", description="Runs what no result file holds yet.")
    each.add_argument("claims", nargs="+", metavar="CLAIM", help="such as OFT-2; all for every one")
    _add_shared(each)
    each.add_argument("--data", metavar="DATA", help="folder of the pictures that some claims need")
    each.add_argument("--workers", type=int, default=1, metavar="N", help="processes of one thread each (default 1)")
    each.add_argument(
        "--out", default="runs/evidence", metavar="DIR", help="where trainings are kept (default: runs/evidence)"
    )
    each.add_argument("--limit-minutes", type=float, metavar="M", help="start nothing new after M minutes")
    each.add_argument("--dry-run", action="store_true", help="say what would be run and stop")
    each = actions.add_parser("report", help="write the report page", description="Writes the report of all claims.")
    _add_shared(each)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    add_base(parser)
    parser.add_argument("--seeds", default="0,1,2", metavar="N,N", help="of the trainings (default 0,1,2)")
    parser.add_argument("--folder", default="evidence", metavar="DIR", help="with the definitions (default: evidence)")
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, which inherit it
    from ..evidence import claim_names, load_claim

    folder = Path(arguments.folder).expanduser()
    known = claim_names(folder)
    chosen = known if arguments.action != "run" or "all" in arguments.claims else list(dict.fromkeys(arguments.claims))
    for name in chosen:
        load_claim(folder, name)  # one that cannot be loaded is refused before hours of work
    base = load(arguments)
    evidence = open_evidence(folder, base, arguments.seeds)
    if arguments.action == "run":
        return run_claims(evidence, base, chosen, arguments)
    if arguments.action == "report":
        raise Refused("the report is not there yet")
    for name in chosen:
        plan, claim = evidence.plan(name), load_claim(folder, name)
        print(f"{name:8}{len(plan.results):4} finished {len(plan.pending):4} to do  {claim.title}")
    return 0


def open_evidence(folder: Path, base: "Base", seeds: str) -> "Evidence":
    """The evidence on a base, with --seeds read.

    Raises:
        Refused: the seeds are not whole numbers.
    """
    from ..evidence import Evidence, Settings

    try:
        numbers = tuple(dict.fromkeys(int(text) for text in seeds.split(",")))
    except ValueError:
        raise Refused(f"--seeds: expected whole numbers, such as 0,1,2; got {seeds!r}") from None
    return Evidence(folder, base.fingerprint, Settings(seeds=numbers, base=public_name(base)))


def public_name(base: "Base") -> str:
    """A base's name without the path to it."""
    return Path(base.name).name if Path(base.name).expanduser().exists() else base.name


def run_claims(evidence: "Evidence", base: "Base", claims: Sequence[str], arguments: argparse.Namespace) -> int:
    """Runs claims one after the other; with --dry-run only says what is missing."""
    from ..evidence.plan import seconds_left
    from ..evidence.results import commit_of
    from ..evidence.runner import in_words, run_claim
    from ..evidence.worker import Job
    from ..recipes.run import made_by
    from ..report.page import duration

    failed = 0
    for name in claims:
        plan = evidence.plan(name)
        rest = seconds_left(plan.pending, plan.results, arguments.workers)
        if arguments.dry_run:
            print(f"{name}: {len(plan.results)} units finished, {len(plan.pending)} to do in this stage, "
                  + (f"about {duration(rest)}" if rest else "nothing measured yet" if plan.pending else "complete"))  # fmt: skip
            for unit in plan.pending:
                print(f"  {in_words(unit)}")
            continue
        job = Job(
            claim=name, folder=evidence.folder, work=Path(arguments.out).expanduser(),
            data=Path(arguments.data).expanduser() if arguments.data else None,
            base={"name": arguments.base, "device": arguments.device, "dtype": arguments.dtype,
                  "config": arguments.base_config, "prediction_type": arguments.prediction_type},
        )  # fmt: skip
        commit, changed = commit_of(evidence.folder)
        facts: dict[str, Any] = {
            "claim": name,
            "base": {"name": evidence.settings.base, "fingerprint": evidence.fingerprint},
            "seeds": list(evidence.settings.seeds),
            "commit": commit,
            "uncommitted_changes": changed,
            **made_by(),
            "workers": arguments.workers,
            "command": command(name, evidence, arguments),
        }
        failed += run_claim(evidence, job, facts=facts, workers=arguments.workers, minutes=arguments.limit_minutes)
    if failed:
        raise Failed(f"{failed} units failed; the result files say why, and the same command tries them again")
    return 0


def command(claim: str, evidence: "Evidence", arguments: argparse.Namespace) -> str:
    """The command that gave a result file, without paths."""
    seeds = ",".join(map(str, evidence.settings.seeds))
    options = f"--base {evidence.settings.base} --seeds {seeds} --workers {arguments.workers}"
    return f"diffadapt evidence run {claim} {options}" + (" --data DATA" if arguments.data else "")
