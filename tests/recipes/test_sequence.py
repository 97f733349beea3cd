"""The sequence recipe end to end on a tiny base: tasks, what is kept, resuming, adding a task, refusals."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from perfusion_cases import prepared
from PIL import Image, ImageDraw

from diffadapt.adapters import CLoRA, LoRA, Perfusion, Selective, Token, attach, load_adapter, read_adapter
from diffadapt.adapters.custom_diffusion import ROLES
from diffadapt.data.concept import load_concept
from diffadapt.data.picture import open_picture, to_tensor
from diffadapt.data.prompts import drift_prompts
from diffadapt.data.sequence import load_sequence
from diffadapt.data.wide_scenes import world_of
from diffadapt.errors import Refused
from diffadapt.evaluation.held_out_loss import held_out_loss
from diffadapt.files import load_tensors, save_tensors
from diffadapt.metrics import inception, mmd_squared
from diffadapt.metrics.inception import Inception, inception_features, load_inception
from diffadapt.recipes.sequence import SequenceConfig, train_sequence
from diffadapt.sampling.sample import adapted
from diffadapt.training.replay import Mixed, ReplayedPictures

FAST = SequenceConfig(
    steps=2, batch_size=2, warmup=0, prior_pictures=2, checkpoint_every=1, evaluation_pictures=2, pairs=1
)
METHOD = CLoRA(rank=2, penalty_weight=1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks of two drawn pictures each."""
    for name, colour in (("mia", "red"), ("otto", "blue")):
        draw(tmp_path / "characters", name, colour)
    return tmp_path / "characters"


def draw(folder: Path, name: str, colour: str) -> None:
    (folder / name).mkdir(parents=True)
    for i in range(2):
        picture = Image.new("RGB", (40, 40), colour)
        ImageDraw.Draw(picture).ellipse((8 + i, 8, 30 + i, 30), fill="orange")
        picture.save(folder / name / f"{i}.png")


def learn(base, folder: Path, out: Path, method=METHOD, **more):
    return train_sequence(base, load_sequence(folder, "cat"), method=method, out=out, config=FAST, quiet=True, **more)


def bits(run) -> dict[str, torch.Tensor]:
    return load_tensors(run.adapter)[0]


def test_a_sequence_leaves_its_record_pictures_scores_and_report_and_no_training_picture(base, folder, tmp_path):
    run = learn(base, folder, tmp_path / "runs" / "a")
    assert not base.attachments
    record = json.loads((run.folder / "sequence.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in record["learned"]] == ["mia", "otto"]
    assert [len(row) for row in record["scores"]] == [1, 2]
    assert record["learned"][1]["phrase"] == "<otto>"  # the class is not named
    pictures = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*.png")}
    expected = {f"evaluation/after-{i}/{name}/0{k}.png" for i, name in (("01", "mia"), ("02", "mia"), ("02", "otto"))
                for k in range(2)}  # fmt: skip
    world = {path for path in pictures if path.startswith("evaluation/base/")}  # the base's own, drawn once
    assert pictures - world == expected | {"evaluation/pairs/00.png"} and len(world) == 2
    assert not list(run.folder.rglob("checkpoints")) and not list(run.folder.rglob("cache"))
    found = run.metrics["sequence"]
    assert {"average", "forgetting", "forgetting_from_best", "a_mmd", "f_mmd", "mmd", "features"} <= found.keys()
    assert found["kid_at_end"] is None  # no Inception was given
    second = found["second"]  # a judge that shares nothing with the probe, on the same pictures
    assert len(second["mmd_at_end"]) == 2 and second["average"] != found["average"]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "A_mmd x 1000, second judge" in page
    assert page.count("<img") == 4 and "after otto" in page
    method, _, tokens, _, _ = read_adapter(run.adapter)
    assert method == METHOD and list(tokens) == ["<mia>", "<otto>"]


def test_the_loss_of_every_task_is_told_on_its_own_pictures_on_other_things_and_on_what_was_drawn_of_it(
    base, folder, tmp_path
):
    run = learn(base, folder, tmp_path / "runs" / "a", LoRA(rank=1))
    found = run.metrics["sequence"]["losses"]
    assert [len(found[name]) for name in ("concept", "world", "since_learned")] == [2, 2, 2]
    assert found["since_learned"][1] == 0 and found["since_learned"][0] != 0  # nothing came after the last task
    concept = load_concept(folder / "otto", "cat", token="<otto>").standing_alone()
    pictures = concept.pixels(32)
    before = held_out_loss(base, pictures, ["a cat"] * 2)
    with adapted(base, [(run.adapter, 1.0)]):
        after = held_out_loss(base, pictures, ["a <otto>"] * 2)
    assert found["concept"][1] == pytest.approx(float((after - before).mean()), abs=1e-6)
    assert "rise of the denoising loss, mia" in (run.folder / "report.html").read_text()


def test_the_bases_own_pictures_are_as_many_as_there_are_prompts_and_those_of_the_noun(base, folder, tmp_path):
    tasks = load_sequence(folder, "cat")[:1] + load_sequence(folder, "dog")[1:]
    many = replace(FAST, evaluation_pictures=17)
    run = train_sequence(base, tasks, method=METHOD, out=tmp_path / "run", config=many, quiet=True)
    cats, dogs = (drift_prompts(world_of(base), 16, 0, without=noun) for noun in ("cat", "dog"))
    drawn = sorted(path.name for path in (run.folder / "evaluation" / "base").iterdir())
    assert cats != dogs and len(drawn) == len({*enumerate(cats)} | {*enumerate(dogs)})


class Stopped(Exception):
    pass


def test_a_sequence_that_was_interrupted_in_its_second_task_ends_with_the_same_bits(base, folder, tmp_path):
    expected = bits(learn(base, folder, tmp_path / "runs" / "a"))
    seen = []

    def stop(step: int, _: float) -> None:
        seen.append(step)
        if len(seen) == 4:  # after the second task's last step, before it is finished
            raise Stopped

    with pytest.raises(Stopped):
        learn(base, folder, tmp_path / "runs" / "b", watch=stop)
    found = bits(learn(base, folder, tmp_path / "runs" / "b"))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_task_is_added_by_the_same_call_though_the_past_pictures_are_gone_and_its_name_comes_first(
    base, folder, tmp_path
):
    before = bits(learn(base, folder, tmp_path / "runs" / "a"))
    shutil.rmtree(folder / "mia")
    draw(folder, "anna", "green")
    run = learn(base, folder, tmp_path / "runs" / "a")
    record = json.loads((run.folder / "sequence.json").read_text(encoding="utf-8"))
    assert [each["name"] for each in record["learned"]] == ["mia", "otto", "anna"]
    after = bits(run)
    name = next(key for key in after if key.endswith("cross_attention.key.tasks") or key.endswith("to_k.tasks"))
    assert int(after[name]) == 2 and int(before[name]) == 1
    rows = next(key for key in after if key.endswith("token_embedding.past"))
    assert torch.equal(after[rows][:1], before[rows]) and len(after[rows]) == 2


@pytest.mark.parametrize("method", [LoRA(rank=1), Token(), CLoRA(rank=1, importance="fisher", penalty_weight=1.0)])
def test_baselines_learn_sequences_by_the_same_recipe(base, folder, tmp_path, method):
    run = learn(base, folder, tmp_path / "runs" / "a", method)
    loaded = load_adapter(base, run.adapter)
    assert list(loaded.tokens) == ["<mia>", "<otto>"]
    loaded.detach()
    if isinstance(method, Token):
        assert run.metrics["sequence"]["f_mmd"] == 0.0


def test_another_rank_or_seed_does_not_go_on_with_a_sequence(base, folder, tmp_path):
    learn(base, folder, tmp_path / "runs" / "a")
    with pytest.raises(Refused, match="other settings"):
        learn(base, folder, tmp_path / "runs" / "a", CLoRA(rank=1))


def test_a_sequence_whose_files_were_changed_does_not_go_on(base, folder, tmp_path):
    run = learn(base, folder, tmp_path / "runs" / "a")
    adapter = run.folder / "tasks" / "02-otto" / "adapter.safetensors"
    whole = adapter.read_bytes()
    adapter.write_bytes(whole + b" ")
    with pytest.raises(Refused, match="was changed since task 'otto'"):
        learn(base, folder, tmp_path / "runs" / "a")
    adapter.write_bytes(whole)
    Image.new("RGB", (40, 40), "white").save(folder / "mia" / "0.png")
    with pytest.raises(Refused, match="not those that task 'mia' was learned from"):
        learn(base, folder, tmp_path / "runs" / "a")


def test_an_empty_task_is_refused_before_anything_is_written(base, folder, tmp_path):
    (folder / "nobody").mkdir()
    with pytest.raises(Refused, match="nobody"):
        learn(base, folder, tmp_path / "runs" / "a")
    assert not (tmp_path / "runs").exists()


def test_methods_that_keep_concepts_apart_themselves_are_refused(base, folder, tmp_path):
    with pytest.raises(Refused, match="cannot learn a sequence"):
        learn(base, folder, tmp_path / "runs" / "a", Perfusion())


def test_lambda_that_stops_learning_is_warned_of(base, folder, tmp_path, capsys):
    train_sequence(
        base, load_sequence(folder, "cat"), method=CLoRA(rank=2, penalty_weight=1e30, importance="sum_of_abs"),
        out=tmp_path / "runs" / "a", config=FAST, learning_rate=1e-9,
    )  # fmt: skip
    record = json.loads((tmp_path / "runs" / "a" / "sequence.json").read_text(encoding="utf-8"))
    first, second = (each["change"] for each in record["learned"])
    told = "hardly learned" in capsys.readouterr().err
    assert told == (second < 0.01 * first)


@pytest.mark.parametrize(
    ("names", "order", "words"),
    [
        (["Mia", "mia!"], (), "share the word <mia>"),
        (["mia"], ("mia", "mia"), "share the word <mia>"),
        (["mia"], ("otto",), "'otto', which is no folder"),
        ([], (), "holds no folders"),
        (["!!"], (), "no word can be made"),
    ],
)
def test_folders_that_are_no_sequence_are_refused(tmp_path, names, order, words):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(Refused, match=words):
        load_sequence(tmp_path, "cat", order=order)


# --- baselines of the paper's that need more than a method ------------------------------------------------------------


def test_kid_is_told_where_an_inception_is_given(base, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(inception, "SIDE", 75)  # the smallest that Inception takes
    torch.manual_seed(0)
    weights = {name: value for name, value in Inception().state_dict().items() if value.is_floating_point()}
    weights |= {name: 6**0.5 * value for name, value in weights.items() if name.endswith("conv.weight")}  # stays near 1
    file = save_tensors(tmp_path / "inception.safetensors", weights)
    run = learn(base, folder, tmp_path / "runs" / "a", LoRA(rank=1), evaluation_inception=str(file))
    network, found = load_inception(file), run.metrics["sequence"]["kid_at_end"]
    for name, value in zip(("mia", "otto"), found, strict=True):
        place = run.folder / "evaluation" / "after-02" / name
        made = torch.stack([to_tensor(open_picture(path)) for path in sorted(place.glob("*.png"))])
        own = load_concept(folder / name, "cat").pixels(base.resolution)
        expected = mmd_squared(inception_features(network, own), inception_features(network, made.float() / 255))
        assert abs(expected) > 1e-6 and value == pytest.approx(expected, rel=1e-4)
    assert "KID x 1000" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_replayed_pictures_are_what_the_adapter_draws_of_the_past_and_the_same_for_the_same_seed(base):
    attachment = attach(base, LoRA(rank=2), seed=1)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.05
    make = {"count": 2, "side": base.resolution, "seed": 3}
    first, again = (ReplayedPictures(base, ["cat", "dog"], **make) for _ in range(2))
    attachment.detach()
    untouched = ReplayedPictures(base, ["cat", "dog"], **make)
    assert first.captions() == ["a cat", "a dog"]
    for i in range(4):
        assert torch.equal(first.fetch(i).latents, again.fetch(i).latents)
        assert not torch.equal(first.fetch(i).latents, untouched.fetch(i).latents)
    mixed = Mixed([first, untouched])
    picked = mixed.pick(np.random.default_rng(0), 40, 0)
    assert {index % 2 for index, _ in picked} == {0, 1}
    for index, caption in picked:
        of = (first, untouched)[index % 2]
        assert torch.equal(mixed.fetch(index).latents, of.fetch(index // 2).latents)
        assert caption == ("a cat" if index // 2 < 2 else "a dog")


def test_generative_replay_changes_the_second_task_alone_and_resumes_to_the_same_bits(base, folder, tmp_path):
    method, more = LoRA(rank=1), {"replay_pictures": 2}
    expected = bits(learn(base, folder, tmp_path / "runs" / "a", method, **more))
    first = {}

    def stop(step: int, _: float) -> None:
        first[len(first)] = {name: p.detach().clone() for name, p in base.attachments[0].named_parameters()}
        if len(first) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        learn(base, folder, tmp_path / "runs" / "b", method, watch=stop, **more)
    found = bits(learn(base, folder, tmp_path / "runs" / "b", method, **more))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    seen = dict(first)
    first.clear()
    with pytest.raises(Stopped):
        learn(base, folder, tmp_path / "runs" / "c", method, watch=stop)
    same = [all(torch.equal(first[i][name], seen[i][name]) for name in seen[i]) for i in range(3)]
    assert same == [True, True, False]  # two steps of the first task, one of the second


def test_concepts_trained_apart_are_merged_after_every_task(base, folder, tmp_path):
    prepared(base)
    more = {"roles": ROLES, "random_token": False, "merge_apart": True}
    run = learn(base, folder, tmp_path / "runs" / "a", Selective(), **more)
    own = [run.folder / "tasks" / name / "own.safetensors" for name in ("01-mia", "02-otto")]
    assert list(read_adapter(run.adapter)[2]) == ["<mia>", "<otto>"]
    for file, word in zip(own, ("<mia>", "<otto>"), strict=True):
        assert list(read_adapter(file)[2]) == [word]
    alone = learn(base, folder, tmp_path / "runs" / "b", Selective(), roles=ROLES, random_token=False)
    first, sequential = load_tensors(own[1])[0], load_tensors(alone.adapter)[0]
    key = next(name for name in first if name.endswith("values.weight"))
    assert not torch.equal(first[key], sequential[key])  # it began at the base, not at the task before
    whole = run.adapter.stat().st_size + sum(file.stat().st_size for file in own)
    assert run.metrics["adapter_bytes"] == whole


def test_a_sequence_that_was_stopped_after_a_merge_ends_with_the_same_bits(base, folder, tmp_path, monkeypatch):
    from diffadapt.recipes import sequence

    prepared(base)
    more = {"roles": ROLES, "random_token": False, "merge_apart": True}
    expected = bits(learn(base, folder, tmp_path / "runs" / "a", Selective(), **more))
    sample_all, calls = sequence.sample_all, []

    def stop(*arguments, **settings):
        calls.append(arguments)
        if len(calls) == 2:  # the second task is merged, and its record not written
            raise Stopped
        return sample_all(*arguments, **settings)

    monkeypatch.setattr(sequence, "sample_all", stop)
    with pytest.raises(Stopped):
        learn(base, folder, tmp_path / "runs" / "b", Selective(), **more)
    found = bits(learn(base, folder, tmp_path / "runs" / "b", Selective(), **more))
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        (METHOD, {"templates": ("a cat on a red background",)}, "expected one {} where the concept goes"),
        (METHOD, {"replay_pictures": 2, "prior_weight": 0.0}, "set train.prior_weight above 0"),
        (METHOD, {"merge_apart": True, "random_token": False}, "takes concepts trained with method.name=selective"),
        (Selective(), {"merge_apart": True}, "train.random_token=false"),
    ],
)
def test_baselines_that_cannot_be_are_refused_in_a_sentence(base, folder, tmp_path, method, more, message):
    with pytest.raises(Refused, match=message):
        learn(base, folder, tmp_path / "runs" / "a", method, **more)
