"""One step of the loop by hand: what the optimizer sees, what is logged, what is saved, for every setting.

The base predicts nothing by itself; the attachment scales the noisy latents by w = 0.5. With sqrt(a) = 0.8 and
sqrt(1 - a) = 0.6, a picture of 1 and noise of 2 mix to 2: the prediction is 1, the target 2, the loss (1 - 2)^2 = 1,
and its gradient 2 (1 - 2) 2 = -4.
"""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffadapt.adapters import SideInputs
from diffadapt.conditioning import Conditioning
from diffadapt.errors import Failed, Refused
from diffadapt.files import load_tensors, save_tensors
from diffadapt.objectives import Batch, Denoising, NoiseSchedule
from diffadapt.training import seeds
from diffadapt.training.fit import AttachedBase, fit
from diffadapt.training.learner import Learner, make_accelerator, refuse_the_impossible, release, rounded_products
from diffadapt.training.loop_config import LoopConfig

SCHEDULE = NoiseSchedule(alphas_cumprod=torch.tensor([0.64, 0.36]), prediction_type="epsilon")
PLAIN = LoopConfig(
    steps=1, learning_rate=0.1, schedule="constant", warmup=0, weight_decay=0.0, max_grad_norm=0.0, snr_gamma=0.0,
    checkpoint_every=1, sample_every=0,
)  # fmt: skip


class Scale:
    """An attachment of one number; `penalty_weight` times it is added to the loss."""

    def __init__(self, value: float = 0.5, penalty_weight: float = 0.0, most: float = 100.0) -> None:
        self.w = nn.Parameter(torch.tensor([value]))
        self.penalty_weight, self.most = penalty_weight, most
        self.enabled, self.training, self.side = True, False, None
        self.modes: list[bool] = []

    def parameters(self):
        return iter([self.w])

    def train(self, mode: bool = True) -> None:
        self.training = mode
        self.modes.append(mode)

    def begin(self, side: SideInputs) -> None:
        self.side = side

    def penalty(self):
        return self.penalty_weight * self.w.sum() if self.penalty_weight else None

    def project_(self) -> None:
        with torch.no_grad():
            self.w.clamp_(max=self.most)

    def notes(self) -> dict[str, float]:
        return {"size": self.w.item()}

    def state_dict(self):
        return {"w": self.w.detach()}

    def load_state_dict(self, tensors) -> None:
        with torch.no_grad():
            self.w.copy_(tensors["w"])

    def save(self, path: Path, metadata=None) -> Path:
        return save_tensors(path, self.state_dict(), dict(metadata or {}))


class Base:
    device = torch.device("cpu")

    def __init__(self, *scales: Scale) -> None:
        self.scales, self.checkpointed = scales, False

    def checkpoint_gradients_(self, on: bool) -> None:
        self.checkpointed = on

    def denoise(self, noisy, timesteps, condition):
        return sum((scale.w for scale in self.scales if scale.enabled), torch.zeros(1)) * noisy


class Rows:
    """Batches given as they are: rows of (picture, noise, timestep), one list for each part of a step."""

    def __init__(self, *parts: list[tuple[float, float, int]], sources: tuple[str, ...] | None = None) -> None:
        self.parts, self.sources, self.rows = parts, sources, len(parts[0])

    def batch(self, step: int, part: int) -> Batch:
        x, e, t = zip(*self.parts[part], strict=True)
        shape = (len(x), 1, 1, 1)
        sources = self.sources or ("target",) * len(x)
        latents, noise = (torch.tensor(each).view(shape) for each in (x, e))
        return Batch(latents, noise, torch.tensor(t), Conditioning(text=torch.zeros(1)), sources)


ROW = (1.0, 2.0, 0)


def step(folder: Path, scales: dict[str, Scale], rows: Rows, config: LoopConfig = PLAIN, groups=None, **more):
    """One `fit`: the last line of the log, and the state that the checkpoint of the last step holds."""
    base = Base(*scales.values())
    groups = groups or [{"params": [scale.w for scale in scales.values()], "peak": config.learning_rate}]
    more = {"objective": Denoising(SCHEDULE, snr_gamma=config.snr_gamma), **more}
    facts = fit(
        base, scales, rows, config=config, groups=groups, folder=folder, accelerator=make_accelerator(base, config),
        settings="", seed=0, quiet=True, **more,
    )  # fmt: skip
    state, _ = load_tensors(folder / "checkpoints" / f"step-{config.steps:06d}" / "state.safetensors")
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1]), state, facts


def seen(state, index: int = 0) -> float:
    """The gradient that AdamW's first step saw: its first moment is 0.1 of it."""
    return float(state[f"optimizer.{index}.exp_avg"]) / 0.1


def changed(config: LoopConfig = PLAIN, **settings) -> LoopConfig:
    return replace(config, **settings)


def test_loss_gradient_and_update_are_those_of_the_formula(tmp_path):
    scale = Scale()
    row, state, facts = step(tmp_path, {"adapter": scale}, Rows([ROW]))
    assert row["loss"] == pytest.approx(1.0) and row["grad_norm"] == pytest.approx(4.0)
    assert seen(state) == pytest.approx(-4.0)
    assert scale.w.item() == pytest.approx(0.5 + 0.1)  # AdamW's first step is the learning rate, against the gradient
    assert row["loss_by_timestep"] == [[0, pytest.approx(1.0)]] and row["lr"] == pytest.approx(0.1)
    assert facts["trainable_parameters"] == 1 and facts["resumed_at"] == 0


def test_rows_are_averaged_and_each_is_logged_with_its_timestep(tmp_path):
    """A picture of 2 and noise of 1 at t = 1: 0.6 * 2 + 0.8 = 2, loss (1 - 1)^2 = 0, gradient 0."""
    row, state, _ = step(tmp_path, {"adapter": Scale()}, Rows([ROW, (2.0, 1.0, 1)]))
    assert row["loss"] == pytest.approx(0.5) and seen(state) == pytest.approx(-2.0)
    assert row["loss_by_timestep"] == [[0, pytest.approx(1.0)], [1, pytest.approx(0.0, abs=1e-6)]]


def test_rows_are_logged_by_their_source(tmp_path):
    rows = Rows([ROW, (2.0, 1.0, 1)], sources=("target", "class"))
    names = {"target": "loss_concept", "class": "loss_prior", "memory": "loss_memory"}
    row, *_ = step(tmp_path, {"adapter": Scale()}, rows, log_as=names)
    assert row["loss_concept"] == pytest.approx(1.0) and row["loss_prior"] == pytest.approx(0.0, abs=1e-6)
    assert row["loss_by_timestep"] == [[0, pytest.approx(1.0)]] and "loss_memory" not in row


def test_min_snr_weighs_the_rows(tmp_path):
    """SNR 0.64 / 0.36; gamma 1 weighs by its inverse, 0.5625."""
    row, state, _ = step(tmp_path, {"adapter": Scale()}, Rows([ROW]), changed(snr_gamma=1.0))
    assert row["loss"] == pytest.approx(0.5625) and seen(state) == pytest.approx(-4 * 0.5625)


def test_every_group_has_its_own_rate_warmed_up_alike(tmp_path):
    scales = {"adapter": Scale(0.25), "hint": Scale(0.25)}
    groups = [{"params": [scales["adapter"].w], "peak": 0.1}, {"params": [scales["hint"].w], "peak": 0.02}]
    step(tmp_path, scales, Rows([ROW]), changed(warmup=4), groups=groups)
    assert scales["adapter"].w.item() == pytest.approx(0.25 + 0.1 / 4)
    assert scales["hint"].w.item() == pytest.approx(0.25 + 0.02 / 4)


@pytest.mark.parametrize(("schedule", "expected"), [("linear", 0.5), ("cosine", 0.5), ("constant", 1.0)])
def test_the_schedule_ends_where_it_says(tmp_path, schedule, expected):
    row, *_ = step(tmp_path, {"adapter": Scale()}, Rows([ROW]), changed(steps=2, schedule=schedule))
    assert row["lr"] == pytest.approx(0.1 * expected)  # the second of two steps


def test_weight_decay_shrinks_by_rate_times_decay_and_a_group_may_have_none(tmp_path):
    scales = {"adapter": Scale(0.25), "token": Scale(0.25)}
    groups = [
        {"params": [scales["adapter"].w], "peak": 0.1},
        {"params": [scales["token"].w], "peak": 0.1, "weight_decay": 0.0},
    ]
    step(tmp_path, scales, Rows([ROW]), changed(weight_decay=0.5), groups=groups)
    assert scales["adapter"].w.item() == pytest.approx(0.25 * (1 - 0.1 * 0.5) + 0.1)
    assert scales["token"].w.item() == pytest.approx(0.25 + 0.1)


@pytest.mark.parametrize(("most", "expected"), [(1.0, -1.0), (8.0, -4.0), (0.0, -4.0)])
def test_gradients_are_clipped_to_their_norm_and_the_log_has_the_norm_before(tmp_path, most, expected):
    row, state, _ = step(tmp_path, {"adapter": Scale()}, Rows([ROW]), changed(max_grad_norm=most))
    assert row["grad_norm"] == pytest.approx(4.0) and seen(state) == pytest.approx(expected, rel=1e-4)


def test_the_norm_is_that_of_all_groups_together(tmp_path):
    scales = {"adapter": Scale(0.25), "hint": Scale(0.25)}  # each has the gradient -4
    row, state, _ = step(tmp_path, scales, Rows([ROW]), changed(max_grad_norm=1.0))
    assert row["grad_norm"] == pytest.approx(32**0.5)
    assert seen(state, 0) == pytest.approx(-(0.5**0.5), rel=1e-4) and seen(state, 1) == seen(state, 0)


def test_penalties_are_added_to_loss_and_gradient(tmp_path):
    scales = {"adapter": Scale(0.25, penalty_weight=3.0), "hint": Scale(0.25)}
    row, state, _ = step(tmp_path, scales, Rows([ROW]))
    assert row["loss"] == pytest.approx(1.0 + 3.0 * 0.25)
    assert seen(state, 0) == pytest.approx(-4.0 + 3.0) and seen(state, 1) == pytest.approx(-4.0)


def test_parts_of_a_step_are_averaged_penalties_included(tmp_path):
    """The second part has loss 0 and gradient 0."""
    scale = Scale(penalty_weight=3.0)
    row, state, _ = step(tmp_path, {"adapter": scale}, Rows([ROW], [(2.0, 1.0, 1)]), changed(gradient_accumulation=2))
    assert row["loss"] == pytest.approx(0.5 + 1.5) and seen(state) == pytest.approx(-2.0 + 3.0)
    assert [t for t, _ in row["loss_by_timestep"]] == [0, 1] and row["images"] == 2


def test_the_moving_average_is_what_is_saved(tmp_path):
    """The first update's decay is min(decay, 1 / 10)."""
    scale = Scale()
    step(tmp_path, {"adapter": scale}, Rows([ROW]), changed(ema_decay=0.99))
    saved, _ = load_tensors(tmp_path / "adapter.safetensors")
    assert scale.w.item() == pytest.approx(0.6) and float(saved["w"]) == pytest.approx(0.1 * 0.5 + 0.9 * 0.6)


def test_a_finished_training_that_is_repeated_leaves_its_file_as_it_is(tmp_path):
    step(tmp_path, {"adapter": Scale()}, Rows([ROW]))
    file = tmp_path / "adapter.safetensors"
    save_tensors(file, {"w": torch.tensor(7.0)})  # such as the step that was chosen
    _, _, facts = step(tmp_path, {"adapter": Scale()}, Rows([ROW]))
    assert facts["resumed_at"] == 1 and float(load_tensors(file)[0]["w"]) == 7
    file.unlink()
    step(tmp_path, {"adapter": Scale()}, Rows([ROW]))
    assert float(load_tensors(file)[0]["w"]) == pytest.approx(0.6)


def test_without_a_moving_average_the_last_values_are_saved(tmp_path):
    step(tmp_path, {"adapter": Scale()}, Rows([ROW]))
    assert float(load_tensors(tmp_path / "adapter.safetensors")[0]["w"]) == pytest.approx(0.6)


def test_the_projection_comes_after_the_optimizer_and_before_the_average(tmp_path):
    scale = Scale(most=0.55)
    row, *_ = step(tmp_path, {"adapter": scale}, Rows([ROW]), changed(ema_decay=0.99))
    assert scale.w.item() == pytest.approx(0.55) and row["size"] == pytest.approx(0.55)
    saved, _ = load_tensors(tmp_path / "adapter.safetensors")
    assert float(saved["w"]) == pytest.approx(0.1 * 0.5 + 0.9 * 0.55)


def test_adapters_are_in_training_mode_during_the_step_alone(tmp_path):
    scale = Scale()
    step(tmp_path, {"adapter": scale}, Rows([ROW]), changed(steps=2))
    assert scale.modes == [True, False, True, False]


def test_adapters_are_told_what_the_batch_holds(tmp_path):
    class WithSignal(Rows):
        def batch(self, step: int, part: int) -> Batch:
            ids, control = torch.tensor([[7]]), {"hint": torch.ones(1, 3, 2, 2)}
            condition = Conditioning(token_ids=ids, text=torch.zeros(1), control=control)
            return dataclasses.replace(super().batch(step, part), condition=condition)

    scale = Scale()
    step(tmp_path, {"adapter": scale}, WithSignal([ROW]))
    side = scale.side
    assert side.timesteps.tolist() == [0] and side.token_ids.tolist() == [[7]] and side.text.tolist() == [0.0]
    assert torch.equal(side.control["hint"], torch.ones(1, 3, 2, 2))


def test_gradients_do_not_outlive_their_step(tmp_path):
    """Two steps of a rate of 0: AdamW's moment is 0.9 * 0.1 g + 0.1 g, not more."""
    _, state, _ = step(tmp_path, {"adapter": Scale()}, Rows([ROW]), changed(steps=2, learning_rate=0.0))
    assert float(state["optimizer.0.exp_avg"]) == pytest.approx(-4 * 0.19)


def test_a_loss_that_is_no_number_changes_nothing(tmp_path):
    scale = Scale()
    with pytest.raises(Failed, match=r"the loss is nan at step 1 .*lower learning_rate \(0.1\)"):
        step(tmp_path, {"adapter": scale}, Rows([(float("nan"), 2.0, 0)]))
    assert scale.w.item() == 0.5 and not (tmp_path / "adapter.safetensors").exists()


def test_gradient_checkpointing_is_asked_of_the_base(tmp_path):
    for wanted in (False, True):
        base = Base(Scale())
        config = changed(gradient_checkpointing=wanted)
        fit(
            base, {"adapter": base.scales[0]}, Rows([ROW]), Denoising(SCHEDULE), config=config,
            groups=[{"params": [base.scales[0].w], "peak": 0.1}], folder=tmp_path / str(wanted),
            accelerator=make_accelerator(base, config), settings="", seed=0, quiet=True,
        )  # fmt: skip
        assert base.checkpointed is wanted


def test_the_teacher_is_the_base_without_what_trains_and_takes_no_gradient():
    scale = Scale()
    model = AttachedBase(Base(scale), {"adapter": scale})
    noisy = torch.ones(1, 1, 1, 1)
    assert model(noisy, torch.tensor([0]), torch.zeros(1)).item() == 0.5
    answer = model.teacher(noisy, torch.tensor([0]), torch.zeros(1))
    assert float(answer) == 0.0 and not answer.requires_grad and scale.enabled
    scale.enabled = False
    model.teacher(noisy, torch.tensor([0]), torch.zeros(1))
    assert not scale.enabled


def _train_in_a_process(rank: int, folder: str) -> None:
    import os

    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # forked: an earlier test's is here
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = os.environ["TOY_PORT"]
    torch.set_num_threads(1)
    rows = Rows([ROW]) if rank == 0 else Rows([(2.0, 1.0, 1)])
    scale = Scale()
    base = Base(scale)
    accelerator = make_accelerator(base, PLAIN)
    assert accelerator.num_processes == 2
    still = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    scale.parameters = lambda: iter([scale.w, still])
    fit(
        base, {"adapter": scale}, rows, Denoising(SCHEDULE), config=replace(PLAIN, weight_decay=0.1),
        groups=[{"params": [scale.w, still], "peak": 0.1}], folder=Path(folder), accelerator=accelerator, settings="",
        seed=0, quiet=True,
    )  # fmt: skip
    assert torch.equal(still, torch.ones(3))
    accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


def test_gradients_of_two_processes_are_averaged(tmp_path, monkeypatch):
    """One sees the gradient -4, the other 0; what does not train is left out, weight decay included."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("TOY_PORT", str(free.getsockname()[1]))
    torch.multiprocessing.start_processes(_train_in_a_process, (str(tmp_path),), nprocs=2, start_method="fork")
    state, _ = load_tensors(tmp_path / "checkpoints" / "step-000001" / "state.safetensors")
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert seen(state) == pytest.approx(-2.0) and row["images"] == 2


class RowsByStep(Rows):
    """Another noise at every step."""

    def batch(self, step: int, part: int) -> Batch:
        batch = super().batch(step, part)
        return replace(batch, noise=batch.noise + 0.3 * step)


def test_a_resumed_training_ends_with_the_bits_of_a_whole_one(tmp_path):
    config = changed(
        steps=5, checkpoint_every=2, keep_checkpoints=0, ema_decay=0.9, schedule="cosine", weight_decay=0.1
    )

    class Stop(Exception):
        pass

    def stop(step: int, _: float) -> None:
        if step == 3:
            raise Stop

    def run(folder: str, **more):
        scales = {"adapter": Scale(), "hint": Scale(0.25)}
        return scales, step(tmp_path / folder, scales, RowsByStep([ROW]), config, **more)

    whole, (_, state, facts) = run("whole")
    with pytest.raises(Stop):
        run("stopped", watch=stop)
    resumed, (_, state_again, facts_again) = run("stopped")
    assert facts["resumed_at"] == 0 and facts_again["resumed_at"] == 2
    assert all(torch.equal(whole[name].w, resumed[name].w) for name in whole)
    assert state.keys() == state_again.keys() and all(torch.equal(state[key], state_again[key]) for key in state)
    assert {"adapter.w", "hint.w", "ema.updates", "ema.0", "ema.1", "optimizer.0.exp_avg"} <= state.keys()
    for name in whole:
        files = [tmp_path / folder / f"{name}.safetensors" for folder in ("whole", "stopped")]
        one, other = (load_tensors(file)[0]["w"] for file in files)
        assert torch.equal(one, other) and not torch.equal(one, whole[name].w.detach())  # the averages
    logged = [json.loads(line)["step"] for line in (tmp_path / "stopped" / "log.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5]


def test_the_scale_of_the_loss_in_fp16_is_resumed(tmp_path):
    def learner(scale: float) -> Learner:
        adapter = {"adapter": Scale()}
        accelerator = make_accelerator(Base(), PLAIN)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7)
        groups = [{"params": list(adapter["adapter"].parameters()), "peak": 0.1}]
        return Learner(Base(), adapter, groups, PLAIN, tmp_path, accelerator)

    first, second = learner(1024.0), learner(65536.0)
    first.accelerator.scaler.load_state_dict(first.accelerator.scaler.state_dict() | {"_growth_tracker": 5})
    first.checkpoint(1)
    assert second.resume() == 1
    assert second.accelerator.scaler.state_dict() == first.accelerator.scaler.state_dict()
    assert second.accelerator.scaler.state_dict() == {
        "scale": 1024.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 7, "_growth_tracker": 5
    }  # fmt: skip


def test_products_are_rounded_on_a_gpu_alone_and_only_while_it_trains():
    def allowed() -> bool:
        return torch.backends.cuda.matmul.allow_tf32

    assert not allowed()
    with pytest.raises(RuntimeError), rounded_products(torch.device("cuda"), True):
        assert allowed()
        raise RuntimeError
    assert not allowed()
    for device, on in (("cuda", False), ("cpu", True)):
        with rounded_products(torch.device(device), on):
            assert not allowed()


def test_checkpoints_come_when_they_are_due_and_the_oldest_go(tmp_path):
    step(tmp_path, {"adapter": Scale()}, Rows([ROW]), changed(steps=5, checkpoint_every=2, keep_checkpoints=2))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000004", "step-000005"]
    kept = tmp_path / "checkpoints" / "step-000004" / "adapter.safetensors"
    assert float(load_tensors(kept)[0]["w"]) != float(load_tensors(tmp_path / "adapter.safetensors")[0]["w"])


def test_a_loss_that_is_no_number_names_the_checkpoint_that_is_kept(tmp_path):
    class Spoilt(Rows):
        def batch(self, step: int, part: int) -> Batch:
            batch = super().batch(step, part)
            return replace(batch, noise=batch.noise * (float("nan") if step == 3 else 1))

    with pytest.raises(Failed, match="at step 4 .*The adapter of step 2 is kept"):
        step(tmp_path, {"adapter": Scale()}, Spoilt([ROW]), changed(steps=5, checkpoint_every=2))


@pytest.mark.parametrize(
    ("at", "settings", "kept"),
    [
        (5, {"checkpoint_every": 2}, "The adapter of step 4 is kept in checkpoints"),  # no loss follows the last
        (4, {"checkpoint_every": 2}, "The adapter of step 2 is kept in checkpoints"),
        (3, {"checkpoint_every": 0, "sample_every": 3}, "Nothing is kept"),
        (5, {"checkpoint_every": 0}, "Nothing is kept"),
    ],
)  # fmt: skip
def test_an_update_that_is_no_number_is_told_before_anything_of_its_step_is_written(tmp_path, at, settings, kept):
    class Spoilt(Scale):
        def project_(self) -> None:
            self.updates = getattr(self, "updates", 0) + 1
            if self.updates == at:
                with torch.no_grad():
                    self.w.fill_(float("nan"))

    watched, drawn = [], []
    samples = SimpleNamespace(save_base=lambda _, bar: None, save_step=lambda step, bar: drawn.append(step))
    with pytest.raises(Failed, match=rf"^the update of step {at} of .* gave values that are not numbers; .*{kept};"):
        step(
            tmp_path, {"adapter": Spoilt()}, Rows([ROW]), changed(steps=5, **settings),
            watch=lambda number, _: watched.append(number), samples=samples,
        )  # fmt: skip
    logged = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == watched == list(range(1, at)) and not drawn and not (tmp_path / "adapter.safetensors").exists()
    assert not (tmp_path / "checkpoints" / f"step-{at:06d}").exists()


# --- what the loop hands on -------------------------------------------------------------------------------------------


class Listening(Base):
    """Remembers the state of torch's generator at each prediction."""

    def __init__(self, *scales: Scale) -> None:
        super().__init__(*scales)
        self.seeds: list[int] = []

    def denoise(self, noisy, timesteps, condition):
        self.seeds.append(torch.initial_seed())
        return super().denoise(noisy, timesteps, condition)


def train(folder: Path, base: Base, rows: Rows, config: LoopConfig, objective=None, **more):
    scale = base.scales[0]
    more = {"settings": "", "seed": 0, "quiet": True, **more}
    return fit(
        base, {"adapter": scale}, rows, objective or Denoising(SCHEDULE), config=config,
        groups=[{"params": [scale.w], "peak": 0.1}], folder=folder, accelerator=make_accelerator(base, config), **more,
    )  # fmt: skip


def test_dropout_draws_by_seed_process_step_and_part(tmp_path):
    base = Listening(Scale())
    train(tmp_path, base, Rows([ROW], [ROW]), changed(steps=2, gradient_accumulation=2), seed=5)
    assert base.seeds == [seeds.number(5, 0, step, part) for step in (0, 1) for part in (0, 1)]


def test_every_part_of_every_step_is_asked_for_once_in_order_and_watched(tmp_path):
    class Asked(Rows):
        def batch(self, step: int, part: int) -> Batch:
            asked.append((step, part))
            return super().batch(step, part)

    asked: list[tuple[int, int]] = []
    watched: list[tuple[int, float]] = []
    train(
        tmp_path, Base(Scale()), Asked([ROW], [ROW]), changed(steps=2, gradient_accumulation=2),
        watch=lambda *now: watched.append(now),
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert asked == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert watched == [(row["step"], pytest.approx(row["loss"], rel=1e-5)) for row in rows] and len(rows) == 2
    assert [row["images"] for row in rows] == [2, 4] and all(type(row["images"]) is int for row in rows)


def test_an_objective_may_ask_the_teacher_in_the_loop(tmp_path):
    class Distilled(Denoising):
        def losses(self, model, batch):
            wanted = model.teacher(batch.noise, batch.timesteps, batch.condition)
            return (model(batch.noise, batch.timesteps, batch.condition) - wanted).square().mean((1, 2, 3))

    train(tmp_path, Base(Scale()), Rows([ROW]), PLAIN, Distilled(SCHEDULE))
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["loss"] == pytest.approx(1.0)  # (0.5 * 2 - 0)^2


def test_the_files_carry_the_settings_and_the_figures_are_there(tmp_path):
    facts = train(tmp_path, Base(Scale()), Rows([ROW]), PLAIN, settings="steps = 1")
    assert load_tensors(tmp_path / "adapter.safetensors")[1]["settings"] == "steps = 1"
    assert facts["peak_memory_mb"] > 10 and facts["peak_memory_mb"] == round(facts["peak_memory_mb"], 1)
    assert not isinstance(facts["peak_memory_mb"], int)


def test_the_base_is_sampled_before_the_first_step(tmp_path):
    sampled: list[list[float]] = []

    class Samples:
        def save_base(self, attachments, *, bar) -> None:
            sampled.append([attachment.w.item() for attachment in attachments])

    train(tmp_path, Base(Scale()), Rows([ROW]), PLAIN, samples=Samples())
    assert sampled == [[0.5]]


def test_progress_is_shown_unless_it_is_to_be_quiet(tmp_path, capsys):
    for quiet in (True, False):
        train(tmp_path / str(quiet), Base(Scale()), Rows([ROW]), PLAIN, quiet=quiet)
        assert ("train" in capsys.readouterr().err) is not quiet


class TwoProcesses:
    """An accelerator whose other process has gradients of 0 everywhere."""

    num_processes = 2

    def reduce(self, flat, reduction):
        return flat / 2 if reduction == "mean" else flat


def test_every_gradient_becomes_the_mean_over_the_processes_and_a_missing_one_counts_as_zero():
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,), (1,))]
    parameters[0].grad = torch.arange(6.0).view(2, 3)
    parameters[2].grad = torch.tensor([8.0])
    Learner._average_over_processes(SimpleNamespace(accelerator=TwoProcesses(), parameters=parameters))
    assert parameters[0].grad.tolist() == [[0, 0.5, 1], [1.5, 2, 2.5]] and parameters[2].grad.tolist() == [4.0]
    assert parameters[1].grad.tolist() == [0.0] * 4  # the other process may have one


# --- before the first step and after the last -------------------------------------------------------------------------


class Untouched:
    """All that is looked at of a base before its training."""

    def __init__(self, device: str = "cpu", attachments: tuple = (), side_step: int = 8) -> None:
        self.device, self.attachments, self.side_step = torch.device(device), attachments, side_step


@pytest.mark.parametrize(
    ("base", "settings", "says"),
    [
        (Untouched(), {"mixed_precision": "fp16"}, "fp16 needs a GPU"),
        (Untouched(), {"mixed_precision": "bf16", "compile": True}, "would train only a part of the adapter"),
        (Untouched(), {"resolution": 36}, "multiple of 8 pixels, got 36"),
        (Untouched(side_step=16), {"resolution": 72}, "multiple of 16 pixels, got 72"),
        (Untouched(), {"steps": 0}, "steps"),
        (Untouched(attachments=("one",)), {}, "detach what is attached first"),
    ],
)
def test_settings_that_no_training_can_meet_are_refused(base, settings, says):
    with pytest.raises(Refused, match=says):
        refuse_the_impossible(base, changed(**settings))


def test_settings_that_can_be_met_are_not_refused():
    for settings in ({"mixed_precision": "bf16", "resolution": 64}, {"resolution": 72}, {"mixed_precision": "no"}):
        refuse_the_impossible(Untouched(), changed(**settings))
    refuse_the_impossible(Untouched(side_step=4), changed(resolution=36))
    refuse_the_impossible(Untouched("cuda"), changed(mixed_precision="fp16"))


def test_a_base_is_released_in_the_reverse_order():
    came_off: list[str] = []

    class Attached:
        def __init__(self, name: str) -> None:
            self.name = name

        def detach(self) -> None:
            came_off.append(self.name)

    base = Base()
    base.checkpointed = True
    release(base, [Attached("adapter"), Attached("hint")])
    assert came_off == ["hint", "adapter"] and not base.checkpointed
