"""A plan printed before a training is what the training then does."""

import inspect

import pytest
import torch

from diffadapt.adapters import LoRA, Selective, Token
from diffadapt.cli.main import main
from diffadapt.data.concept import load_concept
from diffadapt.recipes.plan import DRAWN_AT_ONCE, plan_subject
from diffadapt.recipes.subject import SubjectConfig, train_subject
from diffadapt.sampling.sample import generate
from diffadapt.training.memory import CountedMemory

CONFIG = SubjectConfig(
    steps=5, batch_size=1, warmup=1, prior_pictures=3, checkpoint_every=2, sample_every=2, evaluation_prompts=2,
    evaluation_pictures=2,
)  # fmt: skip


def test_pictures_parameters_and_file_are_those_of_the_run(base, photos, tmp_path):
    base.default_steps = 1
    concept, method = load_concept(photos, "cat"), LoRA(rank=2)
    plan = plan_subject(base, concept, method=method, config=CONFIG, timed=False)
    assert not base.attachments and not (tmp_path / "run").exists()
    made = []
    decode, count = base.vae.decode, made.append

    def counted(latents, *more, **named):
        count(len(latents))
        return decode(latents, *more, **named)

    base.vae.decode = counted
    try:
        run = train_subject(base, concept, method=method, config=CONFIG, out=tmp_path / "run", quiet=True)
    finally:
        base.vae.decode = decode
    assert sum(plan.pictures.values()) == sum(made)
    assert plan.parameters == run.metrics["trainable_parameters"]
    assert 0 < run.metrics["adapter_bytes"] - plan.adapter_bytes < 20_000  # the header
    assert set(plan.roles) == {role for role in base.roles if role.startswith(("self_attention.", "cross_attention."))}


def test_a_word_alone_adapts_no_layer_and_time_is_measured(base, photos):
    concept = load_concept(photos, "cat")
    plan = plan_subject(base, concept, method=Token(), config=SubjectConfig(prior_weight=0, steps=10))
    assert plan.roles == {} and plan.parameters == 32
    assert plan.seconds["training"] > 0 and plan.seconds["pictures"] > 0


def test_memory_grows_with_the_batch_and_shrinks_with_checkpointing(base, photos):
    concept = load_concept(photos, "cat")

    def memory(**settings):
        config = SubjectConfig(prior_weight=0, **settings)
        return plan_subject(base, concept, method=LoRA(rank=2), config=config, timed=False).memory_bytes

    small, large = memory(batch_size=2), memory(batch_size=8)
    weights = sum(
        4 * each.numel() for part in (base.denoiser, base.text_encoder, base.vae) for each in part.parameters()
    )
    assert weights < small < large
    assert memory(batch_size=8, gradient_checkpointing=True) < large
    assert not base.denoiser.training and all(each.grad is None for each in base.denoiser.parameters())


def test_the_last_checkpoint_and_the_one_more_while_one_is_written_take_disk(base, photos):
    concept = load_concept(photos, "cat")

    def plan(**settings):
        config = SubjectConfig(prior_weight=0, sample_every=0, evaluation_prompts=0, **settings)
        return plan_subject(base, concept, method=LoRA(rank=2), config=config, timed=False)

    none, one, two, many = (
        plan(steps=steps, checkpoint_every=every, keep_checkpoints=1).disk_bytes
        for steps, every in ((10, 0), (10, 100), (20, 10), (90, 10))
    )
    assert one - none == two - one > 2 * plan(steps=10, checkpoint_every=0).adapter_bytes and many == two
    half = plan(steps=10, checkpoint_every=100, keep_checkpoints=1, optimizer="adamw8bit")
    assert one - half.disk_bytes == 6 * half.parameters


def test_the_memory_of_diff_tuning_is_counted_where_it_is_sampled(base, photos):
    concept = load_concept(photos, "cat")

    def pictures(objective):
        config = SubjectConfig(prior_weight=0, objective=objective)
        return plan_subject(base, concept, method=LoRA(rank=2), config=config, timed=False).pictures

    assert pictures("difftuning")["the memory"] == 2000 and "the memory" not in pictures("standard")
    assert "the memory" not in pictures("distillation")


def test_the_command_refuses_what_training_would(tiny_v_folder, photos, capsys):
    asked = [f"base={tiny_v_folder}", f"concept.folder={photos}", "concept.noun=cat", "train.objective=difftuning"]
    assert main(["plan", *asked, "--no-time", "--device", "cpu"]) == 2
    assert "both keep what the base knows" in capsys.readouterr().err


def test_memory_is_less_by_what_waits(base, photos):
    concept = load_concept(photos, "cat")

    def memory(**changes) -> int:
        config = SubjectConfig(prior_weight=0, train_token=False, **changes)
        return plan_subject(base, concept, method=LoRA(rank=1), config=config, timed=False).memory_bytes

    waiting = sum(p.numel() * p.element_size() for part in (base.vae, base.text_encoder) for p in part.parameters())
    assert memory() - memory(offload=True) == waiting


def test_storages_are_counted_once_while_they_live():
    with CountedMemory() as counted:
        a = torch.zeros(1000)
        view = a.view(10, 100)
        assert counted.live == 4000
        b = a + view.view(-1)
        assert counted.live == counted.peak == 8000
        del b
        assert counted.live == 4000 and counted.peak == 8000
        del a, view
        assert counted.live == 0


def test_the_command_prints_it_and_writes_nothing(tiny_v_folder, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = [f"concept.folder={photos}", "concept.noun=cat", f"base={tiny_v_folder}", "method.rank=2", "--no-time"]
    before = set(tmp_path.rglob("*"))
    assert main(["plan", *given, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "trains", "parameters", "file", "pictures", "memory", "drawing", "disk",
    ]  # fmt: skip
    assert "self_attention.query (" in lines[0] and "48 for the class, for prior preservation" in lines[3]
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("recipe", ["control"])
def test_another_recipe_is_refused(photos, recipe, capsys):
    assert main(["plan", f"recipe={recipe}", f"pairs.folder={photos}"]) == 2
    said = capsys.readouterr().err
    assert "plan knows the recipe subject, and this is control, whose data decide" in said and "--dry-run" in said


def test_a_training_says_its_plan_at_the_start_and_a_quiet_one_does_not(base, photos, tmp_path, capsys):
    base.default_steps, concept, method = 1, load_concept(photos, "cat"), LoRA(rank=2)
    settings = {"steps": 1, "batch_size": 1, "warmup": 0, "prior_weight": 0, "sample_every": 0, "evaluation_prompts": 0}
    plan = plan_subject(base, concept, method=method, config=SubjectConfig(**settings), timed=False)
    train_subject(base, concept, method=method, out=tmp_path / "quiet", quiet=True, **settings)
    assert capsys.readouterr().err == ""
    train_subject(base, concept, method=method, out=tmp_path / "told", **settings)
    said = capsys.readouterr().err.splitlines()
    known = [line for line in plan.lines() if line.split()[0] not in ("memory", "drawing")]
    start = said.index(known[0])
    assert said[start : start + len(known)] == known and len(known) == 5
    assert not any("train 1/1" in line for line in said[:start])


def test_drawing_in_half_takes_less_memory_and_with_moments_on_the_way_more(base, photos):
    concept = load_concept(photos, "cat")

    def drawing(**changes) -> int:
        config = SubjectConfig(prior_weight=0, **changes)
        return plan_subject(base, concept, method=Selective(), config=config, timed=False).drawing_bytes

    parameters = plan_subject(base, concept, method=Selective(), config=CONFIG, timed=False).parameters
    alone = drawing(sample_every=0)
    assert drawing(sample_every=1) - alone == 8 * parameters
    assert drawing(sample_every=0, mixed_precision="bf16") < alone
    assert inspect.signature(generate).parameters["batch"].default == DRAWN_AT_ONCE
