"""Several concepts learned together, each with its own word."""

import json

import pytest
import torch
from perfusion_cases import prepared
from PIL import Image

import diffadapt as da
from diffadapt.adapters import Perfusion, Selective
from diffadapt.adapters.custom_diffusion import ROLES
from diffadapt.config import read_toml
from diffadapt.errors import Refused
from diffadapt.recipes.job import read_job
from diffadapt.recipes.subject import train_subject

SETTINGS = {
    "steps": 2, "batch_size": 2, "prior_pictures": 2, "sample_every": 2, "evaluation_prompts": 2,
    "evaluation_pictures": 2, "quiet": True,
}  # fmt: skip


@pytest.fixture
def concepts(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name, count in (("biscuit", 2), ("rex", 3)):
        (tmp_path / name).mkdir()
        for i in range(count):
            array = (torch.rand(32, 32, 3, generator=generator) * 255).byte().numpy()
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    (tmp_path / "rex" / "1.txt").write_text("a dog on the red background")
    return [da.load_concept(tmp_path / "biscuit", "cat"), da.load_concept(tmp_path / "rex", "dog")]


def test_pictures_and_captions_are_those_of_all(concepts):
    joined = da.join_concepts(concepts)
    assert len(joined) == 5 and joined.pixels(32).shape == (5, 3, 32, 32)
    assert torch.equal(joined.pixels(32)[2:], concepts[1].pixels(32))
    assert joined.captions() == [
        "a <biscuit> cat", "a <biscuit> cat", "a <rex> dog", "a <rex> dog on the red background", "a <rex> dog",
    ]  # fmt: skip
    assert joined.standing_alone().captions()[3] == "a <rex> on the red background"
    assert joined.tokens == {"<biscuit>": "cat", "<rex>": "dog"} and joined.class_prompts == ["a cat", "a dog"]
    assert da.join_concepts(concepts[:1]) is concepts[0]
    assert [row["file"] for row in joined.crop_table()][1:3] == ["biscuit/1.png", "rex/0.png"]
    with pytest.raises(Refused, match="two of the concepts have one word: <biscuit>, <biscuit>"):
        da.join_concepts([concepts[0], concepts[0]])


def test_custom_diffusion_learns_several_together(tiny_v_base, concepts, tmp_path):
    run = train_subject(
        tiny_v_base, da.join_concepts(concepts), method=Selective(), roles=ROLES, out=tmp_path / "run", **SETTINGS
    )
    attachment = da.load_adapter(tiny_v_base, run.adapter)
    assert attachment.tokens == {"<biscuit>": "cat", "<rex>": "dog"}
    attachment.detach()
    assert set(run.metrics["also"]) == {"<rex>"} and "subject_fidelity" in run.metrics["also"]["<rex>"]
    prompts = json.loads((run.folder / "samples" / "prompts.json").read_text())["prompts"]
    assert prompts[-1] == "a <biscuit> cat next to a <rex> dog" and len(prompts) == 7
    bank = next((tmp_path / "memory_banks").glob("cat-dog-*"))
    rows = json.loads((bank / "bank.json").read_text())["pictures"]
    assert [row["prompt"] for row in rows] == ["a cat", "a dog"]
    job = read_job(read_toml(run.folder / "run.toml"))
    assert job.data.also == (f"{tmp_path / 'rex'}=dog=<rex>",)


@pytest.mark.parametrize("entry", ["{}=dog", "{}=dog=<it>"])
def test_a_folder_may_have_the_mark_between_it_and_its_noun_in_its_name(concepts, tmp_path, entry):
    (tmp_path / "rex").rename(tmp_path / "size=32")
    also = [entry.format(tmp_path / "size=32")]
    concept = read_job({"concept": {"folder": str(tmp_path / "biscuit"), "noun": "cat", "also": also}}).concept()
    assert len(concept) == 5 and list(concept.tokens.values()) == ["cat", "dog"]
    assert ("<it>" in concept.tokens) == entry.endswith("<it>")


def test_what_cannot_be_read_or_learned_together_is_refused(tiny_v_base, concepts, tmp_path):
    job = read_job({"concept": {"folder": str(tmp_path / "biscuit"), "noun": "cat", "also": ["photos/rex"]}})
    with pytest.raises(Refused, match="expected FOLDER=NOUN or FOLDER=NOUN=TOKEN, got 'photos/rex'"):
        job.run()
    with pytest.raises(Refused, match="one new word.* got <biscuit>, <rex>"):
        train_subject(
            prepared(tiny_v_base), da.join_concepts(concepts), method=Perfusion(), out=tmp_path / "run", **SETTINGS
        )
    assert not (tmp_path / "run").exists()
