"""Says what a training would do before it does it: what trains, the file's size, pictures, memory, disk, time.

It takes what `diffadapt train` takes. Time is measured on this machine, with one step and one picture; the rest is
counted. Nothing is written. Of recipes it knows `subject`; how many pictures the others draw depends on their data.
"""

import argparse

from ..errors import Refused
from .train import read_settings

SUMMARY = "say what a training would do, before it does it"
MANY = "settings"
EXAMPLES = """\
  diffadapt plan concept.folder=photos/biscuit concept.noun=cat
  diffadapt plan configs/embedded-subject-lora.toml concept.folder=photos/biscuit method.rank=16 --no-time
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("settings", nargs="*", metavar="CONFIG.toml | key=value", help="as for `train`")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one")
    parser.add_argument("--no-time", action="store_true", help="measure no step and no picture")


def run(arguments: argparse.Namespace) -> int:
    table = read_settings(arguments.settings)
    from ..recipes.job import read_job
    from ..recipes.plan import plan_subject
    from ..recipes.subject import refuse_what_does_not_fit
    from ..training.learner import refuse_the_impossible

    job = read_job(table)
    if job.top.recipe != "subject":
        raise Refused(
            f"plan knows the recipe subject, and this is {job.top.recipe}, whose data decide how much it draws; "
            "`diffadapt train --dry-run` prints its settings, and with train.steps=2 it shows memory and time"
        )
    concept = job.concept()
    base = job.load_base(arguments.device)
    refuse_the_impossible(base, job.train)
    refuse_what_does_not_fit(base, concept, job.method, job.train)
    plan = plan_subject(base, concept, method=job.method, config=job.train, timed=not arguments.no_time)
    for line in plan.lines():
        print(line)
    return 0
