"""Diff-Tuning in the recipes: `train.objective`, the memory of the untouched base, the premise, handing steps back."""

import json
from pathlib import Path

import pytest
import torch

from diffadapt.adapters import LoRA, attach
from diffadapt.config import build, options
from diffadapt.data.concept import load_concept
from diffadapt.data.control_pairs import ControlPairs, load_control_pairs
from diffadapt.errors import Refused
from diffadapt.evaluation.chain_of_forgetting import near_data
from diffadapt.files import load_tensors
from diffadapt.recipes import retention
from diffadapt.recipes.control import train_control
from diffadapt.recipes.subject import SubjectConfig, train_subject
from diffadapt.sampling.sample import default_line, generate, sample
from diffadapt.training.retention_config import MemoryConfig
from diffadapt.training.sources import BankLatents

SMALL = MemoryConfig(latents=6, prompts=("a red cat", "a blue dog"), steps=1)
QUICK = {
    "steps": 2, "batch_size": 4, "prior_weight": 0.0, "sample_every": 0, "checkpoint_every": 0, "evaluation_prompts": 0,
    "memory": SMALL, "quiet": True,
}  # fmt: skip


def train(base, photos: Path, out: Path, **settings):
    concept = load_concept(photos, "cat")
    return train_subject(base, concept, method=LoRA(rank=2), out=out, seed=1, **{**QUICK, **settings})


def adapter_of(run) -> dict[str, torch.Tensor]:
    return load_tensors(run.adapter)[0]


def log_of(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_tau_zero_trains_the_very_adapter_of_plain_training(base, photos, tmp_path):
    plain = adapter_of(train(base, photos, tmp_path / "plain", steps=5))
    settings = {"objective": "difftuning", "memory": MemoryConfig(tau=0.0), "steps": 5}
    kept = adapter_of(train(base, photos, tmp_path / "tau-zero", **settings))
    assert all(torch.equal(kept[key], value) for key, value in plain.items())
    assert not (tmp_path / "memory_banks").exists()  # nothing was sampled for it


def test_memory_is_sampled_once_from_the_untouched_base_and_shared(base, photos, tmp_path, monkeypatch):
    weights = [parameter.clone() for parameter in base.denoiser.parameters()]
    run = train(base, photos, tmp_path / "first", objective="difftuning")
    assert all(torch.equal(a, b) for a, b in zip(weights, base.denoiser.parameters(), strict=True))
    (bank,) = (tmp_path / "memory_banks").iterdir()
    made, _ = load_tensors(bank / "00000.safetensors")
    line = default_line(base, "a red cat", 0, steps=1)
    expected = base.encode_pictures(generate(base, [line])[0][None])[0]
    torch.testing.assert_close(made["latents"][0].float(), expected, atol=2e-3, rtol=2e-3)
    assert {"target", "memory", "ratio"} == json.loads((run.folder / "metrics.json").read_text())["premise"].keys()

    def must_not(*_, **__):
        raise AssertionError("sampled again")

    monkeypatch.setattr(retention, "generate", must_not)
    train(base, photos, tmp_path / "second", objective="official_code", batch_size=8)


def test_a_batch_too_small_for_target_and_memory_is_refused_before_anything_is_sampled(base, photos, tmp_path):
    with pytest.raises(Refused, match="a batch of 4 rows has 0 memory rows"):
        train(base, photos, tmp_path / "run", objective="official_code")
    assert not (tmp_path / "memory_banks").exists() and not base.attachments


def test_the_log_tells_the_loss_of_memory_rows_from_that_of_the_pictures(base, photos, tmp_path):
    rows = log_of(train(base, photos, tmp_path / "run", objective="official_code", batch_size=8))
    assert all(row["loss"] == pytest.approx(row["loss_concept"] + 0.1 * row["loss_memory"], rel=1e-4) for row in rows)
    assert all(len(row["loss_by_timestep"]) == 7 for row in rows)  # a fifth of 8 rows is one


@pytest.mark.parametrize(
    ("condition", "captions"),
    [("null", {""}), ("default_prompt", {retention.DEFAULT_PROMPT}), ("generated", {"a red cat", "a blue dog"})],
)
def test_memory_rows_reach_the_denoiser_under_the_chosen_condition_alone(
    base, photos, tmp_path, monkeypatch, condition, captions
):
    seen = []
    pick = BankLatents.pick

    def looking(self, *arguments):
        picked = pick(self, *arguments)
        seen.extend(caption for _, caption in picked)
        return picked

    monkeypatch.setattr(BankLatents, "pick", looking)
    memory = MemoryConfig(latents=6, prompts=SMALL.prompts, steps=1, condition=condition)
    train(base, photos, tmp_path / "run", objective="difftuning", memory=memory)
    assert set(seen) == captions


@pytest.mark.parametrize("objective", ["distillation", "reconsolidation_only", "retention_only"])
def test_every_variant_trains(base, photos, tmp_path, objective):
    run = train(base, photos, tmp_path / "run", objective=objective)
    assert (tmp_path / "memory_banks").exists() == (objective == "retention_only")
    assert max(value.abs().max() for key, value in adapter_of(run).items() if key.endswith("up")) > 0
    assert objective != "distillation" or any("loss_teacher" in row for row in log_of(run))


def test_a_control_training_pairs_each_memory_picture_with_its_own_signal(base, tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    from PIL import Image, ImageDraw

    for i in range(4):
        picture = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(picture).rectangle((4 + i, 6, 20 + i, 24), fill="red")
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red cat", encoding="utf-8")
    pairs = load_control_pairs(folder, "canny")
    run = train_control(
        base, pairs, method=LoRA(rank=2), out=tmp_path / "run", steps=2, batch_size=4, sample_every=0,
        checkpoint_every=0, evaluation_pairs=0, objective="difftuning", memory=SMALL, quiet=True,
    )  # fmt: skip
    assert any("loss_memory" in row for row in log_of(run)) and not base.attachments


def test_a_signal_that_the_pixels_do_not_tell_is_read_off_the_embedded_world(base, tmp_path):
    pictures = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    pairs = ControlPairs.in_memory(pictures, torch.zeros_like(pictures), ["a red cat"] * 4, signal="depth_order")
    settings = {
        "method": LoRA(rank=2), "steps": 2, "batch_size": 4, "sample_every": 0, "checkpoint_every": 0,
        "evaluation_pairs": 0, "objective": "difftuning", "memory": SMALL, "resolution": 64, "quiet": True,
    }  # fmt: skip
    run = train_control(base, pairs, out=tmp_path / "run", **settings)
    assert any("loss_memory" in row for row in log_of(run))
    base.world = None
    with pytest.raises(Refused, match="cannot be computed from a picture"):
        train_control(base, pairs, out=tmp_path / "photographs", **settings)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_prior_preservation_beside_it_is_refused_before_anything_is_written(base, photos, tmp_path):
    with pytest.raises(Refused, match="set train.prior_weight=0"):
        train(base, photos, tmp_path / "run", objective="difftuning", prior_weight=1.0)
    assert not (tmp_path / "run").exists()


def test_the_same_condition_for_target_and_memory_is_refused_with_the_reason():
    with pytest.raises(Refused, match="would leak"):
        retention.refuse_one_condition(["", ""], "")
    retention.refuse_one_condition(["", "a cat"], "")
    retention.refuse_one_condition([""], None)


def test_an_adapter_that_is_on_while_the_memory_is_sampled_is_refused(base, tmp_path):
    attachment = attach(base, LoRA(rank=2))
    config = SubjectConfig(objective="difftuning", memory=SMALL)
    with pytest.raises(Refused, match="an adapter is on"):
        retention.memory_of(base, config, tmp_path / "run", None, resolution=base.resolution, quiet=True)  # pyright: ignore
    assert not (tmp_path / "memory_banks").exists()
    attachment.detach()


def test_a_bank_of_another_sampling_is_refused_and_left_as_it_is(base, photos, tmp_path):
    settings = {"objective": "difftuning", "memory": MemoryConfig(latents=6, steps=1, folder=str(tmp_path / "bank"))}
    train(base, photos, tmp_path / "one", **settings)
    before = (tmp_path / "bank" / "00000.safetensors").read_bytes()
    settings["memory"] = MemoryConfig(latents=6, steps=2, folder=str(tmp_path / "bank"))
    with pytest.raises(Refused, match="was sampled with steps = 1, this run has 2"):
        train(base, photos, tmp_path / "two", **settings)
    assert (tmp_path / "bank" / "00000.safetensors").read_bytes() == before and not base.attachments


def test_the_options_are_a_table_of_their_own():
    names = [each.name for each in options(SubjectConfig, "train")]
    assert {"train.objective", "train.memory.latents", "train.memory.tau"} <= {*names}
    config = build(SubjectConfig, {"objective": "official_code", "memory": {"tau": 0.5}}, name="train")
    mixture = config.memory.mixture(config.objective)
    assert (mixture.tau, mixture.memory_weight, mixture.estimator) == (0.5, 0.1, "official_code")
    with pytest.raises(Refused, match="objective"):
        build(SubjectConfig, {"objective": "diff"}, name="train")


# --- the premise ------------------------------------------------------------------------------------------------------


def test_a_base_that_is_no_denoiser_of_the_target_near_the_data_is_warned_of(capsys):
    retention.Premise(0.3, 0.2).tell(quiet=False)
    assert "1.50 times" in (told := capsys.readouterr().err) and "warning" in told
    retention.Premise(0.25, 0.2).tell(quiet=False)
    assert "warning" not in capsys.readouterr().err


def test_the_premise_looks_at_the_levels_with_the_least_noise_whichever_way_steps_count():
    ratio = torch.linspace(0.01, 50, 100)
    assert near_data(ratio, 4).tolist() == [0, 9, 19, 29]
    assert near_data(ratio.flip(0), 4).tolist() == [99, 90, 80, 70]


# --- handing steps back -----------------------------------------------------------------------------------------------


def moved(base):
    attachment = attach(base, LoRA(rank=2))
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    return attachment


def test_none_handed_back_is_the_adapter_and_all_is_the_base_bit_for_bit(base):
    attachment = moved(base)

    def pictures(share: float, strength: float = 1.0):
        (found,) = sample(base, "a cat", adapters=[(attachment, strength)], steps=4, seed=3, hand_back=share)
        return found.tobytes()

    whole, none = pictures(0.0), pictures(0.0, strength=0.0)
    assert whole != none and pictures(0.01) == whole  # less than a step
    assert pictures(1.0) == none
    assert pictures(0.5) not in (whole, none) and attachment.enabled


def test_the_last_steps_are_the_untouched_base(base):
    attachment, states = moved(base), []
    base.denoiser.register_forward_hook(lambda *_: states.append(attachment.enabled))
    sample(base, "a cat", adapters=[(attachment, 1.0)], steps=5, hand_back=0.4)
    assert states == [True, True, True, False, False]


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_a_share_is_one_of_calls_where_a_scheduler_asks_more_than_once_a_step(base, scheduler):
    import diffusers

    base.pipeline.scheduler = getattr(diffusers, scheduler).from_config(base.pipeline.scheduler.config)
    attachment, states = moved(base), []
    base.denoiser.register_forward_hook(lambda *_: states.append(attachment.enabled))
    sample(base, "a cat", adapters=[(attachment, 1.0)], steps=10, hand_back=0.2)
    assert len(states) > 10 and states.count(False) == round(0.2 * len(states)) and states == sorted(states)[::-1]


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_what_is_no_share_is_refused(base, share):
    with pytest.raises(Refused, match="from 0 to 1"):
        sample(base, "a cat", hand_back=share)


# --- class folders ----------------------------------------------------------------------------------------------------


def test_a_transfer_to_class_folders_is_a_job_that_reads_its_own_run_file_again(tiny_folder, tmp_path):
    from PIL import Image

    from diffadapt.config import override, read_toml
    from diffadapt.recipes.job import read_job

    for name, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (32, 32), colour).save(tmp_path / "pets" / name / f"{i}.png")
    table = {
        "recipe": "transfer", "base": str(tiny_folder), "out": str(tmp_path / "run"),
        "transfer": {"folder": str(tmp_path / "pets"), "held_out": 1},
        "train": {
            "steps": 1, "sample_every": 0, "checkpoint_every": 0, "evaluation_pictures": 0, "objective": "difftuning",
            "memory": {"latents": 4, "steps": 1},
        },
    }  # fmt: skip
    run = read_job(table).run("cpu")
    again = read_job(override(read_toml(run.folder / "run.toml"), []))
    assert (again.top.recipe, again.data.held_out, again.train.objective) == ("transfer", 1, "difftuning")
    assert (tmp_path / "memory_banks").is_dir()
