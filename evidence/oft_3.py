"""OFT-3: OFT converges faster. Read off the runs of OFT-2, whose fidelity was scored on the way."""

from subjects import CONTENDERS, ON_THE_WAY_STEPS, STEPS, by_subject, mean

from diffadapt.evidence import Claim, Context, Curve, Finished, Plot, Results, Settings, Table, Unit, Verdict
from diffadapt.metrics import interval_of_nested_mean, interval_of_nested_ratio

NEVER = 2 * STEPS  # what a run counts that never gets there: a lower bound, favourable to it


def units(results: Results, settings: Settings) -> list[Unit]:
    return []


def run(unit: Unit, context: Context) -> dict:
    raise NotImplementedError("OFT-3 has no units of its own")


def reaches(each: Finished, level: float) -> float:
    """The first step at which fidelity is at least `level`, between two scored steps by a straight line."""
    before_step, before = 0, 0.0
    for step in ON_THE_WAY_STEPS:
        value = mean(each.scores["fidelity_at"][str(step)])
        if value >= level:
            share = 1.0 if value <= before else max(0.0, min(1.0, (level - before) / (value - before)))
            return before_step + share * (step - before_step)
        before_step, before = step, value
    return NEVER


def judge(results: Results) -> Verdict:
    tested = results.of("OFT-2").where(stage="test")
    levels = {
        (each.unit["subject"], each.unit["seed"]): mean(each.scores["fidelity_at"][str(STEPS)])
        for each in tested
        if each.unit["contender"] == "lora"
    }
    steps = {
        name: by_subject(tested, name, lambda each: reaches(each, levels[each.unit["subject"], each.unit["seed"]]))
        for name in ("oft", "lora")
    }
    never = int((steps["oft"] == NEVER).sum())
    ratio = interval_of_nested_ratio(steps["oft"], steps["lora"])
    status = "reproduced" if ratio.high <= 0.7 else "not reproduced" if ratio.low > 0.7 else "undecided"
    curves = []
    for name in ("oft", "lora", "dreambooth"):
        points = []
        for step in ON_THE_WAY_STEPS:
            values = by_subject(tested, name, lambda each, step=step: mean(each.scores["fidelity_at"][str(step)]))
            points.append((step, interval_of_nested_mean(values)))
        curves.append(Curve(name=CONTENDERS[name].title, points=points))
    rows = [[curve.name, *(interval for _, interval in curve.points)] for curve in curves]
    return Verdict(
        status=status,
        sentence=(
            "Steps to LoRA's final fidelity, OFT's over LoRA's: "
            f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]; "
            f"{never} of {steps['oft'].numel()} OFT runs never got there and count as {NEVER} steps."
        ),
        tables=[Table(title="Fidelity on the way", columns=["", *map(str, ON_THE_WAY_STEPS)], rows=rows)],
        plots=[
            Plot(
                title="Fidelity on the way", caption="Six pictures a run; mean over subjects and seeds",
                x_label="step", y_label="fidelity", curves=curves,
            )
        ],
    )  # fmt: skip


CLAIM = Claim(
    id="OFT-3",
    title="OFT converges faster than LoRA",
    paper="Section 4: at 400 iterations OFT holds the subject and LoRA does not; on landmarks LoRA needs 20 epochs for "
    "what OFT has after 8",
    goal="OFT takes at most 0.7 times the steps that LoRA, with as many parameters, takes to its final fidelity",
    units=units,
    run=run,
    judge=judge,
    uses=("OFT-2",),
)
