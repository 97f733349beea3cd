"""A class-conditional transformer learns other classes: its variance, its moving average, its memory, its file."""

import json

import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA, Selective, load_adapter
from diffadapt.bases import load_base
from diffadapt.cli.main import main
from diffadapt.data.class_folders import load_classes
from diffadapt.data.picture import open_picture, to_picture
from diffadapt.evaluation.chain_of_forgetting import losses_at
from diffadapt.files import load_tensors
from diffadapt.objectives import Batch, Denoising
from diffadapt.objectives.variational_bound import variational_bound
from diffadapt.recipes.job import read_job
from diffadapt.recipes.style import train_style
from diffadapt.sampling.sample import default_line, generate
from diffadapt.training.fit import AttachedBase
from diffadapt.training.retention_config import MemoryConfig

FEW = {
    "steps": 3, "batch_size": 4, "warmup": 0, "sample_every": 0, "checkpoint_every": 1, "keep_checkpoints": 0,
    "evaluation_pictures": 0, "memory": MemoryConfig(latents=6, steps=2), "quiet": True,
}  # fmt: skip
REDS, YELLOWS = ("red", "pink", "brown", "maroon", "coral"), ("yellow", "orange", "white", "gold", "khaki")
ROWS = "transformer.transformer_blocks.0.norm1.emb.class_embedder.embedding_table.rows"


@pytest.fixture
def classes(tmp_path):
    for name, colours in {"rose": REDS, "tulip": YELLOWS}.items():
        (tmp_path / "flowers" / name).mkdir(parents=True)
        for i, colour in enumerate(colours):
            Image.new("RGB", (16, 16), colour).save(tmp_path / "flowers" / name / f"{i}.png")
    return load_classes(tmp_path / "flowers", held_out=3)


def train(base, classes, out, method=None, **settings):
    return train_style(base, classes, method=method or Selective(), out=out, seed=1, **{**FEW, **settings})


@pytest.mark.parametrize("method", [Selective(), Selective(train="bias"), LoRA(rank=2)])
def test_the_folders_become_classes_that_train_and_the_file_knows_them(
    tiny_dit, tiny_dit_folder, classes, tmp_path, method
):
    run = train(tiny_dit, classes, tmp_path / "run", method, objective="difftuning", learning_rate=0.01, steps=6)
    assert tiny_dit.classes == ("cat", "dog", "apple")
    rows = load_tensors(run.adapter)[0][ROWS]
    null = tiny_dit.denoiser.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight[-1]
    assert rows.shape == (3, 16) and ((rows - null).abs().amax(1) > 1e-4).all()
    again = load_base(tiny_dit_folder, device="cpu")
    load_adapter(again, run.adapter)
    assert again.condition(["rose", "tulip", "", "dog"]).class_labels.tolist() == [4, 5, 3, 1]


def test_memory_is_of_the_bases_own_classes_and_serves_every_target(tiny_dit, classes, tmp_path):
    train(tiny_dit, classes, tmp_path / "first", objective="difftuning")
    train(tiny_dit, classes, tmp_path / "second", LoRA(rank=1), objective="difftuning")
    (bank,) = (tmp_path / "memory_banks").iterdir()
    assert json.loads((bank / "bank.json").read_text())["settings"]["prompts"] == ["cat", "dog", "apple"]


def test_a_row_costs_its_squared_error_and_the_bound_of_its_variance(tiny_dit):
    torch.manual_seed(0)
    latents, noise, times = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1, 400, 998])
    batch = Batch(latents, noise, times, tiny_dit.condition(["cat", "", "dog"]), ("target",) * 3)
    objective = Denoising(tiny_dit.noise_schedule, learned_variance=True)
    with torch.no_grad():
        found = objective.losses(AttachedBase(tiny_dit, {}), batch)
        noisy = tiny_dit.noise_schedule.add_noise(latents, noise, times)
        output = tiny_dit.denoiser(noisy, timestep=times, class_labels=torch.tensor([0, 3, 1])).sample
    bound = variational_bound(tiny_dit.alphas_cumprod, latents, noisy, times, output[:, :4], output[:, 4:])
    torch.testing.assert_close(found, (output[:, :4] - noise).square().mean((1, 2, 3)) + bound)
    assert bound.min() > 0


def test_training_trains_the_variance_too(tiny_dit, classes, tmp_path):
    run = train(tiny_dit, classes, tmp_path / "run", Selective(), learning_rate=0.01)
    after = load_tensors(run.adapter)[0]["transformer.proj_out_2.values.bias"]  # (patch places x (noise, variance))
    moved = (after - tiny_dit.denoiser.proj_out_2.bias).view(-1, 8).abs().amax(0)
    assert (moved > 1e-3).all()


def test_the_saved_adapter_is_the_moving_average_of_the_steps(tiny_dit, classes, tmp_path):
    settings = {"objective": "difftuning", "learning_rate": 0.01, "schedule": "constant"}
    run = train(tiny_dit, classes, tmp_path / "averaged", ema_decay=0.9, **settings)
    lasts = {
        steps: load_tensors(train(tiny_dit, classes, tmp_path / f"to-{steps}", steps=steps, **settings).adapter)[0]
        for steps in (1, 2, 3)
    }
    start = tiny_dit.denoiser.proj_out_2.bias
    expected = start.clone()
    for n, decay in ((1, 1 / 10), (2, 2 / 11), (3, 3 / 12)):  # min(0.9, (1 + n) / (10 + n)) for n = 0, 1, 2
        expected = decay * expected + (1 - decay) * lasts[n]["transformer.proj_out_2.values.bias"]
    torch.testing.assert_close(
        load_tensors(run.adapter)[0]["transformer.proj_out_2.values.bias"], expected, atol=1e-6, rtol=0
    )


def test_a_transfer_tells_what_it_forgot_by_noise_level_in_metrics_and_report(tiny_v_base, classes, tmp_path):
    run = train(tiny_v_base, classes, tmp_path / "run", LoRA(rank=1), evaluation_pictures=3, switch_pictures=3, steps=1)
    found = run.metrics["chain_of_forgetting"]
    assert len(found["source"]["adapted"]) == len(found["target"]["base"]) == len(found["levels"]) == 10
    assert [share for share, _ in found["switch_curve"]] == [0.0, 0.1, 0.2, 0.5, 1.0]
    page = run.report.read_text(encoding="utf-8")
    assert "What was forgotten and learned, by noise level" in page and "Handing the last steps back" in page
    assert found["weight_distance"]["squared"] > 0


def test_the_command_line_trains_samples_and_merges_new_classes(
    tiny_dit_folder, classes, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    job = {
        "recipe": "transfer", "base": str(tiny_dit_folder), "out": "run", "method": {"name": "lora", "rank": 1},
        "transfer": {"folder": "flowers", "held_out": 3},
        "train": {
            "steps": 1, "batch_size": 4, "objective": "difftuning", "evaluation_pictures": 0,
            "memory": {"latents": 4, "steps": 1},
        },
    }  # fmt: skip
    run = read_job(job).run("cpu")
    assert len(list((run.folder / "samples").rglob("*.png"))) >= 2
    assert set(json.loads((run.folder / "samples" / "prompts.json").read_text())["prompts"]) == {"rose", "tulip"}
    common = ["--base", str(tiny_dit_folder), "--device", "cpu"]
    assert main(["sample", "rose", *common, "--adapter", "run", "--steps", "2", "--out", "made"]) == 0
    assert len(list((tmp_path / "made").glob("*.png"))) == 1
    assert main(["export", "run", "other.safetensors", *common]) == 2
    assert "brings the classes rose, tulip" in capsys.readouterr().err
    assert main(["merge", *common, "--adapter", "run", "--out", "merged"]) == 0
    assert load_base(tmp_path / "merged", device="cpu").classes[-2:] == ("rose", "tulip")


def test_new_classes_are_scored_beside_what_they_started_from(tiny_dit, classes, tmp_path):
    tiny_dit.encoder = "probe"
    run = train(tiny_dit, classes, tmp_path / "run", evaluation_pictures=3, learning_rate=0.05)
    values = run.metrics["values"]
    assert {"style_distance", "style_fid", "drift_features", "loss_world"} <= values.keys()
    assert "text_alignment" not in values and "content_kept" not in values  # the names of classes describe nothing
    lines = [default_line(tiny_dit, "", 1 + i) for i in range(3)]  # where a new class starts is the null class
    null = torch.stack(generate(tiny_dit, lines))
    before = [open_picture(file) for file in sorted((run.folder / "styles" / "rose").glob("*-base.png"))]
    assert [picture.tobytes() for picture in before] == [to_picture(pixels).tobytes() for pixels in null]


def test_off_the_base_is_the_source_again_to_the_last_bit(tiny_dit, classes, tmp_path):
    latents, steps = (
        torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 50, 100, 200]),
    )
    before = losses_at(tiny_dit, latents, steps)
    run = train(tiny_dit, classes, tmp_path / "run", learning_rate=0.01)
    attachment = load_adapter(tiny_dit, run.adapter)
    assert not torch.equal(losses_at(tiny_dit, latents, steps), before)
    attachment.enabled = False
    assert torch.equal(losses_at(tiny_dit, latents, steps), before)
