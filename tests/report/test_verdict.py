"""The verdict never says more than the interval allows."""

import pytest

from diffadapt.report.page import duration, file_size, listed, number, signed, spread
from diffadapt.report.verdict import read_figures, read_verdict


def verdict(**values: object) -> str:
    claims = read_verdict(read_figures({"values": values}), "the subject")
    return "; ".join(f"{claim.text}: {claim.evidence}" if claim.evidence else claim.text for claim in claims)


def entry(value: float, low: float | None, high: float | None, base: float | None, better: str = "higher") -> object:
    return {"value": value, "low": low, "high": high, "base": base, "better": better}


@pytest.mark.parametrize(
    "low, high, claim",
    [
        (0.6, 0.8, "It took on the subject; whether the prompts still hold was not measured"),
        (0.3, 0.8, "Whether it learned the subject is not decided"),
        (0.1, 0.3, "It did not learn the subject"),
        (None, None, "with nothing to judge it by"),
    ],
)
def test_learning_is_claimed_only_when_the_interval_is_clear_of_the_base(
    low: float | None, high: float | None, claim: str
) -> None:
    assert claim in verdict(subject_fidelity=entry(0.5, low, high, 0.4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((-0.06, -0.02), "text alignment fell: text alignment 0.660 (95 % interval 0.600 to 0.720) against the base's "
         "0.700, which is a change of -0.060 to -0.020"),
        ((-0.08, 0.01), "nothing was lost as far as could be measured"),
    ],
)  # fmt: skip
def test_what_changed_is_judged_by_its_own_interval_where_it_is_known(change: tuple[float, float], said: str) -> None:
    """Of pairs of pictures a change can be certain where the value's own interval holds the base's, and the reverse."""
    row = entry(0.66, 0.6, 0.72, 0.7) | dict(zip(("change_low", "change_high"), change, strict=True))
    assert said in verdict(text_alignment=row).replace("\u2212", "-")
    wide = entry(0.66, 0.64, 0.68, 0.7) | {"change_low": -0.1, "change_high": 0.02}
    assert "nothing was lost" in verdict(text_alignment=wide)


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.01, 0.03, "rose"), (-0.03, -0.01, "fell"), (-0.01, 0.03, "did not change as far as")]
)
def test_a_loss_alone_is_told_as_a_loss_and_not_as_pictures(low: float, high: float, said: str) -> None:
    told = verdict(loss_world=entry(0.01, low, high, None, "lower") | {"kind": "drift"})
    assert f"its loss on pictures of the base's own {said}" in told and "moved" not in told


def test_what_one_of_two_judges_sees_is_not_claimed() -> None:
    """The probe alone sees the subject learned; the second judge's interval holds the base's figure."""
    first, base = entry(0.8, 0.75, 0.85, 0.5), {"text_alignment": entry(0.7, 0.69, 0.75, 0.7)}
    agreeing, other = entry(0.6, 0.55, 0.65, 0.3), entry(0.4, 0.25, 0.55, 0.3)
    both = verdict(subject_fidelity=first, **{"subject_fidelity (second)": agreeing}, **base)
    one = verdict(subject_fidelity=first, **{"subject_fidelity (second)": other}, **base)
    assert "It learned the subject" in both and "not decided" not in both
    assert "Whether it learned the subject is not decided, as not all judges see it" in one


@pytest.mark.parametrize(
    ("alignment", "diversity", "claims"),
    [
        ((0.70, 0.76), (0.80, 0.88), ["It learned the subject", "nothing was lost as far as could be measured"]),
        ((0.40, 0.52), (0.80, 0.88), ["It took on the subject, at a price", "on its own prompts, text alignment fell"]),
        ((0.70, 0.76), (0.05, 0.12), ["It took on the subject, at a price", "on its own prompts, diversity fell"]),
        ((0.40, 0.52), (0.05, 0.12), ["at a price", "text alignment and diversity fell: text alignment 0.46"]),
    ],
)
def test_learned_is_said_only_when_the_prompts_hold_as_well(alignment, diversity, claims) -> None:
    """Each lost figure is named with its numbers; the demo's first report called .460 of .732 learned."""
    text = verdict(
        subject_fidelity=entry(0.804, 0.78, 0.83, 0.5),
        text_alignment=entry(sum(alignment) / 2, *alignment, 0.732),
        diversity=entry(sum(diversity) / 2, *diversity, 0.845),
        class_leakage=entry(0.4, 0.3, 0.5, 0.4, "near base"),
    )
    assert all(claim in text for claim in claims)
    assert ("It learned" in text) == ("nothing was lost" in text)


@pytest.mark.parametrize(
    "low, high, better, claim",
    [
        (0.1, 0.2, "higher", "it forgot something"),
        (0.1, 0.5, "higher", "no forgetting could be measured"),
        (0.5, 0.6, "higher", "it lost nothing"),
        (0.5, 0.6, "near base", "it forgot something"),
    ],
)
def test_forgetting_is_judged_by_the_interval(low: float, high: float, better: str, claim: str) -> None:
    assert claim in verdict(drift_alignment=entry(0.3, low, high, 0.4, better))


@pytest.mark.parametrize(
    ("low", "high", "claim"),
    [
        (0.5, 0.6, "its plain class now takes after it"),
        (0.3, 0.5, "its plain class is no more like it than before"),
        (0.1, 0.2, "its plain class has changed, away from it"),
    ],
)
def test_a_class_that_takes_on_the_subject_is_told(low: float, high: float, claim: str) -> None:
    assert claim in verdict(class_leakage=entry(0.4, low, high, 0.4, "near base"))


def test_a_distance_to_the_base_is_told_and_not_judged() -> None:
    text = verdict(drift_picture_distance=entry(0.1, 0.08, 0.12, 0.0, "lower"))
    assert text.startswith(
        "pictures of unrelated prompts moved away from the base's: drift picture distance 0.100 (95 %"
    )
    assert read_figures({"values": {"drift_distance": entry(0.1, 0.08, 0.12, 0.0, "lower")}})[0].verdict == "unknown"


def test_unmeasured_drift_is_admitted() -> None:
    assert "what it forgot was not measured" in verdict(subject_fidelity=entry(0.5, 0.45, 0.6, 0.4))


def test_nothing_measured_is_no_verdict() -> None:
    assert verdict() == ""


def test_a_given_kind_wins_over_the_name() -> None:
    figures = read_figures({"values": {"dino_score": entry(1, 1, 1, 1), "shift": {"value": 1, "kind": "drift"}}})
    assert [figure.kind for figure in figures] == ["fidelity", "drift"]


def test_numbers_read_well() -> None:
    assert [number(value) for value in (0.8123, 12.3, 2400, 0, 0.00312, None, float("nan"), 64)] == [
        "0.812",
        "12.3",
        "2,400",
        "0",
        "0.00312",
        "\u2013",
        "\u2013",
        "64",
    ]
    assert [signed(0.381, 0.812), signed(-0.0031, 0.309), signed(0.0, 0.3), signed(None, 1.0)] == [
        "+0.381",
        "\u22120.003",
        "0.000",
        "\u2013",
    ]
    assert [duration(value) for value in (8.21, 59.4, 151.4, 11_100, None)] == [
        "8.2 s",
        "59 s",
        "2 min 31 s",
        "3 h 05 min",
        "\u2013",
    ]
    assert [file_size(value) for value in (812, 96_400, 3_210_000, 5.2e9)] == ["812 B", "96.4 kB", "3.21 MB", "5.2 GB"]


def test_a_spread_keeps_both_ends() -> None:
    assert spread(20, 5) == [0, 5, 10, 14, 19] and spread(3, 5) == [0, 1, 2]


def test_drift_below_its_floor_is_no_drift() -> None:
    moved = dict(entry(0.012, 0.010, 0.014, None, "lower")) | {"floor": 0.016}  # type: ignore[call-overload]
    assert "no further from the base's than other seeds move them" in verdict(drift_features=moved)
    assert "moved away from the base's" in verdict(drift_features=moved | {"floor": 0.013})


def test_names_are_listed_as_in_a_sentence() -> None:
    assert [listed(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert listed(["a", "b", "c"], "or") == "a, b or c"
