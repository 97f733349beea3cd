"""Questions about pictures, answered by a tiny model of transformers' own kind, saved to disk and loaded for real."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics.questions import QUESTION, Questions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "yes", "no", "does", "this", "picture", "show",
         '"', "?", "a", "cat", "in", "the", "snow", "dog", "on", "red"]  # fmt: skip


def save_blip(folder, words=WORDS):
    from transformers import BertTokenizer, BlipConfig, BlipForQuestionAnswering

    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"projection_dim": 8}
    text = {**small, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 32,
            "bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 16}, projection_dim=8)
    torch.manual_seed(0)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return Questions(str(save_blip(tmp_path_factory.mktemp("blip"))))


PICTURES = torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))


def test_each_picture_is_asked_its_own_question_whatever_stands_beside_it(questions):
    prompts = ["a cat in the snow", "a dog", "a cat in the snow"]
    together = questions.yes(PICTURES, prompts)
    alone = torch.cat([questions.yes(PICTURES[i : i + 1], [prompt]) for i, prompt in enumerate(prompts)])
    assert together.shape == (3,) and together.allclose(alone, atol=1e-6)
    assert ((together > 0) & (together < 1)).all()


def test_the_answer_is_that_of_the_model_of_transformers(questions):
    """Its own `forward`, which gives a loss: the mean of minus the logarithm of each token of the answer."""
    ids = questions.tokenizer(QUESTION.format("a cat"), return_tensors="pt").input_ids
    pixels = questions.prepare(PICTURES[:1])
    with torch.no_grad():
        losses = [
            float(questions.model(ids, pixels, labels=torch.tensor([[5, answer]])).loss) for answer in questions.answers
        ]
    odds = torch.tensor([-loss for loss in losses]).softmax(0)[0]
    assert float(questions.yes(PICTURES[:1], ["a cat"])) == pytest.approx(float(odds), abs=0.02)


def test_another_question_gets_another_answer(questions):
    same = PICTURES[:1].expand(2, -1, -1, -1)
    first, second = questions.yes(same, ["a cat in the snow", "a dog on the red"]).tolist()
    assert first != second


def test_counts_that_differ_and_models_of_other_kinds_are_refused(questions, tmp_path):
    with pytest.raises(Refused, match="prompt of each picture"):
        questions.yes(PICTURES, ["a cat"])
    with pytest.raises(Refused, match="no single words for yes and no"):
        Questions(str(save_blip(tmp_path, [word for word in WORDS if word != "yes"])))
    from transformers import ViTConfig

    other = tmp_path / "vit"
    other.mkdir()
    ViTConfig().save_pretrained(other)
    with pytest.raises(Refused, match="'vit' model; expected one of blip"):
        Questions(str(other))


def test_an_evaluation_asks_where_it_is_told_to(questions, tiny_v_folder, tmp_path):
    from PIL import Image

    from diffadapt.adapters import LoRA, attach
    from diffadapt.bases import load_base
    from diffadapt.data.concept import load_concept
    from diffadapt.evaluation.evaluate import evaluate

    Image.new("RGB", (48, 48), "red").save(tmp_path / "0.png")
    base, concept = load_base(tiny_v_folder, device="cpu"), load_concept(tmp_path, "cat")
    attachment = attach(base, LoRA(rank=2), tokens={concept.token: "cat"})
    asked = {"prompts": 1, "per_prompt": 2, "drift_count": 1, "steps": 1, "features": ["probe"]}
    row = evaluate(base, concept, adapters=[(attachment, 1.0)], questions=questions.source, **asked)["values"][
        "says_yes"
    ]
    assert 0 < row["value"] < 1 and row["value"] == pytest.approx(row["base"])  # a fresh LoRA changes nothing
    assert "probability of yes" in row["meaning"]
