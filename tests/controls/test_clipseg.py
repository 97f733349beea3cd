"""CLIPSeg's masks, with a tiny model of the real layout saved to disk."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffadapt.cli.main import main
from diffadapt.controls.clipseg import ClipSeg
from diffadapt.data.concept import load_concept
from diffadapt.errors import Refused


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation, CLIPTokenizer

    from diffadapt.bases.quiet import quiet

    folder = tmp_path_factory.mktemp("clipseg")
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 32,
    }  # fmt: skip
    config = CLIPSegConfig(
        text_config=text, vision_config=vision, projection_dim=16, reduce_dim=8, extract_layers=[0, 1, 2],
        decoder_num_attention_heads=2, decoder_intermediate_size=16,
    )  # fmt: skip
    with quiet():
        CLIPSegForImageSegmentation(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def test_masks_are_soft_and_reach_one_in_each_picture(model_folder):
    pictures = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    masks = ClipSeg(str(model_folder)).masks(pictures, "cat")
    assert masks.shape == (2, 1, 40, 56)
    assert masks.amax((1, 2, 3)).tolist() == [1, 1] and masks.min() >= 0
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks, ClipSeg(str(model_folder)).masks(pictures, "dog"))


def test_the_command_writes_a_mask_for_each_picture_that_has_none(model_folder, tmp_path, capsys):
    folder = tmp_path / "biscuit"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        array = (torch.rand(48, 48, 3, generator=generator) * 255).byte().numpy()
        Image.fromarray(array).save(folder / f"{name}.png")
    painted = Image.new("L", (48, 48), 255)
    painted.save(folder / "b-masklabel.png")
    before = (folder / "b-masklabel.png").read_bytes()
    assert main(["masks", str(folder), "--noun", "cat", "--model", str(model_folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder / "a-masklabel.png")]
    assert (folder / "b-masklabel.png").read_bytes() == before
    masks = load_concept(folder, "cat").masks(48)
    assert masks.shape == (2, 1, 48, 48) and masks[0].max() == 1 and masks[1].min() == 1


def test_a_model_that_is_not_there_or_of_another_kind_is_refused(model_folder, tmp_path):
    with pytest.raises(Refused, match="cannot load the mask model .* NAME-masklabel.png"):
        ClipSeg(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(Refused, match="is a 'bert' model; expected a CLIPSeg model"):
        ClipSeg(str(tmp_path))


@pytest.mark.parametrize("device", ["gpu", "cuda:77"])
def test_a_device_that_is_not_here_is_refused(model_folder, device):
    with pytest.raises(Refused, match=f"device '{device}' cannot be used here"):
        ClipSeg(str(model_folder), device=device)


def test_a_folder_that_is_not_there_is_refused(capsys):
    assert main(["masks", "/nowhere", "--noun", "cat"]) == 2
    assert "no folder at /nowhere" in capsys.readouterr().err
