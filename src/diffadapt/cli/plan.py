"""Says what a training would do before it does it: what trains, the file's size, pictures, memory, disk, time.

It takes what `diffadapt train` takes. Time is measured on this machine, with one step and one picture; the rest is
counted. Nothing is written.
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
    from ..recipes.picture_count import in_words
    from ..recipes.plan import plan_subject
    from ..report.page import duration, file_size

    job = read_job(table)
    if job.top.recipe != "subject":
        raise Refused(f"plan knows the recipe subject, and this is {job.top.recipe}")
    concept = job.concept()
    base = job.load_base(arguments.device)
    plan = plan_subject(base, concept, method=job.method, config=job.train, timed=not arguments.no_time)
    roles = ", ".join(f"{role} ({count})" for role, count in plan.roles.items()) or "the new word alone"
    print(f"trains      {job.method.name} on {base.name}: {roles}")
    print(f"parameters  {plan.parameters:,}")
    print(f"file        {file_size(plan.adapter_bytes)}")
    print(f"pictures    {in_words(plan.pictures)}")
    if plan.memory_bytes:
        print(f"memory      {file_size(plan.memory_bytes)} at a step's peak, counted; a GPU's context comes on top")
    print(f"disk        about {file_size(plan.disk_bytes)}")
    if plan.seconds:
        parts = ", ".join(f"{duration(seconds)} of {phase}" for phase, seconds in plan.seconds.items())
        print(f"time        about {duration(sum(plan.seconds.values()))} on this machine: {parts}")
    return 0
