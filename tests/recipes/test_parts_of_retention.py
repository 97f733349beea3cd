"""Keeping what the base knows: which objective and sources a setting makes, the bank, and the check of the premise."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffadapt.controls import SIGNALS
from diffadapt.data.cache import TensorCache
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.objectives import Denoising, Masked, MatchingTheBase, MixedWithMemory
from diffadapt.recipes import picture_count, retention
from diffadapt.recipes.subject import SubjectConfig
from diffadapt.training.retention_config import MemoryConfig
from diffadapt.training.sources import Fetched, Unconditioned

MEMORY = MemoryConfig(latents=3, prompts=("a cat", "a dog"), steps=1)


class Rows:
    """A source of one caption, whose rows are all alike."""

    def __init__(self, caption: str = "a red apple", value: float = 0.5) -> None:
        self.caption, self.value, self.asked = caption, value, []

    def captions(self) -> list[str]:
        return [self.caption]

    def pick(self, rng, size: int, place: int) -> list[tuple[int, str]]:
        self.asked.append((rng.integers(1000, size=3).tolist(), size, place))
        return [(i, self.caption) for i in range(size)]

    def fetch(self, index: int) -> Fetched:
        return Fetched(torch.full((4, 8, 8), self.value * (index + 1)))


class Alone:
    """An accelerator of one process."""

    is_main_process, waited = True, 0

    def wait_for_everyone(self) -> None:
        self.waited += 1


@pytest.fixture
def keep(base, tmp_path):
    """Calls `retained`; returns the objective, the sources and the plain objective."""

    def keep(of_rows=None, quiet=True, **settings):
        more = {name: settings.pop(name) for name in ("signal", "cache") if name in settings}
        config = SubjectConfig(**{"memory": MEMORY, "snr_gamma": 0.5, "batch_size": 8, **settings})
        plain = of_rows or Denoising(base.noise_schedule, snr_gamma=0.5)
        sources = {"target": Rows()}
        found = retention.retained(
            base, plain, sources, config, tmp_path / "runs" / "a", Alone(), resolution=32, quiet=quiet, **more
        )
        return found, sources, plain

    return keep


def test_a_plain_training_and_one_that_keeps_nothing_stay_as_they_are(keep):
    for settings in ({}, {"objective": "difftuning", "memory": replace(MEMORY, tau=0.0)}):
        found, sources, plain = keep(**settings)
        assert found is plain and list(sources) == ["target"]


def test_settings_of_a_memory_that_a_standard_training_has_no_use_for_are_named(keep, capsys):
    keep(memory=MemoryConfig(), quiet=False)
    assert not capsys.readouterr().err
    keep(quiet=False)
    assert "what train.memory says is not used" in capsys.readouterr().err


def test_diff_tuning_mixes_the_target_with_the_memory(base, keep, follow, tmp_path):
    calls = follow(retention, "memory_of", "BankLatents", "MixedWithMemory", "refuse_one_condition")
    found, sources, plain = keep(objective="difftuning")
    assert isinstance(found, MixedWithMemory) and list(sources) == ["target", "memory"]
    [mixed], [bank], [of_bank] = calls["MixedWithMemory"], calls["memory_of"], calls["BankLatents"]
    assert mixed["objective"] is plain and torch.equal(mixed["ratio"], base.noise_schedule.noise_ratio())
    assert bank["base"] is base and bank["folder"] == tmp_path / "runs" / "a" and bank["quiet"] is True
    assert bank["resolution"] == 32 and bank["config"].memory == MEMORY and bank["accelerator"].waited == 1
    assert of_bank["bank"] is sources["memory"].bank and of_bank["signal"] is None and len(of_bank["bank"]) == 3
    assert calls["refuse_one_condition"] == [{"captions": ["a red apple"], "caption": of_bank["caption"]}]


@pytest.mark.parametrize(
    ("condition", "caption"),
    [("null", ""), ("default_prompt", retention.DEFAULT_PROMPT), ("generated", None)],
)
def test_the_condition_of_memory(keep, condition, caption):
    _, sources, _ = keep(objective="difftuning", memory=replace(MEMORY, condition=condition))
    assert sources["memory"].caption == caption


def test_distillation_asks_the_base_about_the_target_without_its_captions(base, keep, follow):
    calls = follow(retention, "MatchingTheBase", "MixedWithMemory")
    found, sources, plain = keep(objective="distillation")
    assert list(sources) == ["target", "teacher"] and isinstance(sources["teacher"], Unconditioned)
    assert sources["teacher"].source is sources["target"]
    [matching] = calls["MatchingTheBase"]
    assert matching["schedule"] is plain.schedule and matching["snr_gamma"] == 0.5
    assert matching["learned_variance"] == plain.learned_variance
    first, last = calls["MixedWithMemory"]
    assert isinstance(last["objective"], MatchingTheBase) and last["settings"] == first["settings"]
    assert last["ratio"] is first["ratio"] and isinstance(found, MixedWithMemory)
    with pytest.raises(Refused, match="leave train.masked off"):
        keep(Masked(base.noise_schedule, snr_gamma=0.5), objective="distillation")


def test_reconsolidation_alone_needs_no_memory_and_a_fixed_share_needs_rows(keep):
    found, sources, _ = keep(objective="reconsolidation_only")
    assert isinstance(found, MixedWithMemory) and list(sources) == ["target"]
    with pytest.raises(Refused, match="a batch of 4 rows has 0 memory rows"):
        keep(objective="official_code", batch_size=4)
    keep(objective="difftuning", batch_size=1)  # a draw for each row: any batch will do


def test_memory_has_the_signal_of_its_own_pictures(base, keep, follow):
    cache = TensorCache(None)
    calls = follow(retention, "_signals", "read_signal", load_reader="reader")
    _, sources, _ = keep(objective="difftuning", signal=SIGNALS["canny"], cache=cache)
    [asked] = calls["_signals"]
    bank = sources["memory"].bank
    assert asked == {"base": base, "bank": bank, "signal": SIGNALS["canny"], "cache": cache}
    one, other = (sources["memory"].signal(row) for row in (0, 1))
    expected = SIGNALS["canny"].extract(base.decode_latents(bank.latents([1])))
    assert torch.equal(other, expected[0]) and one.shape == (3, 32, 32) and not calls["load_reader"]
    sources["memory"].signal(1)
    read = calls["read_signal"]
    assert [(each["name" if "name" in each else "signal"], each["reader"]) for each in read] == [("canny", None)] * 2


def test_a_signal_that_no_pixel_tells_is_read_off_the_world_or_refused(base, follow):
    calls = follow(retention, load_reader="reader", read_signal=torch.ones(1, 3, 32, 32))
    bank = SimpleNamespace(
        settings=SimpleNamespace(fingerprint="f"), latents=lambda rows: torch.zeros(len(rows), 4, 8, 8)
    )
    found = retention._signals(base, bank, SIGNALS["depth_order"], None)
    assert found(2).shape == (3, 32, 32) and len(calls["load_reader"]) == 1
    assert calls["read_signal"][0]["reader"] == "reader"
    base.world = None
    with pytest.raises(Refused, match="cannot be computed from a picture"):
        retention._signals(base, bank, SIGNALS["depth_order"], None)
    assert retention._signals(base, bank, SIGNALS["canny"], None)


@pytest.mark.parametrize("given", [True, False])
def test_the_bank_of_latents_is_sampled_as_its_settings_say(base, tmp_path, follow, given):
    calls = follow(retention, "LatentBankSettings", "PromptLine", "generate", "say", "LatentBank")
    memory = replace(MEMORY, steps=2, guidance=0.0) if given else MemoryConfig(latents=3)
    memory = replace(memory, folder=str(tmp_path / "bank") if given else "")
    config, everyone = SubjectConfig(memory=memory), Alone()
    bank = retention.memory_of(base, config, tmp_path / "runs" / "a", everyone, resolution=32, quiet=True)
    [settings] = calls["LatentBankSettings"]
    assert settings["base_fingerprint"] == base.drawing_fingerprint and settings["shape"] == (4, 8, 8)
    scale = base.vae.config.scaling_factor
    assert settings["vae"] == f"AutoencoderTiny {scale:g} {base.vae.config.get('shift_factor') or 0:g}"
    assert settings["sampler"] == type(base.pipeline.scheduler).__name__
    assert (settings["steps"], settings["guidance"]) == ((2, 0.0) if given else (1, base.default_guidance))
    prompts = ("a cat", "a dog") if given else tuple(retention.world_captions(base, 256))
    assert settings["prompts"] == prompts
    place = tmp_path / "bank" if given else tmp_path / "runs" / "memory_banks" / bank.settings.fingerprint[:12]
    assert calls["LatentBank"] == [{"folder": place, "settings": bank.settings}]
    lines = calls["PromptLine"]
    assert [(each["prompt"], each["seed"]) for each in lines] == [(prompts[i % len(prompts)], i) for i in range(3)]
    for each in lines:
        assert (each["width"], each["height"]) == (32, 32)
        assert (each["guidance"], each["steps"]) == (settings["guidance"], settings["steps"])
    [made] = calls["generate"]
    assert made["base"] is base and made["batch"] == 3 == len(bank) and everyone.waited == 1
    assert [bank.caption(i) for i in range(3)] == [prompts[i % len(prompts)] for i in range(3)]
    said = [(each["text"], each["quiet"]) for each in calls["say"]]
    assert said == [(f"sampling 3 latents of the untouched base into {place}", True)]
    again = retention.memory_of(base, config, tmp_path / "runs" / "a", everyone, resolution=32, quiet=True)
    assert len(calls["say"]) == len(calls["generate"]) == 1 and torch.equal(again.latents([0]), bank.latents([0]))


def test_a_second_process_reads_the_bank_of_the_first(base, tmp_path, follow, second_process):
    config = SubjectConfig(memory=MEMORY)
    retention.memory_of(base, config, tmp_path / "runs" / "a", Alone(), resolution=32, quiet=True)
    calls = follow(retention, "generate", "say", "LatentBank")
    bank = retention.memory_of(base, config, tmp_path / "runs" / "a", second_process, resolution=32, quiet=False)
    assert len(bank) == 3 and not calls["generate"] and not calls["say"] and second_process.waited == 1
    assert {each["folder"].parent for each in calls["LatentBank"]} == {tmp_path / "runs" / "memory_banks"}


def test_the_premise_compares_target_and_memory_at_the_same_levels_and_noise(base, follow):
    sources = {"target": Rows(value=0.5), "memory": Rows(value=0.25)}
    calls = follow(retention, "losses_at", "say", "near_data")
    found = retention.premise_of(base, sources, seed=3, quiet=True)
    expected = (np.random.default_rng([3, 7]).integers(1000, size=3).tolist(), retention.CHECKED, 0)
    assert sources["target"].asked == sources["memory"].asked == [expected]
    first, second = (tuple(each.values()) for each in calls["losses_at"])
    assert first[0] is base and first[1].shape == (32, 4, 8, 8) and torch.equal(first[1], 2 * second[1])
    assert torch.equal(first[2], second[2]) and {each["seed"] for each in calls["losses_at"]} == {3}
    assert [each["count"] if "count" in each else [*each.values()][1] for each in calls["near_data"]] == [32, 32]
    one, other = (
        float(retention.losses_at(base, each[1], each[2], seed=3).mean()) for each in (first, second)
    )  # fmt: skip
    assert found == {"premise": {"target": round(one, 5), "memory": round(other, 5), "ratio": round(one / other, 5)}}
    assert calls["say"] and all(each["quiet"] is True for each in calls["say"])
    assert retention.premise_of(base, {"target": Rows()}, seed=3, quiet=True) == {}


def test_pictures_of_a_run_are_counted_by_what_they_are_for(photos):
    concept = load_concept(photos, "cat")
    settings = {
        "steps": 10, "sample_every": 4, "checkpoint_every": 3, "prior_weight": 0.5, "prior_pictures": 7, "select": 2,
        "evaluation_prompts": 3, "evaluation_pictures": 2,
    }  # fmt: skip
    measured = picture_count.picture_count(3, 2, 6)
    counts = picture_count.count_pictures(concept, SubjectConfig(**settings))
    assert counts == {
        "the class, for prior preservation": 7, "the base and the way": 6 * 4, "strengths": 6 * 4,
        "choosing the step": 2 * 4, "evaluation": measured,
    }  # fmt: skip
    two = SimpleNamespace(parts=[1, 2])
    counts = picture_count.count_pictures(two, SubjectConfig(**{**settings, "evaluation_prompts": 20}))
    assert counts["strengths"] == 7 * 4 and counts["choosing the step"] == 2 * 4 * 2
    assert counts["evaluation"] == 2 * picture_count.picture_count(20, 2, 25)
    off = {"sample_every": 0, "checkpoint_every": 0, "prior_weight": 0.0, "evaluation_prompts": 0, "select": 0}
    assert picture_count.count_pictures(concept, SubjectConfig(**{**settings, **off})) == {"strengths": 24}
    assert picture_count.in_words({"a": 2, "b": 3}) == "5: 2 for a, 3 for b"
