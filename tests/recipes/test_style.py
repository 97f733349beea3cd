"""The style recipe: what it learns from, what it writes, and what it refuses."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA, Perfusion, StyleInject, attach
from diffadapt.config import read_toml
from diffadapt.data.cache import TensorCache
from diffadapt.data.shards import load_shards
from diffadapt.data.styles import load_styles
from diffadapt.errors import Failed, Refused
from diffadapt.evaluation.evaluate_style import evaluate_style
from diffadapt.evaluation.held_out_loss import held_out_loss
from diffadapt.files import load_tensors
from diffadapt.recipes.job import RECIPES, read_job
from diffadapt.recipes.style import collapse, train_style
from diffadapt.training.style_pictures import CaptionedPictures, StreamedPictures

FEW = {"steps": 2, "batch_size": 2, "sample_every": 0, "checkpoint_every": 1, "evaluation_pictures": 0, "quiet": True}


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def write_style(folder, count: int, seed: int = 0):
    folder.mkdir(parents=True)
    for i in range(count):
        picture(seed + i).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("a cat" if i % 2 else "a dog on a red background")
    return folder


@pytest.fixture
def folder(tmp_path):
    write_style(tmp_path / "styles" / "ink", 6)
    write_style(tmp_path / "styles" / "oil", 5, seed=50)
    return tmp_path / "styles"


def write_shards(folder):
    pytest.importorskip("webdataset")
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(4):
                file = io.BytesIO()
                picture(10 * shard + i).save(file, "png")
                for suffix, data in (("png", file.getvalue()), ("txt", b"a cat")):
                    entry = tarfile.TarInfo(f"{i}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
    return folder


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_folder_of_folders_is_as_many_styles_and_the_last_pictures_are_kept_back(folder):
    styles = load_styles(folder, held_out=2)
    assert {name: len(each) for name, each in styles.pictures.items()} == {"ink": 4, "oil": 3}
    assert [each.path.name for each in styles.held_out["ink"].examples] == ["04.png", "05.png"]
    assert load_styles(folder / "ink", held_out=0).held_out == {}


def test_styles_that_cannot_be_are_refused(folder, tmp_path):
    with pytest.raises(Refused, match="5 captioned pictures; 4 are kept back .* 2 or more must be left"):
        load_styles(folder / "oil", held_out=4)
    with pytest.raises(Refused, match="two styles are called 'ink'"):
        load_styles([folder / "ink", write_style(tmp_path / "ink", 5)], held_out=1)
    (tmp_path / "bare").mkdir()
    picture(0).save(tmp_path / "bare" / "0.png")
    with pytest.raises(Refused, match="has a caption"):
        load_styles(tmp_path / "bare")


def test_every_picture_comes_once_in_a_round_with_its_own_caption_and_dropout_empties_some(tiny_v_base, folder):
    styles = load_styles(folder, held_out=1)

    def source(dropout: float) -> CaptionedPictures:
        return CaptionedPictures(
            tiny_v_base, styles.pictures, resolution=32, caption_dropout=dropout, seed=0, process=0, cache=TensorCache()
        )

    rng = np.random.default_rng(0)
    rows = source(0).pick(rng, 9, 0)
    assert sorted(index for index, _ in rows) == list(range(9))
    assert [caption for _, caption in sorted(rows)] == styles.captions()
    assert {caption for _, caption in source(1).pick(rng, 9, 0)} == {""}
    expected = tiny_v_base.encode_pictures(styles.pictures["oil"].pixels([0], 32))[0]
    torch.testing.assert_close(source(0).fetch(5).latents, expected)


def test_a_folder_that_shrinks_while_it_is_read_stops_with_the_pictures_name(tiny_v_base, folder):
    styles = load_styles(folder / "ink", held_out=0)
    source = CaptionedPictures(tiny_v_base, styles.pictures, resolution=32, seed=0, process=0, cache=TensorCache())
    (folder / "ink" / "03.png").unlink()
    with pytest.raises(Failed, match=r"03\.png was there when the training began and is gone; put it back"):
        source.fetch(3)


def test_a_stream_resumes_at_its_place(tiny_v_base, tmp_path):
    shards = load_shards(write_shards(tmp_path / "shards"))
    rng = np.random.default_rng(0)
    whole = StreamedPictures(tiny_v_base, shards, resolution=32, seed=0)
    rows = [whole.fetch(index).latents for place in (0, 3, 6) for index, _ in whole.pick(rng, 3, place)]
    resumed = StreamedPictures(tiny_v_base, shards, resolution=32, seed=0)
    again = [resumed.fetch(index).latents for index, _ in resumed.pick(rng, 3, 6)]
    assert len({row.sum().item() for row in rows[:8]}) == 8
    assert all(torch.equal(a, b) for a, b in zip(rows[6:], again, strict=True))


# --- the run ----------------------------------------------------------------------------------------------------------


def test_a_run_learns_measures_and_resumes_to_the_same_bits(tiny_v_base, folder, tmp_path):
    styles = load_styles(folder, held_out=2)
    settings = {**FEW, "method": StyleInject(rank=1), "evaluation_pictures": 3}
    run = train_style(tiny_v_base, styles, out=tmp_path / "whole", **settings)
    assert set(run.metrics["values"]) == {
        "style_distance",
        "style_distance (second)",
        "text_alignment",
        "content_kept",
        "style_fid",
        "drift_features",
        "preference_stand_in",
        "loss_style",
        "loss_world",
    }
    assert set(run.metrics["held_out_loss"]) == {"style", "world"}
    assert "Loss on held-out pictures, by noise level" in run.report.read_text()
    assert set(run.metrics["by_style"]) == {"ink", "oil"} and run.report.is_file()
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["router_entropy"] for row in rows] == [pytest.approx(2.0, abs=1e-4)] * 2
    assert (run.folder / "styles" / "oil" / "01-adapted.png").is_file()

    def stop(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_style(tiny_v_base, styles, out=tmp_path / "stopped", watch=stop, **settings)
    assert not tiny_v_base.attachments
    again = train_style(tiny_v_base, styles, out=tmp_path / "stopped", **settings)
    one, other = (load_tensors(each.adapter)[0] for each in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_held_out_picture_of_one_style_leaves_out_what_needs_more(tiny_v_base, folder):
    held_out = load_styles(folder, held_out=1).held_out
    few = {"most": 3, "drift_count": 3, "steps": 1}
    found = evaluate_style(tiny_v_base, {"ink": held_out["ink"]}, adapters=[], **few)
    assert "style_fid" not in found["values"] and "style_fid" not in found["by_style"]["ink"]
    distance = found["values"]["style_distance"]
    assert distance["n"] == 1 and distance["low"] is distance["high"] is None  # three pictures of one caption


def test_a_style_that_changes_nothing_loses_nothing_on_held_out_pictures_and_on_the_bases_own(tiny_v_base, folder):
    held_out, few = load_styles(folder, held_out=2).held_out, {"most": 3, "drift_count": 3, "steps": 1}
    attachment = attach(tiny_v_base, LoRA(rank=1))
    still = evaluate_style(tiny_v_base, held_out, adapters=[(attachment, 1.0)], **few)["values"]
    assert still["loss_style"]["value"] == still["loss_world"]["value"] == 0  # the noise is paired
    assert still["loss_style"]["n"] == 4 and still["loss_world"]["n"] == 3
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.3
    moved = evaluate_style(tiny_v_base, held_out, adapters=[(attachment, 1.0)], **few)["values"]
    each = [held_out[name] for name in ("ink", "oil")]
    pictures = torch.cat([part.pixels([0, 1], 32) for part in each])
    captions = [part.caption(i) for part in each for i in (0, 1)]
    after = held_out_loss(tiny_v_base, pictures, captions)
    attachment.detach()
    by_hand = float((after - held_out_loss(tiny_v_base, pictures, captions)).mean())
    assert moved["loss_style"]["value"] == pytest.approx(by_hand, abs=1e-6) != 0


def test_a_picture_or_caption_that_changed_is_no_run_to_resume(tiny_v_base, folder, tmp_path):
    def train():
        styles = load_styles(folder, held_out=1)
        return train_style(tiny_v_base, styles, method=LoRA(rank=1), out=tmp_path / "run", **FEW)

    train()
    train()  # the same pictures: nothing is left to do
    for changed in (folder / "ink" / "00.png", folder / "oil" / "04.png"):  # the last one is kept back
        before = changed.read_bytes()
        picture(99).save(changed)
        with pytest.raises(Refused, match=rf"other settings \(it has '{changed.parent.name} = \"\d pictures"):
            train()
        changed.write_bytes(before)
    (folder / "ink" / "00.txt").write_text("a bird")
    with pytest.raises(Refused, match="other settings"):
        train()


def test_shards_that_changed_are_no_run_to_resume(tmp_path):
    shards = load_shards(write_shards(tmp_path / "shards"))
    before = shards.identity()
    assert load_shards(tmp_path / "shards").identity() == before
    data = bytearray(shards.paths[1].read_bytes())
    data[2000] ^= 1  # within the first picture; the size stays
    shards.paths[1].write_bytes(data)
    assert load_shards(tmp_path / "shards").identity() != before


def test_shards_are_trained_on_and_run_toml_says_so(tiny_v_base, tmp_path):
    shards = load_shards(write_shards(tmp_path / "shards"))
    run = train_style(tiny_v_base, shards, method=LoRA(rank=1), out=tmp_path / "run", caption_dropout=0.5, **FEW)
    table = read_toml(run.folder / "run.toml")
    assert table["recipe"] == "style" and table["style"] == {"folder": str(tmp_path / "shards"), "shards": True}
    assert read_job(table).data.shards


def test_a_folders_run_toml_can_be_run_again(tiny_v_base, folder, tmp_path):
    run = train_style(
        tiny_v_base, load_styles(folder, held_out=1), method=LoRA(rank=1), out=tmp_path / "run", **FEW | {"steps": 1}
    )
    data = read_job(read_toml(run.folder / "run.toml")).data
    assert (
        load_styles([data.folder, *data.also], held_out=data.held_out).captions()
        == load_styles(folder, held_out=1).captions()
    )


def test_one_style_for_several_branches_is_said(tiny_v_base, folder, tmp_path, capsys):
    one = load_styles(folder / "ink", held_out=0)
    train_style(tiny_v_base, one, method=StyleInject(rank=1), out=tmp_path / "a", **FEW | {"steps": 1, "quiet": False})
    assert "one style for 4 branches" in capsys.readouterr().err


def test_collapsed_routers_are_said_with_their_entropy(tmp_path):
    def log(bits: float) -> None:
        row = json.dumps({"step": 1, "loss": 1.0, "router_entropy": bits})
        (tmp_path / "log.jsonl").write_text(f"{row}\n{row}\n")

    log(0.1)
    assert "use one of 4 branches (entropy 0.10 of 2.00 bits over the last 2 steps)" in collapse(
        tmp_path, StyleInject()
    )
    assert collapse(tmp_path, StyleInject(branches=1)) == "" and collapse(tmp_path, LoRA()) == ""
    log(1.5)
    assert collapse(tmp_path, StyleInject()) == ""


def test_a_method_that_needs_a_word_is_refused(tiny_v_base, folder, tmp_path):
    with pytest.raises(Refused, match="'perfusion' cannot learn a style"):
        train_style(tiny_v_base, load_styles(folder, held_out=0), method=Perfusion(), out=tmp_path / "a", **FEW)


def test_methods_that_need_no_word_are_the_recipes():
    assert {"style_inject", "lora", "oft", "selective"} <= set(RECIPES["style"].methods)
    assert {"style_inject", "lora", "oft", "selective"} <= set(RECIPES["distill"].methods)
    assert not {"perfusion", "token", "hint"} & set(RECIPES["style"].methods)
