"""The subject recipe end to end on a tiny base: files, resume, interruption, refusals."""

import json
import signal

import pytest
import torch

from diffadapt.adapters import OFT, LoRA, Selective, Token, read_adapter
from diffadapt.data.concept import load_concept
from diffadapt.errors import Failed, Refused
from diffadapt.files import load_tensors
from diffadapt.recipes.subject import SubjectConfig, train_subject

FAST = SubjectConfig(
    steps=6, batch_size=2, warmup=2, prior_pictures=3, checkpoint_every=2, sample_every=0, evaluation_prompts=0
)


def adapter_bits(run) -> dict[str, torch.Tensor]:
    return load_tensors(run.adapter)[0]


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


class Stopped(Exception):
    pass


def stop_at(step: int):
    def watch(now: int, _: float) -> None:
        if now == step:
            raise Stopped

    return watch


def test_a_run_writes_what_it_promises_and_leaves_the_base_alone(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    before = {key: value.clone() for key, value in base.denoiser.state_dict().items()}
    run = train_subject(
        base, concept, method=LoRA(rank=2), out=tmp_path / "runs" / "a", config=FAST, quiet=True,
        sample_every=3, evaluation_prompts=2, evaluation_pictures=2,
    )  # fmt: skip
    for name in ("run.toml", "log.jsonl", "adapter.safetensors", "metrics.json", "report.html", "concept/crops.json",
                 "samples/prompts.json", "samples/base/00.png", "samples/step-000003/00.png",
                 "samples/strength-0.5/00.png", "checkpoints/step-000006/state.json"):  # fmt: skip
        assert (run.folder / name).is_file(), name
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {"loss", "loss_concept", "loss_prior", "loss_by_timestep", "lr", "grad_norm", "seconds"} <= rows[0].keys()
    assert {"subject_fidelity", "text_alignment", "diversity", "drift_features", "drift_pixels"} <= run.metrics[
        "values"
    ].keys()
    assert run.metrics["trainable_parameters"] > 0 and run.metrics["weight_drift"]
    assert not base.attachments
    assert all(torch.equal(before[key], value) for key, value in base.denoiser.state_dict().items())
    method, _, tokens, _, header = read_adapter(run.adapter)
    assert method == LoRA(rank=2) and tokens == {"<biscuit>": "cat"} and "steps = 6" in header["settings"]


@pytest.mark.parametrize(
    ("method", "stops"),
    [  # before the first checkpoint, between two, after the last but one; one of them will do for the other methods
        (LoRA(rank=2, dropout=0.3), (1, 3, 5)),
        (Token(vectors=2), (3,)),
        (Selective(train="bias"), (3,)),
    ],
    ids=["lora", "token", "selective"],
)
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(base, photos, tmp_path, method, stops):
    concept = load_concept(photos, "cat")
    settings = {"method": method, "config": FAST, "quiet": True, "ema_decay": 0.9}
    whole = train_subject(base, concept, out=tmp_path / "whole", **settings)
    for step in stops:
        with pytest.raises(Stopped):
            train_subject(base, concept, out=tmp_path / f"stopped-{step}", watch=stop_at(step), **settings)
        assert not base.attachments
        resumed = train_subject(base, concept, out=tmp_path / f"stopped-{step}", **settings)
        assert equal(adapter_bits(whole), adapter_bits(resumed)), step
        log = [json.loads(line)["step"] for line in (resumed.folder / "log.jsonl").read_text().splitlines()]
        assert log == [1, 2, 3, 4, 5, 6]


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    runs = [
        train_subject(base, concept, method=LoRA(rank=1), out=tmp_path / name, config=FAST, seed=seed, quiet=True)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert equal(adapter_bits(runs[0]), adapter_bits(runs[1]))
    assert not equal(adapter_bits(runs[0]), adapter_bits(runs[2]))


def test_gradient_accumulation_sees_as_many_pictures_as_a_larger_batch(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    run = train_subject(
        base, concept, method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True, gradient_accumulation=3
    )
    last = json.loads((run.folder / "log.jsonl").read_text().splitlines()[-1])
    assert last["images"] == 6 * 3 * 4 and len(last["loss_by_timestep"]) == 3 * 2
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert len({json.dumps(row["loss_by_timestep"]) for row in rows}) == 6


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(base, photos, tmp_path, monkeypatch):
    concept = load_concept(photos, "cat")
    real, calls = type(base).denoise, []

    def poisoned(self, noisy, timesteps, text):
        calls.append(1)
        answer = real(self, noisy, timesteps, text)
        return answer * float("nan") if len(calls) > 4 else answer

    monkeypatch.setattr(type(base), "denoise", poisoned)
    with pytest.raises(Failed, match=r"the loss is nan at step 5.*learning_rate"):
        train_subject(base, concept, method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True)
    kept, _ = load_tensors(tmp_path / "a" / "checkpoints" / "step-000004" / "adapter.safetensors")
    assert all(value.isfinite().all() for value in kept.values())
    assert not base.attachments


def test_textual_inversion_trains_nothing_but_its_vectors(base, photos, tmp_path):
    run = train_subject(
        base, load_concept(photos, "cat"), method=Token(vectors=2), out=tmp_path / "a", config=FAST, quiet=True
    )
    assert list(adapter_bits(run)) == [f"{base.roles['text.token_embedding'][0]}.vectors"]


def test_without_prior_no_class_picture_is_made(base, photos, tmp_path):
    run = train_subject(
        base,
        load_concept(photos, "cat"),
        method=LoRA(),
        out=tmp_path / "runs" / "a",
        config=FAST,
        quiet=True,
        prior_weight=0,
    )
    assert not (tmp_path / "runs" / "memory_banks").exists()
    assert "loss_prior" not in json.loads((run.folder / "log.jsonl").read_text().splitlines()[0])


def test_gradient_checkpointing_changes_nothing_but_memory(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    settings = {"method": LoRA(rank=1), "config": FAST, "steps": 3, "quiet": True}
    plain = train_subject(base, concept, out=tmp_path / "a", **settings)
    less = train_subject(base, concept, out=tmp_path / "b", gradient_checkpointing=True, **settings)
    for key, value in adapter_bits(plain).items():
        torch.testing.assert_close(adapter_bits(less)[key], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stepz": 3}, "did you mean steps"),
        ({"steps": 0}, "steps"),
        ({"schedule": "cosin"}, "cosine"),
        ({"masked": True}, "has a mask"),
        ({"resolution": 30}, "multiple of 8"),
        ({"train_token": False}, "name a rare word"),
        ({"mixed_precision": "fp16"}, "needs a GPU"),
        ({"roles": ("cross_atention.*",)}, "did you mean"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(base, photos, tmp_path, change, says):
    with pytest.raises(Refused, match=says):
        train_subject(
            base, load_concept(photos, "cat"), method=LoRA(), out=tmp_path / "a", config=FAST, quiet=True, **change
        )
    assert not base.attachments


def test_a_noun_that_the_base_does_not_know_is_refused(base, photos, tmp_path):
    with pytest.raises(Refused, match="did you mean 'cat'"):
        train_subject(base, load_concept(photos, "cats"), method=LoRA(), out=tmp_path / "a", config=FAST, quiet=True)
    assert not (tmp_path / "a").exists()


def test_a_token_that_exists_already_is_refused(base, photos, tmp_path):
    with pytest.raises(Refused, match="already"):
        train_subject(
            base, load_concept(photos, "cat", token="dog"), method=LoRA(), out=tmp_path / "a", config=FAST, quiet=True
        )


def test_what_is_refused_leaves_no_folder_behind(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    with pytest.raises(Refused, match="rank 500"):
        train_subject(base, concept, method=LoRA(rank=500), out=tmp_path / "a", config=FAST, quiet=True)
    assert not (tmp_path / "a").exists()
    train_subject(base, concept, method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True)


def test_a_second_run_in_the_process_may_have_another_precision(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    settings = {"method": LoRA(rank=1), "config": FAST, "steps": 2, "quiet": True}
    train_subject(base, concept, out=tmp_path / "a", **settings)
    run = train_subject(base, concept, out=tmp_path / "b", mixed_precision="bf16", **settings)
    assert all(value.isfinite().all() for value in adapter_bits(run).values())


def test_a_penalty_that_is_no_number_stops_the_run_too(base, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("diffadapt.adapters.lora.LoRAAdapter.penalty", lambda self: torch.tensor(float("nan")))
    with pytest.raises(Failed, match=r"the loss is nan at step 1 .*Nothing is kept"):
        train_subject(base, load_concept(photos, "cat"), method=LoRA(), out=tmp_path / "a", config=FAST, quiet=True)


def test_a_rare_word_can_stand_for_the_subject_instead(base, photos, tmp_path):
    run = train_subject(
        base,
        load_concept(photos, "cat", token="sks"),
        method=LoRA(),
        out=tmp_path / "a",
        config=FAST,
        quiet=True,
        train_token=False,
    )
    assert read_adapter(run.adapter)[2] == {}


def test_another_run_in_the_folder_is_refused_and_stays(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    run = train_subject(base, concept, method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True)
    before = run.adapter.read_bytes()
    with pytest.raises(Refused, match=r"other settings.*rank = 1.*rank = 2"):
        train_subject(base, concept, method=LoRA(rank=2), out=tmp_path / "a", config=FAST, quiet=True)
    assert run.adapter.read_bytes() == before


def test_a_folder_of_something_else_is_refused(base, photos, tmp_path):
    with pytest.raises(Refused, match="holds no run"):
        train_subject(base, load_concept(photos, "cat"), method=LoRA(), out=photos, config=FAST, quiet=True)


def test_interrupt_is_passed_on(base, photos, tmp_path, ctrl_c):
    def press_ctrl_c(now, _):
        if now == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_subject(
            base,
            load_concept(photos, "cat"),
            method=LoRA(),
            out=tmp_path / "a",
            config=FAST,
            quiet=True,
            watch=press_ctrl_c,
        )
    assert not base.attachments


def test_gains_are_fitted_after_the_rotations_of_a_finished_run(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    turned = train_subject(
        base, concept, method=OFT(block_size=4), out=tmp_path / "a", config=FAST, quiet=True, sample_every=3,
    )  # fmt: skip
    logged = [json.loads(line) for line in (turned.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "cosine_change" in row] == [3, 6]
    assert abs(logged[-1]["cosine_change"]) < 1e-6
    scaled = train_subject(
        base, concept, method=OFT(block_size=4, rescale="after"), out=tmp_path / "b", config=FAST, quiet=True,
        start_from=str(turned.folder),
    )  # fmt: skip
    before, after = adapter_bits(turned), adapter_bits(scaled)
    assert all(torch.equal(before[key], after[key]) for key in before if key.endswith(".q"))
    assert all(after[key].abs().max() > 0 for key in after if key.endswith(".log_gain"))


def test_going_on_from_another_method_is_refused_before_anything_is_written(base, photos, tmp_path):
    concept = load_concept(photos, "cat")
    run = train_subject(base, concept, method=LoRA(rank=2), out=tmp_path / "a", config=FAST, quiet=True)
    with pytest.raises(Refused, match="made with method 'lora'"):
        train_subject(
            base, concept, method=OFT(block_size=4), out=tmp_path / "b", config=FAST, start_from=str(run.adapter)
        )
    assert not (tmp_path / "b").exists() and not base.attachments
