"""The parts of recipes before and after the loop: refusals, sources, groups, names of losses, and what follows."""

import json
import math
import re

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from diffadapt.adapters import LoRA, Selective, StyleInject
from diffadapt.adapters.control_net import ControlNet
from diffadapt.data.captioned import load_captioned
from diffadapt.data.control_pairs import ControlPairs
from diffadapt.data.styles import load_styles
from diffadapt.errors import Refused
from diffadapt.recipes import control, distill, style
from diffadapt.recipes.control import ControlConfig, attach_all
from diffadapt.recipes.job import RECIPES, job_options
from diffadapt.training.progress_samples import COUNT

# speak of folders and files, and name none
NO_PATHS = ("prediction_type", "concept.token", "sequence.order", "classify.order", "train.preference")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_option_that_names_a_file_or_folder_takes_a_home_folder(recipe):
    """`path=True` writes "~" out; the meaning of an option says whether it names one."""
    found = {each.name: each for method in recipe.methods.values() for each in job_options(method, recipe)}
    texts = {name: each.doc for name, each in found.items() if "text" in each.type}
    named = {name for name, doc in texts.items() if re.search(r"\b(folders?|file)\b", doc, re.IGNORECASE)} - {*NO_PATHS}
    assert {name for name, each in found.items() if each.path} == named
    assert {"base", "out", f"{recipe.table}.folder"} <= named


class Handed(Exception):
    """Ends a recipe where the loop would begin."""


def hands(monkeypatch, module, call) -> dict:
    """Calls a recipe, and returns what it gave to `fit`, with one batch and what was attached while it was drawn."""
    found: dict = {}

    def fit(base, attachments, batches, objective, **more):
        found.update(base=base, attachments=attachments, batches=batches, objective=objective, **more)
        found["enabled"] = [each.enabled for each in attachments.values()]
        found["batch"] = batches.batch(0, 0)
        raise Handed

    monkeypatch.setattr(module, "fit", fit)
    with pytest.raises(Handed):
        call()
    return found


@pytest.fixture
def pictures(tmp_path):
    """Two styles of three captioned pictures."""
    for name, colour in (("ink", "navy"), ("oil", "olive")):
        (tmp_path / "styles" / name).mkdir(parents=True)
        for i, caption in enumerate(("a cat", "a dog", "a red apple")):
            Image.new("RGB", (32, 32 + i), colour).save(tmp_path / "styles" / name / f"{i}.png")
            (tmp_path / "styles" / name / f"{i}.txt").write_text(caption)
    return tmp_path / "styles"


FEW = {"steps": 1, "batch_size": 3, "checkpoint_every": 0, "sample_every": 1, "quiet": True}


# --- style ------------------------------------------------------------------------------------------------------------


def test_a_style_is_learned_from_its_captions_which_the_samples_ask_for(base, pictures, tmp_path, monkeypatch):
    out = tmp_path / "run"
    found = hands(
        monkeypatch, style, lambda: style.train_style(
            base, load_styles(pictures, held_out=1), method=LoRA(rank=1), out=out, seed=3, learning_rate=0.01,
            snr_gamma=0.5, gradient_accumulation=2, caption_dropout=0.0, evaluation_pictures=0, **FEW,
        ),
    )  # fmt: skip
    assert found["folder"] == out and found["seed"] == 3 and found["enabled"] == [True] and found["quiet"]
    assert list(found["attachments"]) == ["adapter"] and found["batches"].parts == 2
    (group,) = found["groups"]
    assert group["peak"] == 0.01 and len(group["params"]) == len(list(found["attachments"]["adapter"].parameters()))
    batch = found["batch"]
    assert batch.sources == ("target",) * 3 and found["objective"].snr_gamma == 0.5
    learned = {"a cat", "a dog"}  # the last of each style is kept back
    shown = json.loads((out / "samples" / "prompts.json").read_text())
    assert set(shown["prompts"]) == learned and shown["seeds"] == [3 + i for i in range(len(shown["prompts"]))]
    assert len(shown["prompts"]) <= COUNT
    ids = {prompt: base.tokenize([prompt])[0] for prompt in learned}
    assert all(any(torch.equal(row, each) for each in ids.values()) for row in batch.condition.token_ids)
    written = (out / "run.toml").read_text()
    assert 'recipe = "style"' in written and "[style]" in written and "learning_rate = 0.01" in written
    assert not base.attachments  # released, though the loop failed


def test_captions_of_a_style_are_dropped_at_their_rate(base, pictures, tmp_path, monkeypatch):
    found = hands(
        monkeypatch, style, lambda: style.train_style(
            base, load_styles(pictures, held_out=0), method=LoRA(rank=1), out=tmp_path / "run", caption_dropout=1.0,
            **FEW,
        ),
    )  # fmt: skip
    (nothing,) = base.tokenize([""])
    assert all(torch.equal(row, nothing) for row in found["batch"].condition.token_ids)


def test_routers_that_use_one_branch_are_told_of(tmp_path):
    method = StyleInject(branches=4)

    def note(*bits: float, method=method) -> str:
        rows = [{"step": i, "router_entropy": each} for i, each in enumerate(bits)]
        (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return style.collapse(tmp_path, method)

    low = style.COLLAPSED * 2.0  # of log2(4) = 2 bits
    assert "use one of 4 branches" in note(low * 0.99) and note(low) == note(2.0) == note() == ""
    assert f"(entropy {low / 2:.2f} of 2.00 bits over the last 2 steps)" in note(low / 4, low * 3 / 4)
    assert note(*[2.0] * 10, *[0.0] * 50) != "" and note(*[0.0] * 10, *[2.0] * 50) == ""  # the last fifty count
    assert note(0.0, method=StyleInject(branches=1)) == note(0.0, method=LoRA()) == ""
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert style.collapse(tmp_path, method) == ""


def test_one_style_for_many_branches_is_doubted(pictures):
    def doubts(method, folder=pictures / "ink"):
        return style._doubts(load_styles(folder, held_out=0), method)

    assert "one style for 4 branches" in doubts(StyleInject(branches=4))[0]
    assert doubts(StyleInject(branches=1)) == doubts(LoRA()) == doubts(StyleInject(branches=4), pictures) == []


def test_the_identity_of_styles_is_that_of_all_their_pictures(pictures):
    one = style._identity(load_styles(pictures, held_out=1))
    assert set(one) == {"pictures", "held_out"} and set(one["pictures"]) == {"ink", "oil"}
    assert one["pictures"]["ink"].startswith("2 pictures ") and one["held_out"]["oil"].startswith("1 pictures ")
    assert one["pictures"]["ink"] != one["pictures"]["oil"]
    (pictures / "ink" / "0.txt").write_text("a bird")
    assert style._identity(load_styles(pictures, held_out=1)) != one


# --- control ----------------------------------------------------------------------------------------------------------


def test_a_method_gets_a_hint_beside_it_and_a_control_net_none(base):
    both = attach_all(base, LoRA(rank=1), ControlConfig(roles=("cross_attention.key",)), 0)
    assert list(both) == ["adapter", "hint"] and both["hint"].method.name == "hint"
    assert set(both["adapter"].adapters) == set(base.roles["cross_attention.key"])
    for each in reversed([*both.values()]):
        each.detach()
    with pytest.raises(Refused, match="stands on no roles"):
        attach_all(base, ControlNet(), ControlConfig(roles=("cross_attention.key",)), 0)
    alone = attach_all(base, ControlNet(), ControlConfig(), 0)
    assert list(alone) == ["adapter"] and alone["adapter"].method.name == "controlnet"


def test_rates_of_method_and_hint(base):
    both = attach_all(base, LoRA(rank=1), ControlConfig(), 0)
    for rate, expected in ((None, 0.5), (0.0, 0.0), (0.25, 0.25)):
        config = ControlConfig(learning_rate=0.5, hint_learning_rate=rate)
        groups = control._groups(both, config)
        assert [group["peak"] for group in groups] == [0.5, expected]
        for group, each in zip(groups, both.values(), strict=True):
            assert [id(p) for p in group["params"]] == [id(p) for p in each.parameters()]


def test_control_shows_held_out_pairs_and_writes_whose_they_are(base, tmp_path, monkeypatch):
    def pairs(seed: int, count: int) -> ControlPairs:
        generator = torch.Generator().manual_seed(seed)
        pictures, signals = (torch.rand(count, 3, 32, 32, generator=generator) for _ in range(2))
        return ControlPairs.in_memory(pictures, signals, [f"a cat {seed}{i}" for i in range(count)], signal="canny")

    out = tmp_path / "run"
    found = hands(
        monkeypatch, control, lambda: control.train_control(
            base, pairs(1, 4), method=LoRA(rank=1), out=out, held_out=pairs(2, 8), seed=5, gradient_accumulation=2,
            caption_dropout=0.0, **FEW,
        ),
    )  # fmt: skip
    assert found["seed"] == 5 and found["batches"].parts == 2 and found["enabled"] == [True, True]
    assert found["samples"].prompts == [f"a cat 2{i}" for i in range(COUNT)] and found["samples"].seed == 5
    assert len(list((out / "samples" / "signals").glob("*.png"))) == COUNT
    with Image.open(out / "concept" / "00.png") as first:
        assert first.size == (64, 32)  # picture and signal side by side
    written = (out / "run.toml").read_text()
    assert 'recipe = "control"' in written and "held_out = 8" in written
    assert found["log_as"] == {"memory": "loss_memory", "teacher": "loss_teacher"}
    with pytest.raises(Refused, match="holds a run with other settings"):
        control.train_control(
            base, pairs(1, 4), method=LoRA(rank=1), out=out, held_out=pairs(3, 8), seed=5, gradient_accumulation=2,
            caption_dropout=0.0, **FEW,
        )  # fmt: skip
    assert not base.attachments


# --- distillation -----------------------------------------------------------------------------------------------------


def test_every_teacher_has_its_own_rows_and_its_own_loss_in_the_log(
    base, tiny_v_folder, pictures, tmp_path, monkeypatch
):
    captions, given = ["a cat", "a dog", "a red apple"], load_captioned(pictures / "ink")

    def call(name: str, teachers: list[str], **more) -> dict:
        return hands(
            monkeypatch, distill, lambda: distill.train_distill(
                base, dict.fromkeys(teachers, base), captions, method=LoRA(rank=1), out=tmp_path / name, seed=2,
                teacher_pictures=2, evaluation_pictures=0, snr_gamma=0.25, **{**FEW, "caption_dropout": 0.0, **more},
            ),
        )  # fmt: skip

    found = call("one", ["ink"])
    assert found["objective"].sources == ("ink",) and found["log_as"] is None and found["objective"].snr_gamma == 0.25
    assert found["batch"].sources == ("ink",) * 3 and set(found["batch"].captions) <= set(captions)
    assert len(list((tmp_path / "one" / "teachers" / "ink").glob("*.png"))) == 2
    assert found["samples"].prompts == captions and found["samples"].seed == 2
    found = call("two", ["ink", "oil"], pictures=given, batch_size=8, caption_dropout=1.0)
    assert found["objective"].sources == ("ink", "ink, given pictures", "oil", "oil, given pictures")
    assert found["log_as"] == {"ink": "loss_ink", "oil": "loss_oil"} and set(found["batch"].captions) == {""}
    assert sorted(found["batch"].sources) == sorted(found["objective"].sources * 2)


def test_pictures_of_a_teacher_are_under_the_students_captions_in_turn(base, tmp_path):
    from diffadapt.data.cache import TensorCache
    from diffadapt.recipes.distill import DistillConfig, TaughtPictures, _bank

    bank = _bank(base, tmp_path / "bank", ["x", "y"], DistillConfig(teacher_pictures=3), Accelerator(cpu=True), True)
    assert bank.prompts == ["x", "y", "x"] and bank.settings.resolution == base.resolution
    source = TaughtPictures(base, bank, ["a cat", "a dog"], dropout=0.0, cache=TensorCache(None))
    import numpy as np

    rows = [row for seed in range(8) for row in source.pick(np.random.default_rng(seed), 3, 0)]
    assert {caption for _, caption in rows} == {"a cat", "a dog"} and source.captions() == ["a cat", "a dog", ""]
    assert all(caption == ("a cat", "a dog")[i % 2] for i, caption in rows)
    source.dropout = 1.0
    assert {caption for _, caption in source.pick(np.random.default_rng(0), 3, 0)} == {""}


# --- keeping what the base knows --------------------------------------------------------------------------------------


def test_what_was_on_is_on_again_and_what_was_off_stays_off(base):
    from diffadapt.adapters import attach
    from diffadapt.recipes.retention import switched_off

    one, other = attach(base, LoRA(rank=1)), attach(base, Selective(), ["norm"])
    other.enabled = False
    with pytest.raises(RuntimeError), switched_off([one, other]):
        assert not one.enabled and not other.enabled
        raise RuntimeError
    assert one.enabled and not other.enabled


def test_a_premise_says_its_ratio_and_warns_above_the_bar(capsys):
    from diffadapt.recipes.retention import WARN_ABOVE, Premise

    assert Premise(3.0, 2.0).ratio == 1.5
    Premise(WARN_ABOVE, 1.0).tell(False)
    assert capsys.readouterr().err.splitlines() == [
        f"premise: near the data the base's loss on the target is {WARN_ABOVE:.2f} times that on its own pictures"
    ]
    Premise(WARN_ABOVE + 0.01, 1.0).tell(False)
    assert "warning: above 1.3 " in capsys.readouterr().err
    Premise(9.0, 1.0).tell(True)
    assert capsys.readouterr().err == "" and math.isclose(Premise(1.0, 4.0).ratio, 0.25)


def test_one_condition_for_target_and_memory_is_refused():
    from diffadapt.recipes.retention import refuse_one_condition

    for captions, caption in (([], ""), (["a cat"], ""), (["", "a cat"], ""), ([""], None), (["a cat"], "a dog")):
        refuse_one_condition(captions, caption)
    for captions, caption in (([""], ""), (["a cat", "a cat"], "a cat")):
        with pytest.raises(Refused, match="the same condition"):
            refuse_one_condition(captions, caption)
