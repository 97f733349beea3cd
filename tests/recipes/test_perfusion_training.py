"""Perfusion through the subject recipe: what trains, what is chosen, what stays."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants
from perfusion_cases import prepared
from PIL import Image

import diffadapt as da
from diffadapt.adapters import Perfusion, SideInputs, attach
from diffadapt.conditioning import Conditioning
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.files import load_tensors
from diffadapt.objectives import Batch, Masked
from diffadapt.recipes.subject import train_subject
from diffadapt.training.select_step import select_step

SETTINGS = {
    "steps": 6, "batch_size": 2, "learning_rate": 0.03, "token_learning_rate": 0.006, "weight_decay": 0.0,
    "prior_weight": 0.0, "sample_every": 0, "evaluation_prompts": 0, "warmup": 0, "quiet": True,
}  # fmt: skip


@pytest.fixture
def base(tiny_v_base):
    tiny_v_base.default_steps = 1
    return prepared(tiny_v_base)


@pytest.fixture
def concept(tmp_path):
    folder = tmp_path / "biscuit"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(3):
        Image.fromarray((torch.rand(32, 32, 3, generator=generator) * 255).byte().numpy()).save(folder / f"{i}.png")
        mask = Image.new("L", (32, 32), 0)
        mask.paste(255, (8, 8, 24, 24))
        mask.save(folder / f"{i}-masklabel.png")
    (folder / "0.txt").write_text("a cat on the red background")
    return load_concept(folder, "cat")


def test_the_word_stands_for_the_noun(concept):
    alone = concept.standing_alone()
    assert concept.captions() == ["a <biscuit> cat on the red background", "a <biscuit> cat", "a <biscuit> cat"]
    assert alone.captions() == ["a <biscuit> on the red background", "a <biscuit>", "a <biscuit>"]
    assert alone.prompt == "a <biscuit>" and alone.class_prompt == "a cat"
    assert alone.in_prompts(["a small <biscuit> cat", "a dog"]) == ["a small <biscuit>", "a dog"]


def test_a_run_trains_evaluates_and_samples_by_its_word(base, concept, tmp_path):
    run = train_subject(
        base, concept, method=Perfusion(), out=tmp_path / "run", masked=True,
        **{**SETTINGS, "evaluation_prompts": 2, "evaluation_pictures": 2},
    )  # fmt: skip
    prompts = json.loads((run.folder / "samples" / "prompts.json").read_text())["prompts"]
    assert all("<biscuit>" in prompt and "cat" not in prompt for prompt in prompts)
    assert run.metrics["trainable_parameters"] == 32 + sum(
        base.module(path).weight.shape[0] for path in base.roles["cross_attention.value"]
    )
    values = run.metrics["values"]
    assert values["drift_pixels"]["value"] == 0  # a prompt without the word is the base's
    plain, other = (
        da.sample(base, "a <biscuit>", adapters=[(run.adapter, 1.0)], bias=bias)[0] for bias in ({}, {"<biscuit>": 0.2})
    )
    assert plain.tobytes() != other.tobytes()
    scores = [
        da.evaluate(base, concept, adapters=[(run.adapter, 1.0)], bias=bias, prompts=2, per_prompt=2, drift_count=2)
        for bias in ({}, {"<biscuit>": 0.65}, {"<biscuit>": 0.2})
    ]
    # Prompts and captions are those that were learned, told by the file alone: the concept has its noun here.
    assert all("<biscuit>" in row["prompt"] and "cat" not in row["prompt"] for row in scores[0]["per_picture"])
    told = scores[0]["values"]["loss_concept"]["value"]
    assert told == pytest.approx(values["loss_concept"]["value"], abs=1e-6)
    fidelities = [each["values"]["subject_fidelity"]["value"] for each in scores]
    assert fidelities[0] == fidelities[1] != fidelities[2]  # 0.65 is the file's own
    with pytest.raises(Refused, match="got a bias for '<cat>', but the concepts with a gate .* are: <biscuit>"):
        da.sample(base, "a <biscuit>", adapters=[(run.adapter, 1.0)], bias={"<cat>": 0.5})


def test_an_interrupted_run_ends_with_the_same_concept(base, concept, tmp_path):
    whole = train_subject(base, concept, method=Perfusion(), out=tmp_path / "whole", **SETTINGS)

    class Stop(Exception):
        pass

    def stop(step: int, _: float) -> None:
        if step == 4:
            raise Stop

    settings = {**SETTINGS, "checkpoint_every": 3}
    with pytest.raises(Stop):
        train_subject(base, concept, method=Perfusion(), out=tmp_path / "cut", watch=stop, **settings)
    assert not base.attachments
    again = train_subject(base, concept, method=Perfusion(), out=tmp_path / "cut", **settings)
    one, other = load_tensors(whole.adapter)[0], load_tensors(again.adapter)[0]
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_step_is_taken_and_the_last_one_kept(base, concept, tmp_path):
    settings = {**SETTINGS, "checkpoint_every": 2, "keep_checkpoints": 0, "select": 2}
    run = train_subject(base, concept, method=Perfusion(), out=tmp_path / "run", **settings)
    selection = json.loads((run.folder / "selection.json").read_text())
    assert [row["step"] for row in selection["steps"]] == [2, 4, 6] and selection["last"] == 6
    best = max(selection["steps"], key=lambda row: row["harmonic_mean"])["step"]
    assert selection["chosen"] == best == run.metrics["selection"]["chosen"]
    for file, step in ((run.adapter, best), (run.folder / "adapter-last.safetensors", 6)):
        at_step, _ = load_tensors(run.folder / "checkpoints" / f"step-{step:06d}" / "adapter.safetensors")
        found, _ = load_tensors(file)
        assert found.keys() == at_step.keys() and all(torch.equal(found[name], at_step[name]) for name in found)

    # Repeated, it makes nothing again: what was chosen stays, though its checkpoint is gone.
    chosen = b"a file that no training would write"
    run.adapter.write_bytes(chosen)
    for step in (2, 4):
        shutil.rmtree(run.folder / "checkpoints" / f"step-{step:06d}")
    assert select_step(base, concept.standing_alone(), run.folder, prompts=2) == selection
    assert run.adapter.read_bytes() == chosen


def test_templates_are_drawn_for_pictures_without_a_caption(base, concept, tmp_path):
    seen = set()
    encode = base.tokenize
    base.tokenize = lambda prompts: (seen.update(prompts), encode(prompts))[1]
    train_subject(
        base, concept, method=Perfusion(), out=tmp_path / "run", templates=("photo of a {}", "the {}"), **SETTINGS
    )
    assert {"photo of a <biscuit>", "the <biscuit>", "a <biscuit> on the red background"} <= seen
    with pytest.raises(Refused, match="expected one {} where the concept goes"):
        train_subject(base, concept, method=Perfusion(), out=tmp_path / "b", templates=("a {} {}",), **SETTINGS)


def test_settings_that_cannot_be_met_are_refused_before_anything_is_written(base, concept, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(Refused, match="perfusion learns a new word for the concept; leave train_token on"):
        train_subject(base, concept, method=Perfusion(), out=out, train_token=False, **SETTINGS)
    with pytest.raises(Refused, match="select chooses among the checkpoints"):
        train_subject(base, concept, method=Perfusion(), out=out, select=4, **SETTINGS)
    for path in concept.folder.glob("1-masklabel.png"):
        Image.new("L", (32, 32), 0).save(path)
    with pytest.raises(Refused, match="1-masklabel.png marks nothing"):
        load_concept(concept.folder, "cat")
    assert not out.exists()


def test_what_chooses_the_step_is_looked_for_before_the_training(tiny_base, concept, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # a photo base is judged by CLIP, which is not here
    out, settings = tmp_path / "run", SETTINGS | {"checkpoint_every": 2, "keep_checkpoints": 0}
    with pytest.raises(Refused, match="clip"):
        train_subject(tiny_base, concept, method=Perfusion(), out=out, select=4, **settings)
    assert not out.exists()


def test_22_the_mask_weighs_by_its_shape_alone(base):
    latents, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    times, text = torch.tensor([100, 600]), base.condition(["a cat", "a dog"]).text.detach()

    def loss(mask=None):
        batch = Batch(latents, noise, times, Conditioning(text=text), ("target",) * 2, mask=mask)
        return Masked(base.noise_schedule).losses(base.denoise, batch)

    torch.testing.assert_close(loss(torch.ones(2, 1, 8, 8)), loss(), rtol=1e-5, atol=0)
    mask = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(loss(0.3 * mask), loss(mask), rtol=1e-5, atol=0)
    assert not torch.allclose(loss(mask), loss())


def test_23_with_locked_keys_a_target_is_learned_and_other_prompts_stay(base):
    attachment = attach(base, Perfusion(), tokens={"<x>": "cat"})
    noisy, wanted = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    times, rows = torch.tensor([500]), ["a <x>"]
    other = base.condition(["a dog"]).text.detach()
    attachment.enabled = False
    with torch.no_grad():
        before = base.denoise(noisy, times, Conditioning(text=other))
        start = base.denoise(noisy, times, base.condition(["a cat"]))
    attachment.enabled = True
    wanted = start + 0.02 * wanted.mean(1, keepdim=True).sign()  # what a few numbers can reach
    (word,) = [p for name, p in attachment.named_parameters() if name.endswith("vectors")]
    groups = [{"params": [attachment.shared.targets], "lr": 0.1}, {"params": [word], "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    attachment.train()
    losses = []
    for _ in range(100):
        ids = base.tokenize(rows)
        text = base.encode_ids(ids)
        attachment.begin(SideInputs(token_ids=ids, text=text))
        loss = (base.denoise(noisy, times, Conditioning(text=text)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        attachment.project_()
        losses.append(float(loss.detach()))
    assert min(losses[-10:]) < 0.5 * losses[0]
    attachment.train(False)
    attachment.begin(SideInputs(token_ids=base.tokenize(["a dog"]), text=other))
    with torch.no_grad():
        assert torch.equal(base.denoise(noisy, times, Conditioning(text=other)), before)
