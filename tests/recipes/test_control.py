"""The control recipe end to end on a tiny base: files, resume, what is learned, refusals."""

import json

import pytest
import torch

from diffadapt.adapters import OFT, Hint, LoRA, Selective, SideInputs, Token, read_adapter
from diffadapt.adapters.control_net import ControlNet
from diffadapt.conditioning import Conditioning
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.data.picture import open_picture, to_tensor
from diffadapt.errors import Failed, Refused
from diffadapt.evaluation.held_out_loss import held_out_loss
from diffadapt.files import load_tensors
from diffadapt.metrics.control_consistency import control_consistency
from diffadapt.objectives import Batch, Denoising
from diffadapt.recipes.control import ControlConfig, train_control
from diffadapt.sampling.adapter_files import adapter_files
from diffadapt.sampling.sample import adapted
from diffadapt.training.control_samples import ControlSamples

FAST = ControlConfig(
    steps=6, batch_size=2, warmup=2, checkpoint_every=2, sample_every=0, evaluation_pairs=0, learning_rate=1e-3
)


def make_pairs(count: int = 6, seed: int = 0) -> ControlPairs:
    """Each picture is of one colour, light or dark, which only its signal says."""
    light = torch.rand(count, 1, 1, 1, generator=torch.Generator().manual_seed(seed)).round()
    pictures = (0.1 + 0.8 * light).expand(count, 3, 32, 32).clone()
    signals = light.expand(count, 3, 32, 32).clone()
    return ControlPairs.in_memory(pictures, signals, ["a cat", "a dog"] * (count // 2), signal="canny")


def bits(run) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in adapter_files(run.folder):
        tensors |= {f"{file.stem}.{key}": value for key, value in load_tensors(file)[0].items()}
    return tensors


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def interrupt_at(step: int):
    def watch(now: int, _: float) -> None:
        if now == step:
            raise KeyboardInterrupt

    return watch


def test_a_run_writes_what_it_promises_and_leaves_the_base_alone(base, tmp_path):
    pytest.importorskip("cv2")
    before = {key: value.clone() for key, value in base.denoiser.state_dict().items()}
    run = train_control(
        base, make_pairs(), held_out=make_pairs(2, seed=1), method=LoRA(rank=2), out=tmp_path / "a", config=FAST,
        quiet=True, sample_every=3, evaluation_pairs=2,
    )  # fmt: skip
    for name in ("run.toml", "log.jsonl", "adapter.safetensors", "hint.safetensors", "metrics.json", "report.html",
                 "concept/00.png", "concept/crops.json", "samples/prompts.json", "samples/base/00.png",
                 "samples/step-000003/01.png", "samples/strength-0.5/00.png", "checkpoints/step-000006/state.json",
                 "checkpoints/step-000006/hint.safetensors", "samples/followed.json"):  # fmt: skip
        assert (run.folder / name).is_file(), name
    rows = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and rows[-1]["images"] == 12
    assert {"loss", "loss_by_timestep", "lr", "grad_norm", "seconds"} <= rows[0].keys()
    assert {"iou", "f1"} <= run.metrics["values"].keys() and len(run.metrics["items"]["iou"]) == 2
    assert set(run.metrics["held_out_loss"]) == {"pairs", "swapped", "world"}
    assert {"loss_pairs", "loss_swapped", "loss_world"} <= run.metrics["values"].keys()
    assert run.metrics["adapter_bytes"] > (run.folder / "hint.safetensors").stat().st_size
    assert not base.attachments
    assert all(torch.equal(before[key], value) for key, value in base.denoiser.state_dict().items())
    assert read_adapter(run.adapter)[0] == LoRA(rank=2)
    method, roles, *_, header = read_adapter(run.folder / "hint.safetensors")
    assert isinstance(method, Hint) and roles == ["input.conv"] and "steps = 6" in header["settings"]


@pytest.mark.parametrize(
    ("method", "stops"),
    [  # before the first checkpoint, after the last but one; one of them will do for the other methods
        (LoRA(rank=2, dropout=0.3), (1, 5)),
        (OFT(blocks=4), (3,)),
        (Selective(), (3,)),
        (ControlNet(blocks=1), (3,)),
    ],
    ids=["lora", "oft", "selective", "controlnet"],
)
def test_a_run_stopped_anywhere_resumes_to_the_same_bits(base, tmp_path, method, stops):
    settings = {"method": method, "config": FAST, "quiet": True, "ema_decay": 0.9, "caption_dropout": 0.5}
    whole = train_control(base, make_pairs(), out=tmp_path / "whole", **settings)
    for step in stops:
        with pytest.raises(KeyboardInterrupt):
            train_control(base, make_pairs(), out=tmp_path / f"stopped-{step}", watch=interrupt_at(step), **settings)
        assert not base.attachments
        resumed = train_control(base, make_pairs(), out=tmp_path / f"stopped-{step}", **settings)
        assert equal(bits(whole), bits(resumed)), step


def test_the_agreement_of_the_samples_is_that_of_their_pictures_and_survives_an_interruption(base, tmp_path):
    pytest.importorskip("cv2")
    settings = {
        "held_out": make_pairs(2, seed=1), "method": ControlNet(blocks=1), "config": FAST, "quiet": True,
        "sample_every": 3, "sample_pairs": 1,
    }  # fmt: skip
    run = train_control(base, make_pairs(), out=tmp_path / "whole", **settings)
    found = run.metrics["convergence"]
    assert [step for step, _ in found["curve"]] == [3, 6] and found["pairs"] == 1 and found["better"] == "higher"
    assert found["step"] is None and found["threshold"] is None  # two are too few for a leap
    _, signals = make_pairs(2, seed=1).read([0], 32)
    for step, value in found["curve"]:
        files = sorted((run.folder / "samples" / f"step-{step:06d}").glob("*.png"))
        pictures = torch.stack([to_tensor(open_picture(file)) / 255 for file in files])
        assert value == pytest.approx(float(control_consistency("canny", signals, pictures)["f1"].mean()), abs=1e-5)
    with pytest.raises(KeyboardInterrupt):
        train_control(base, make_pairs(), out=tmp_path / "stopped", watch=interrupt_at(5), **settings)
    resumed = train_control(base, make_pairs(), out=tmp_path / "stopped", **settings)
    assert resumed.metrics["convergence"] == found
    assert "Following the signal" in run.report.read_text(encoding="utf-8")


def test_the_step_of_convergence_is_that_of_the_samples_curve(base, tmp_path):
    pytest.importorskip("cv2")
    samples = ControlSamples(base, make_pairs(2), tmp_path, seed=0)
    assert samples.convergence() == {}
    samples.curve = {str(10 * i): 0.1 if i < 7 else 0.9 for i in range(1, 13)}
    found = samples.convergence()["convergence"]
    assert (found["step"], found["threshold"]) == (70, pytest.approx(0.5))


def test_the_same_seed_gives_the_same_files_and_another_seed_others(base, tmp_path):
    runs = [
        train_control(base, make_pairs(), method=LoRA(rank=1), out=tmp_path / name, config=FAST, seed=seed, quiet=True)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert equal(bits(runs[0]), bits(runs[1])) and not equal(bits(runs[0]), bits(runs[2]))


@pytest.mark.parametrize("method", [LoRA(rank=4), ControlNet()], ids=lambda m: m.name)
def test_what_is_learned_depends_on_the_signal(base, tmp_path, monkeypatch, method):
    def encode(self, pixels):  # the tiny base's own latents hardly tell light from dark
        return 2 * (2 * pixels - 1).mean(1, keepdim=True)[..., ::4, ::4].expand(-1, 4, -1, -1)

    monkeypatch.setattr(type(base), "encode_pictures", encode)
    run = train_control(
        base, make_pairs(8), method=method, out=tmp_path / "a", quiet=True, steps=60, batch_size=4, warmup=5,
        learning_rate=5e-3, checkpoint_every=0, sample_every=0,
    )  # fmt: skip
    pixels, signals = make_pairs(8).read(range(8), 32)
    latents, noise = base.encode_pictures(pixels), torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    timesteps = torch.full((8,), 800)

    def loss(given: torch.Tensor) -> float:
        with adapted(base, [(run.folder, 1.0)]) as attachments, torch.no_grad():
            for attachment in attachments:
                attachment.begin(SideInputs(timesteps=timesteps, control={"hint": given}))
            text = base.condition(["a cat"] * 8).text
            batch = Batch(latents, noise, timesteps, Conditioning(text=text), ("target",) * 8)
            return float(Denoising(base.noise_schedule).losses(base.denoise, batch).mean())

    assert loss(signals) < 0.8 * loss(1 - signals)


def test_the_held_out_loss_of_a_run_is_asked_with_the_signals_of_its_pairs(base, tmp_path):
    pytest.importorskip("cv2")
    held_out = make_pairs(2, seed=1)
    run = train_control(
        base, make_pairs(), held_out=held_out, method=LoRA(rank=2), out=tmp_path / "a", config=FAST, quiet=True,
        evaluation_pairs=2,
    )  # fmt: skip
    pictures, signals = held_out.read(range(2), 32)
    before = held_out_loss(base, pictures, held_out.captions())
    with adapted(base, [(run.folder, 1.0)]):
        with pytest.raises(Refused, match="needs control"):
            held_out_loss(base, pictures, held_out.captions())
        after = held_out_loss(base, pictures, held_out.captions(), signals=signals)
        swapped = held_out_loss(base, pictures, held_out.captions(), signals=signals.flip(0))
    for name, found in (("loss_pairs", after), ("loss_swapped", swapped)):
        by_hand = float((found - before).mean())
        assert run.metrics["values"][name]["value"] == pytest.approx(by_hand, abs=1e-6) != 0
    assert run.metrics["values"]["loss_pairs"]["value"] != run.metrics["values"]["loss_swapped"]["value"]


@pytest.mark.parametrize("method", [OFT(blocks=4), ControlNet()], ids=lambda m: m.name)
def test_half_precision_and_checkpointing_train_too(base, tmp_path, method):
    settings = {"method": method, "config": FAST, "steps": 2, "quiet": True}
    run = train_control(
        base, make_pairs(), out=tmp_path / "a", mixed_precision="bf16", gradient_checkpointing=True,
        gradient_accumulation=2, **settings,
    )  # fmt: skip
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in bits(run).values())
    plain = train_control(base, make_pairs(), out=tmp_path / "b", **settings)
    less = train_control(base, make_pairs(), out=tmp_path / "c", gradient_checkpointing=True, **settings)
    for key, value in bits(plain).items():
        torch.testing.assert_close(bits(less)[key], value, atol=1e-6, rtol=1e-5)


def test_the_hint_has_its_own_learning_rate(base, tmp_path):
    run = train_control(
        base, make_pairs(), method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True, hint_learning_rate=0.0
    )
    hint = load_tensors(run.folder / "hint.safetensors")[0]
    last = max(int(key.split(".")[3]) for key in hint)
    assert not hint[f"unet.conv_in.encoder.{last}.weight"].any()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(base, tmp_path, monkeypatch):
    real, calls = type(base).denoise, []

    def poisoned(self, noisy, timesteps, text):
        calls.append(1)
        return real(self, noisy, timesteps, text) * (float("nan") if len(calls) > 4 else 1.0)

    monkeypatch.setattr(type(base), "denoise", poisoned)
    with pytest.raises(Failed, match=r"the loss is nan at step 5.*learning_rate"):
        train_control(base, make_pairs(), method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True)
    for name in ("adapter", "hint"):
        kept, _ = load_tensors(tmp_path / "a" / "checkpoints" / "step-000004" / f"{name}.safetensors")
        assert all(value.isfinite().all() for value in kept.values())
    assert not base.attachments


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        (Token(), {}, "method 'token' cannot learn to follow"),
        (Hint(), {}, "method 'hint' cannot learn to follow"),
        (ControlNet(), {"roles": ("cross_attention.*",)}, "stands on no roles"),
        (ControlNet(blocks=5), {}, "5 cannot be copied"),
        (LoRA(rank=500), {}, "rank 500"),
        (LoRA(), {"resolution": 30}, "multiple of 8"),
        (LoRA(), {"resolution": 64}, "expected pictures of 64 pixels, got 32"),
        (LoRA(), {"stepz": 3}, "did you mean steps"),
        (LoRA(), {"roles": ("cross_atention.*",)}, "did you mean"),
    ],
)
def test_settings_that_cannot_be_met_are_refused_and_leave_nothing_behind(base, tmp_path, method, change, says):
    with pytest.raises(Refused, match=says):
        train_control(base, make_pairs(), method=method, out=tmp_path / "a", config=FAST, quiet=True, **change)
    assert not base.attachments and not (tmp_path / "a").exists()


@pytest.mark.parametrize("method", [LoRA(rank=2), ControlNet()], ids=["lora", "controlnet"])
def test_more_steps_on_a_finished_run_begin_with_all_that_it_learned(base, tmp_path, method):
    """Files of both kinds are read, the hint too: at rate 0 the second run ends where it began, which is the first's
    end."""
    first = train_control(base, make_pairs(), method=method, out=tmp_path / "a", config=FAST, quiet=True)
    then = train_control(
        base, make_pairs(), method=method, out=tmp_path / "b", config=FAST, quiet=True, steps=1, learning_rate=0.0,
        hint_learning_rate=0.0, start_from=str(first.folder),
    )  # fmt: skip
    assert equal(bits(first), bits(then))
    with pytest.raises(Refused, match="other settings"):  # in its own folder it would be another run
        train_control(base, make_pairs(), method=method, out=tmp_path / "a", config=FAST, quiet=True, steps=9)


def test_other_pairs_in_the_same_folder_are_refused(base, tmp_path):
    train_control(base, make_pairs(), method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True)
    with pytest.raises(Refused, match=r"other settings.*identity"):
        train_control(base, make_pairs(seed=3), method=LoRA(rank=1), out=tmp_path / "a", config=FAST, quiet=True)
