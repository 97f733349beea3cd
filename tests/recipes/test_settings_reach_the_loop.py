"""A recipe's hand-over to the loop: every setting arrives where it works, read off the batches, losses and groups."""

import itertools

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA, Token
from diffadapt.data.concept import load_concept
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.recipes import control, subject

FAST = {
    "steps": 1, "batch_size": 2, "prior_pictures": 2, "checkpoint_every": 0, "sample_every": 0,
    "evaluation_prompts": 0, "quiet": True,
}  # fmt: skip


class Handed(Exception):
    """Ends a recipe where the loop would begin."""


@pytest.fixture
def handed(base, photos, tmp_path, monkeypatch):
    """Calls `train_subject` with settings, and returns what it gave to `fit`."""
    mask = Image.new("L", (48, 40), 0)
    mask.paste(255, (14, 10, 34, 30))
    for i in range(3):
        mask.save(photos / f"{i}-masklabel.png")
    concept = load_concept(photos, "cat")

    numbers = itertools.count()

    def call(method=None, **settings):
        found = {}

        def fit(base, attachments, batches, objective, **more):
            found.update(attachments=attachments, batches=batches, objective=objective, **more)
            found["batch"] = batches.batch(0, 0)
            found["asked"] = base.tokenize(["the small <biscuit> cat"])[0]
            raise Handed

        monkeypatch.setattr(subject, "fit", fit)
        with pytest.raises(Handed):
            subject.train_subject(
                base, concept, method=method or LoRA(rank=1), out=tmp_path / str(next(numbers)), **FAST | settings
            )
        return found

    return call


def zero(noisy, timesteps, condition):
    return torch.zeros_like(noisy)


def test_the_roles_that_were_chosen_are_adapted_and_no_other(handed):
    found = handed(prior_weight=0.0, roles=("cross_attention.value",))["attachments"]["adapter"]
    assert found.adapters and all(path.endswith("attn2.to_v") for path in found.adapters if path.startswith("unet."))


@pytest.mark.parametrize("weight", [0.25, 2.0])
def test_the_weight_of_prior_preservation(handed, weight):
    found = handed(prior_weight=weight)
    assert found["batch"].sources == ("target", "target", "class", "class")
    minimised = found["objective"].reduce(torch.tensor([1.0, 3.0, 10.0, 20.0]), found["batch"])
    assert minimised == pytest.approx(2.0 + weight * 15.0)


def test_without_a_weight_there_are_no_class_rows(handed):
    assert handed(prior_weight=0.0)["batch"].sources == ("target", "target")


def test_min_snr_and_masks(handed):
    plain, weighed = handed(prior_weight=0.0, snr_gamma=0.0), handed(prior_weight=0.0, snr_gamma=0.1)
    schedule, times = weighed["objective"].schedule, weighed["batch"].timesteps
    expected = plain["objective"].losses(zero, plain["batch"]) * schedule.weight(times, 0.1)
    assert torch.equal(weighed["objective"].losses(zero, weighed["batch"]), expected)
    assert not torch.equal(expected, plain["objective"].losses(zero, plain["batch"]))
    masked = handed(prior_weight=0.0, snr_gamma=0.0, masked=True)
    assert plain["batch"].mask is None and masked["batch"].mask.shape == (2, 1, 8, 8)
    batch = plain["batch"]
    error = schedule.target(batch.latents, batch.noise, batch.timesteps).square()
    mask = masked["batch"].mask
    by_hand = (error * mask).mean((1, 2, 3)) / mask.mean((1, 2, 3))
    torch.testing.assert_close(masked["objective"].losses(zero, masked["batch"]), by_hand)


def test_class_pictures_are_not_masked(handed):
    mask = handed(masked=True)["batch"].mask
    assert (mask[2:] == 1).all() and not (mask[:2] == 1).all()


def test_layers_and_words_have_rates_of_their_own(handed):
    layers, words = handed(learning_rate=0.01, token_learning_rate=0.07)["groups"]
    assert layers["peak"] == 0.01 and "weight_decay" not in layers and len(layers["params"]) > 1
    assert words["peak"] == 0.07 and words["weight_decay"] == 0.0 and [p.shape[0] for p in words["params"]] == [1]
    layers, words = handed(method=Token(vectors=2), token_learning_rate=0.07)["groups"]
    assert not layers["params"] and words["peak"] == 0.07


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_captions_are_dropped(handed, base, share):
    batch = handed(caption_dropout=share)["batch"]
    (nothing,) = base.tokenize([""])
    dropped = [torch.equal(ids, nothing) for ids in batch.condition.token_ids]
    assert dropped == [share == 1.0] * 2 + [False] * 2  # captions of class pictures stay


def test_templates_take_the_place_of_missing_captions(handed):
    found, plain = handed(templates=("the small {}",), prior_weight=0.0), handed(prior_weight=0.0)
    assert all(torch.equal(ids, found["asked"]) for ids in found["batch"].condition.token_ids)
    assert not any(torch.equal(ids, found["asked"]) for ids in plain["batch"].condition.token_ids)


def test_the_loop_gets_the_run_s_settings(handed, tmp_path):
    found = handed(gradient_accumulation=3, max_grad_norm=0.5, ema_decay=0.9)
    config = found["config"]
    assert (config.gradient_accumulation, config.max_grad_norm, config.ema_decay) == (3, 0.5, 0.9)
    assert found["batches"].parts == 3 and found["folder"].parent == tmp_path
    named = {"target": "loss_concept", "class": "loss_prior", "memory": "loss_memory", "teacher": "loss_teacher"}
    assert found["log_as"] == named and "max_grad_norm" in found["settings"]


def test_control_has_rates_for_method_and_hint_and_keeps_signals_of_dropped_captions(base, tmp_path, monkeypatch):
    found = {}

    def fit(base, attachments, batches, objective, **more):
        found.update(batch=batches.batch(0, 0), objective=objective, attachments=attachments, **more)
        raise Handed

    monkeypatch.setattr(control, "fit", fit)
    pictures, signals = (torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    pairs = ControlPairs.in_memory(pictures, signals, ["a cat", "a dog"] * 2, signal="canny")
    for i, rate in enumerate((None, 0.02)):
        with pytest.raises(Handed):
            control.train_control(
                base, pairs, method=LoRA(rank=1), out=tmp_path / str(i), steps=1, batch_size=4, learning_rate=0.01,
                hint_learning_rate=rate, caption_dropout=1.0, snr_gamma=0.1, sample_every=0, quiet=True,
            )  # fmt: skip
        assert list(found["attachments"]) == ["adapter", "hint"]
        assert [group["peak"] for group in found["groups"]] == [0.01, 0.01 if rate is None else rate]
    (nothing,) = base.tokenize([""])
    batch = found["batch"]
    assert all(torch.equal(ids, nothing) for ids in batch.condition.token_ids)
    rows = [int((signals - signal).abs().flatten(1).amax(1).argmin()) for signal in batch.condition.control["hint"]]
    assert sorted(rows) == [0, 1, 2, 3]
    for row, latents in zip(rows, batch.latents, strict=True):  # each picture beside its own signal
        torch.testing.assert_close(latents, base.encode_pictures(pictures[row][None])[0])
    assert found["objective"].snr_gamma == 0.1
