"""An evaluation: learned, followed, leaked, drifted and the loss, each beside what it is compared with."""

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA, attach
from diffadapt.data.cache import TensorCache
from diffadapt.data.concept import load_concept
from diffadapt.data.picture import to_picture, to_tensor
from diffadapt.errors import Refused
from diffadapt.evaluation import judge
from diffadapt.evaluation.evaluate import evaluate, picture_count
from diffadapt.evaluation.forgetting import about_its_kind
from diffadapt.evaluation.judge import class_prompt_count
from diffadapt.metrics import load_features


@pytest.fixture(scope="module")
def scores(tiny_v_folder, tmp_path_factory):
    """(as it starts, moved): an adapter that changes nothing, and one that changes much."""
    from diffadapt.bases import load_base

    photos = tmp_path_factory.mktemp("photos")
    for i, colour in enumerate(("red", "blue")):
        Image.new("RGB", (48, 48), colour).save(photos / f"{i}.png")
    base, concept = load_base(tiny_v_folder, device="cpu"), load_concept(photos, "cat")
    attachment = attach(base, LoRA(rank=2), tokens={concept.token: "cat"})
    found = []
    for move in (0.0, 0.5):
        with torch.no_grad():
            for parameter in attachment.parameters():
                parameter += move
        asked = {"prompts": 2, "per_prompt": 2, "drift_count": 4, "steps": 2}
        found.append(evaluate(base, concept, adapters=[(attachment, 1.0)], features=["probe"], **asked))
    return found


def test_an_adapter_that_changes_nothing_forgets_nothing(scores):
    values = scores[0]["values"]
    assert values["drift_features"]["value"] == pytest.approx(0, abs=1e-6)
    assert values["class_leakage"]["value"] == pytest.approx(values["class_leakage"]["base"], abs=1e-6)
    assert values["class_diversity"]["value"] == pytest.approx(values["class_diversity"]["base"], abs=1e-6)
    assert values["loss_class"]["value"] == values["loss_world"]["value"] == 0


def test_what_changes_is_seen_in_the_class_in_other_things_and_in_the_loss(scores):
    values = scores[1]["values"]
    assert values["drift_features"]["value"] > 0 and values["loss_class"]["value"] != 0
    assert values["class_leakage"]["value"] != pytest.approx(values["class_leakage"]["base"], abs=1e-6)


def test_the_floor_of_a_re_drawn_base_stands_beside_what_was_forgotten(scores):
    values = scores[0]["values"]
    for name in ("drift_features", "class_leakage", "class_diversity"):
        assert isinstance(values[name]["floor"], float) and "drawn again from other seeds" in values[name]["meaning"]
    assert values["drift_features"]["floor"] > 0  # the base against itself


def test_the_loss_is_told_by_noise_level_for_three_sets(scores):
    told = scores[1]["held_out_loss"]
    assert set(told) == {"concept", "class", "world"}
    assert all(len(each["levels"]) == len(each["adapted"]) == len(each["base"]) == 5 for each in told.values())


def test_every_picture_comes_with_its_prompt_seed_and_scores(scores):
    found = scores[1]
    rows = found["per_picture"]
    assert len(rows) == len(found.pictures) == 4 and [row["seed"] for row in rows] == [0, 1, 0, 1]
    assert rows[0]["prompt"] == rows[1]["prompt"] != rows[2]["prompt"]
    for name in ("subject_fidelity", "text_alignment"):
        mean = sum(row[name] for row in rows) / len(rows)
        assert mean == pytest.approx(found["values"][name]["value"], abs=1e-6)
    assert "diversity" not in rows[0] and found.pictures[0].size == (32, 32)


def test_two_encoders_of_one_kind_stand_beside_each_other(tiny_v_base, tmp_path, monkeypatch):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "0.png")
    one, other = (load_features("probe") for _ in range(2))
    one.name, other.name = "dino:one", "dino:other"
    monkeypatch.setattr("diffadapt.evaluation.evaluate.load_encoders", lambda *_: [one, other])
    few = {"prompts": 1, "per_prompt": 1, "drift_count": 1, "steps": 1}
    values = evaluate(tiny_v_base, load_concept(tmp_path, "cat"), adapters=[], **few)["values"]
    assert {"subject_fidelity (dino:one)", "subject_fidelity (dino:other)"} <= set(values)
    assert values["subject_fidelity (dino:one)"]["low"] is None  # of one prompt there is no interval


def test_prompts_about_things_of_the_same_kind_are_near():
    prompts = ["a flat dog at night", "a 3d car on a red background", "an animal"]
    assert about_its_kind(prompts, "cat").tolist() == [True, False, False]
    assert about_its_kind(prompts, "animal").tolist() == [True, False, False]
    assert about_its_kind(["a photo of a mountain"], "toaster").tolist() == [False]


def test_progress_counts_every_picture_that_an_evaluation_draws(tiny_v_base, tmp_path, capsys):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "0.png")
    attachment = attach(tiny_v_base, LoRA(rank=1))
    few = {"prompts": 2, "per_prompt": 1, "drift_count": 3, "steps": 1, "features": ["probe"]}
    evaluate(tiny_v_base, load_concept(tmp_path, "cat"), adapters=[(attachment, 1.0)], quiet=False, **few)
    total = picture_count(2, 1, 3)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"evaluate {total}/{total}"


def test_the_base_s_own_pictures_are_drawn_once_for_all_that_is_measured_beside_them(
    tiny_v_base, tmp_path, monkeypatch, capsys
):
    base, drawn = tiny_v_base, []
    Image.new("RGB", (32, 32), "red").save(tmp_path / "0.png")
    concept = load_concept(tmp_path, "cat")
    attachment = attach(base, LoRA(rank=1))
    path = attachment.save(tmp_path / "adapter.safetensors")
    attachment.detach()
    generate = judge.generate
    monkeypatch.setattr(judge, "generate", lambda base, lines, **more: drawn.append(len(lines)) or generate(
        base, lines, **more
    ))  # fmt: skip

    def measured(adapter=path, kept=None, seed=0):
        drawn.clear()
        few = {"prompts": 2, "per_prompt": 1, "drift_count": 3, "steps": 1, "features": ["probe"], "seed": seed}
        return dict(evaluate(base, concept, adapters=[(adapter, 1.0)], kept=kept, quiet=False, **few)), sum(drawn)

    total, adapted = picture_count(2, 1, 3), 2 + class_prompt_count(2) + 3
    plain, count = measured()
    assert count == total
    kept = TensorCache(tmp_path / "untouched")
    assert measured(kept=kept) == (plain, total)
    capsys.readouterr()
    assert measured(kept=TensorCache(kept.folder)) == (plain, adapted)
    assert capsys.readouterr().err.splitlines()[-1] == f"evaluate {total}/{total}"
    assert measured(kept=kept, seed=1)[1] == total  # other pictures
    for file in kept.folder.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    assert measured(kept=TensorCache(kept.folder)) == (plain, total)

    attached = attach(base, LoRA(rank=1))
    elsewhere = TensorCache(tmp_path / "elsewhere")
    measured(attached, kept=elsewhere)
    assert not (tmp_path / "elsewhere").exists()  # no untouched base: something is attached, at whatever strength
    attached.detach()


def test_pictures_are_judged_as_a_file_holds_them(tiny_v_base):
    (pixels,) = judge.draw(tiny_v_base, ["a cat"], steps=1)
    (raw,) = judge.generate(tiny_v_base, [judge.default_line(tiny_v_base, "a cat", 0, steps=1)])
    assert torch.equal(pixels, to_tensor(to_picture(raw)) / 255) and not torch.equal(pixels, raw)


def test_beside_something_else_that_is_on_the_base_is_not_called_untouched(base, tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "0.png")
    concept, other = load_concept(tmp_path, "cat"), attach(base, LoRA(rank=1))
    with pytest.raises(Refused, match="not among the adapters to measure"):
        evaluate(base, concept, adapters=[])
    with pytest.raises(Refused, match="needs 1 or more prompts"):  # what is asked next
        evaluate(base, concept, adapters=[(other, 1.0)], prompts=0)
    other.enabled = False
    with pytest.raises(Refused, match="needs 1 or more prompts"):
        evaluate(base, concept, adapters=[], prompts=0)


@pytest.mark.parametrize("wrong", [{"seed": -5}, {"steps": 0}])
def test_a_seed_and_steps_that_cannot_be_are_refused(base, tmp_path, wrong):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "0.png")
    with pytest.raises(Refused, match="expected a seed from 0 to .* and 1 or more steps"):
        evaluate(base, load_concept(tmp_path, "cat"), adapters=[], **wrong)
