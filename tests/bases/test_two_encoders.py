"""New words on bases with two CLIP text encoders (Stable Diffusion XL and 3), learned in both."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffadapt.adapters import RANDOM_START, CLoRA, LoRA, Perfusion, Token, attach, load_adapter
from diffadapt.bases import load_base
from diffadapt.bases.quiet import quiet
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused
from diffadapt.interchange import export_adapter, import_adapter
from diffadapt.recipes.subject import train_subject
from diffadapt.sampling.sample import sample

from .test_stable_diffusion_3 import make_sd3
from .test_stable_diffusion_xl import make_sdxl

TABLES = {
    "xl": ("text_encoder.embeddings.token_embedding", "text_encoder_2.text_model.embeddings.token_embedding"),
    "3": ("text_encoder.text_model.embeddings.token_embedding", "text_encoder_2.text_model.embeddings.token_embedding"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("two")
    (place / "3").mkdir()
    return {"xl": make_sdxl(place), "3": make_sd3(place / "3", t5=True)}


@pytest.fixture(params=["xl", "3"])
def kind(request):
    return request.param


@pytest.fixture
def base(folders, kind):
    base = load_base(folders[kind], device="cpu")
    base.default_steps = 2
    return base


def same(one, other) -> bool:
    return torch.equal(one.text, other.text) and torch.equal(one.pooled_text, other.pooled_text)


def test_a_word_begins_in_each_encoder_as_its_noun_and_leaves_nothing_behind(base, kind):
    before, names = base.condition(["a cat"]), [base.pipeline.tokenizer, base.pipeline.tokenizer_2]
    attachment = attach(base, Token(), tokens={"<biscuit>": "cat"})
    assert tuple(attachment.adapters) == tuple(dict.fromkeys(TABLES[kind]))
    if kind == "xl":  # T5 of Stable Diffusion 3 reads "a" where the word stands for the noun
        assert same(base.condition(["a <biscuit>"]), before)
    for adapter in attachment.words:
        adapter.vectors.data += 1.0
    after = base.condition(["a <biscuit>"])
    width = attachment.words[0].vectors.shape[1]
    for part in (after.text[0, 2, :width], after.text[0, 2, width : width + attachment.words[1].vectors.shape[1]]):
        assert not any(torch.equal(part, row[: len(part)]) for row in before.text[0])  # both encoders read the new row
    assert not torch.equal(after.pooled_text, before.pooled_text)
    attachment.strength = 0
    if kind == "xl":
        assert same(base.condition(["a <biscuit>"]), before)
    attachment.detach()
    assert same(base.condition(["a cat"]), before)
    assert [base.pipeline.tokenizer, base.pipeline.tokenizer_2] == names


def test_t5_reads_the_prompt_without_the_new_word(folders):
    base = load_base(folders["3"], device="cpu")
    plain = base.condition(["a cat"]).text[:, 16:]
    attach(base, Token(vectors=2), tokens={"<biscuit>": "cat"})
    assert torch.equal(base.condition(["a <biscuit> cat"]).text[:, 16:], plain)
    assert torch.equal(base.condition(["a <biscuit> <biscuit>_1 cat"]).text[:, 16:], plain)


@pytest.mark.parametrize(
    ("kind", "encoder"), [("xl", "text_encoder_2"), ("3", "text_encoder"), ("3", "text_encoder_2")]
)
def test_pooled_text_is_that_of_the_end_where_an_old_config_says_2(folders, kind, tmp_path, encoder):
    """Such files mean "the largest identity", which a new word's would be."""
    right = load_base(folders[kind], device="cpu").condition(["a cat on a dog"])
    old = shutil.copytree(folders[kind], tmp_path / "old")
    facts = json.loads((old / encoder / "config.json").read_text())
    (old / encoder / "config.json").write_text(json.dumps(facts | {"eos_token_id": 2}))
    base = load_base(old, device="cpu")
    assert same(base.condition(["a cat on a dog"]), right)
    attachment = attach(base, Token(), tokens={"<biscuit>": "cat"})
    found = base.condition(["a <biscuit> on a dog"])
    assert torch.equal(found.pooled_text, right.pooled_text)
    attachment.detach()
    saved = json.loads((base.save(tmp_path / "saved") / encoder / "config.json").read_text())
    assert saved["eos_token_id"] == base.tokenizer.eos_token_id  # plain diffusers reads the saved folder right, too


def test_a_subject_is_learned_saved_loaded_and_leaves_as_diffusers_reads_it(base, kind, folders, tmp_path):
    for i in range(2):
        Image.new("RGB", (32, 32), ("navy", "olive")[i]).save(tmp_path / f"{i}.png")
    run = train_subject(
        base, load_concept(tmp_path, "cat", token="<biscuit>"), method=LoRA(rank=1), out=tmp_path / "run", steps=2,
        batch_size=1, learning_rate=0.01, token_learning_rate=0.05, warmup=0, prior_weight=0, checkpoint_every=1,
        sample_every=0, evaluation_prompts=0, quiet=True,
    )  # fmt: skip
    assert not base.attachments
    attachment = load_adapter(base, run.adapter)
    moved = [float((each.vectors.detach() - each.initial).abs().max()) for each in attachment.words]
    assert len(moved) == 2 and min(moved) > 0.01
    ours = base.condition(["a <biscuit> cat"])
    attachment.detach()
    files, _ = export_adapter(base, run.adapter, tmp_path / "out.safetensors", to="lora")
    (word,) = [file for file in files if "biscuit" in file.name]
    tensors = load_file(word)
    assert list(tensors) == ["clip_g", "clip_l"]

    pipeline = their_pipeline(folders[kind], kind)
    for key, encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer),
        ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        tokenizer.add_tokens("<biscuit>")
        encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        encoder.get_input_embeddings().weight.data[-1] = tensors[key]
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt("a <biscuit> cat", None, *((None,) if kind == "3" else ()))
    places = ours.text.shape[1] if kind == "xl" else 16  # T5 of theirs reads the word's letters
    torch.testing.assert_close(ours.text[:, :places], text[:, :places])
    torch.testing.assert_close(ours.pooled_text, pooled)

    (again,), _ = import_adapter(base, word, tmp_path / "again.safetensors", token="<biscuit>")
    back = load_adapter(base, again)
    assert all(
        torch.equal(each.vectors, tensors[key]) for each, key in zip(back.words, ("clip_l", "clip_g"), strict=True)
    )


def their_pipeline(folder, kind):
    from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

    with quiet():
        if kind == "3":
            return StableDiffusion3Pipeline.from_pretrained(folder)
        return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)


def test_a_merged_folder_knows_the_word_in_both_encoders(base, kind, tmp_path):
    attachment = attach(base, LoRA(rank=1), tokens={"<biscuit>": "cat"})
    for adapter in attachment.words:
        adapter.vectors.data += 0.5
    ours = base.condition(["a <biscuit> cat"])
    picture = sample(base, "a <biscuit> cat", seed=0)[0]
    attachment.merge_()
    saved = base.save(tmp_path / "merged")
    attachment.unmerge_()
    again = load_base(saved, device="cpu")
    again.default_steps = 2
    found = again.condition(["a <biscuit> cat"])
    torch.testing.assert_close(found.pooled_text, ours.pooled_text)
    torch.testing.assert_close(found.text, ours.text)
    assert sample(again, "a <biscuit> cat", seed=0)[0].tobytes() == picture.tobytes()


def test_words_of_several_vectors_and_of_a_sequence_of_tasks(base):
    attachment = attach(base, Token(vectors=2), tokens={"<biscuit>": "cat"})
    assert [tuple(each.vectors.shape)[0] for each in attachment.words] == [2, 2]
    spelled = base.condition(["a <biscuit> <biscuit>_1 cat"])
    assert same(base.condition(["a <biscuit> cat"]), spelled)
    attachment.detach()
    attachment = attach(base, CLoRA(rank=1), tokens={"<a>": RANDOM_START}, seed=1)
    first = [each.vectors.detach().clone() for each in attachment.words]
    attachment.fold_({"<b>": RANDOM_START}, seed=2)
    for adapter, row in zip(attachment.words, first, strict=True):
        assert torch.equal(adapter.past, row) and not torch.equal(adapter.vectors, row)
    before = base.condition(["<a>"])
    for adapter in attachment.words:
        adapter.vectors.data += 1
    assert same(base.condition(["<a>"]), before)


def test_what_stands_on_one_encoder_is_refused_in_a_sentence(base, tmp_path):
    with pytest.raises(Refused, match="has two text encoders, and this works on a base with one"):
        attach(base, Perfusion(), tokens={"<biscuit>": "cat"})
    assert not base.attachments and base.pipeline.tokenizer("<biscuit>").input_ids != [0]
    from diffadapt.files import save_tensors

    single = save_tensors(tmp_path / "word.safetensors", {"emb_params": torch.ones(1, 16)})
    with pytest.raises(Refused, match="for 1 text encoder.s., and .* has 2"):
        import_adapter(base, single, tmp_path / "out.safetensors")
    uneven = save_tensors(tmp_path / "two.safetensors", {"clip_l": torch.ones(1, 16), "clip_g": torch.ones(2, 32)})
    with pytest.raises(Refused, match="has 1 and 2 vectors; .* as many for each encoder"):
        import_adapter(base, uneven, tmp_path / "out.safetensors")


def test_words_of_two_attachments_are_told_apart_in_both_encoders(folders):
    base = load_base(folders["xl"], device="cpu")
    dog = base.condition(["a dog"])
    first, second = (attach(base, Token(), tokens={word: noun}) for word, noun in (("<a>", "cat"), ("<b>", "dog")))
    assert same(base.condition(["a <b>"]), dog)
    for adapter in first.words:
        adapter.vectors.data += 1
    assert same(base.condition(["a <b>"]), dog)
    second.detach()
    assert not same(base.condition(["a <a>"]), base.condition(["a cat"]))
