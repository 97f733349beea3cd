"""Strict reading of TOML and key=value into frozen dataclasses, and back."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest

from diffadapt import config as config_module
from diffadapt.config import (
    REQUIRED,
    build,
    check,
    dump_toml,
    option,
    options,
    override,
    read_toml,
    tomllib,
    with_overrides,
)
from diffadapt.errors import Refused


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = option(1e-3, "peak learning rate", low=0)
    betas: tuple[float, ...] = option((0.9, 0.999), "decay rates, 0 to 1", low=0, high=1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    folder: str = option(REQUIRED, "where the pictures are")
    steps: int = option(400, "optimizer steps", low=1)
    alpha: float | None = option(None, "unset means rank")
    radius: float | None = option(0.5, "none switches it off", low=0)
    schedule: str = option("cosine", "shape over time", choices=("constant", "cosine"))
    masked: bool = option(False, "inside the masks only")
    roles: tuple[str, ...] = option((), "roles to adapt")
    cache: Path | None = option(None, "a folder")
    optimizer: Optimizer = option(Optimizer(), "the optimizer")


def from_command_line(*assignments: str) -> Settings:
    return build(Settings, override({"folder": "photos"}, assignments))


def test_toml_becomes_a_frozen_config(tmp_path: Path):
    file = tmp_path / "a.toml"
    file.write_text('folder = "photos"\nsteps = 7\nalpha = 2\nroles = ["a.*"]\n[optimizer]\nlearning_rate = 1e-4\n')
    settings = build(Settings, read_toml(file))
    assert settings == Settings(
        folder="photos", steps=7, alpha=2.0, roles=("a.*",), optimizer=Optimizer(learning_rate=1e-4)
    )
    assert isinstance(settings.alpha, float)
    with pytest.raises(FrozenInstanceError):
        settings.steps = 8  # pyright: ignore


@pytest.mark.parametrize(
    ("assignment", "name", "value"),
    [
        ("steps=12", "steps", 12),
        ("steps = 1_000", "steps", 1000),
        ("alpha=4", "alpha", 4.0),
        ("alpha=.5", "alpha", 0.5),
        ("alpha=1e-3", "alpha", 1e-3),
        ("alpha=none", "alpha", None),
        ("radius=none", "radius", None),
        ("masked=true", "masked", True),
        ("folder=12", "folder", "12"),
        ("folder=true", "folder", "true"),
        ("folder=a=b", "folder", "a=b"),
        ('folder="with space"', "folder", "with space"),
        ("roles=cross_attention.*, self_attention.key", "roles", ("cross_attention.*", "self_attention.key")),
        ('roles=["a", "b"]', "roles", ("a", "b")),
        ("roles=", "roles", ()),
        ("cache=/tmp/x", "cache", Path("/tmp/x")),
    ],
)
def test_a_value_on_the_command_line_takes_the_type_of_its_option(assignment: str, name: str, value: Any):
    found = getattr(from_command_line(assignment), name)
    assert found == value
    assert type(found) is type(value)


def test_overrides_reach_inner_tables_and_the_last_one_wins():
    settings = from_command_line("optimizer.learning_rate=1", "optimizer.learning_rate=2", "optimizer.betas=0.5,0.6")
    assert settings.optimizer == Optimizer(learning_rate=2.0, betas=(0.5, 0.6))


def test_overriding_leaves_the_table_given_as_it_was():
    table = {"optimizer": {"learning_rate": 1.0}}
    override(table, ["optimizer.learning_rate=2"])
    assert table == {"optimizer": {"learning_rate": 1.0}}


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("stesp=3", "unknown option stesp; did you mean steps?"),
        ("optimizer.learning_rat=3", "unknown option optimizer.learning_rat; did you mean optimizer.learning_rate?"),
        ("learning_rate=3", "unknown option learning_rate; did you mean optimizer.learning_rate?"),
        ("learning-rate=3", "unknown option learning-rate; did you mean optimizer.learning_rate?"),
        ("steps=many", "steps: expected a whole number, got 'many'"),
        ("steps=1.5", "steps: expected a whole number, got '1.5'"),
        ("steps=true", "steps: expected a whole number, got 'true'"),
        ("steps=0", "steps: expected at least 1, got 0"),
        ("alpha=x", "alpha: expected a number, or none, got 'x'"),
        ("alpha=nan", "alpha: expected a finite number, got nan"),
        ("masked=yes", "masked: expected true or false, got 'yes'"),
        ("schedule=cosin", "schedule: expected constant or cosine, got 'cosin' (text); did you mean cosine?"),
        ("optimizer.betas=0.5,2", "optimizer.betas: expected at least 0 and at most 1, got 2.0"),
        ("optimizer=adam", "optimizer is a table: expected options such as optimizer.learning_rate, got 'adam'"),
        ("folder.x=1", "folder is a value and not a table, so folder.x cannot be set"),
        ("steps", "expected an option as key=value, such as train.steps=200, got 'steps'"),
        ("=3", "expected an option as key=value, such as train.steps=200, got '=3'"),
        ("optimizer..x=3", "expected an option as key=value, such as train.steps=200, got 'optimizer..x=3'"),
    ],
)
def test_a_mistake_is_named_with_what_was_expected(assignment: str, sentence: str):
    with pytest.raises(Refused) as refused:
        from_command_line(assignment)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"steps": "7"}, "steps: expected a whole number, got '7' (text)"),
        ({"steps": 7.0}, "steps: expected a whole number, got 7.0 (a number)"),
        ({"steps": True}, "steps: expected a whole number, got True (true or false)"),
        ({"alpha": False}, "alpha: expected a number, or none, got False (true or false)"),
        ({"folder": 3}, "folder: expected text, got 3 (a whole number)"),
        ({"roles": "a"}, "roles: expected a list of texts, got 'a' (text)"),
        ({"roles": ["a", 1]}, "roles: expected a list of texts, got ['a', 1] (a list)"),
        ({"optimizer": []}, "optimizer is a table: expected options such as optimizer.learning_rate, got [] (a list)"),
        ({"folder": {"x": 1}}, "folder: expected text, got {'x': 1} (a table)"),
    ],
)
def test_toml_of_the_wrong_type_is_refused_and_never_converted(table: dict[str, Any], sentence: str):
    with pytest.raises(Refused) as refused:
        build(Settings, {"folder": "photos", **table})
    assert str(refused.value) == sentence


def test_a_missing_option_is_named_with_its_meaning():
    with pytest.raises(Refused, match=r"^folder is missing \(where the pictures are\); add folder=\.\.\.$"):
        build(Settings, {})


def test_a_config_made_in_python_is_held_against_the_same_rules():
    check(Settings(folder="a", alpha=2, roles=["x"]))  # pyright: ignore
    with pytest.raises(Refused, match="train.steps: expected a whole number, got '4'"):
        check(Settings(folder="a", steps="4"), "train")  # pyright: ignore
    with pytest.raises(Refused, match="train.optimizer.learning_rate: expected at least 0"):
        check(Settings(folder="a", optimizer=Optimizer(learning_rate=-1.0)), "train")


def test_keyword_overrides_are_strict_too():
    assert with_overrides(Settings(folder="a"), {"steps": 3}).steps == 3
    with pytest.raises(Refused, match="unknown option step; did you mean steps?"):
        with_overrides(Settings(folder="a"), {"step": 3})
    with pytest.raises(Refused, match="steps: expected at least 1"):
        with_overrides(Settings(folder="a"), {"steps": 0})


@pytest.mark.parametrize(
    "settings",
    [
        Settings(folder='a b\n"c" \\ \''),
        Settings(folder="a", steps=1, alpha=1e-9, radius=None, roles=("x", "y"), cache=Path("/tmp"), masked=True),
        Settings(folder="a", alpha=0.5, optimizer=Optimizer(betas=())),
    ],
)
def test_what_is_dumped_reads_back_to_the_same(settings: Settings):
    assert build(Settings, tomllib.loads(dump_toml(settings))) == settings


def test_a_mapping_of_configs_is_dumped_as_tables():
    text = dump_toml({"seed": 0, "left_out": None, "optimizer": Optimizer(), "method": {"name": "lora"}})
    assert tomllib.loads(text) == {
        "seed": 0,
        "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.999]},
        "method": {"name": "lora"},
    }


def test_options_list_every_field_once_with_type_default_and_meaning():
    found = {each.name: each for each in options(Settings, "train")}
    assert list(found)[:2] == ["train.folder", "train.steps"]
    assert found["train.steps"] == ("train.steps", "a whole number", 400, "optimizer steps", 1, None, None, False)
    assert found["train.optimizer.betas"].type == "a list of numbers"
    assert found["train.alpha"].type == "a number, or none"
    assert found["train.folder"].default is REQUIRED
    assert "train.optimizer" not in found


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"steps = = 3", "is not TOML: Invalid value"),
        (b'name = "caf\xe9"', "is not UTF-8 text"),
        (None, "cannot read the config .*: No such file or directory"),
    ],
)
def test_a_file_that_is_no_toml_is_named(tmp_path: Path, content: bytes | None, sentence: str):
    file = tmp_path / "a.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused, match=sentence):
        read_toml(file)


def test_a_byte_order_mark_is_no_fault(tmp_path: Path):
    (tmp_path / "a.toml").write_bytes(b"\xef\xbb\xbfsteps = 3")
    assert read_toml(tmp_path / "a.toml") == {"steps": 3}


def test_settings_are_checked_where_they_are_made_and_a_wrong_name_gets_the_nearest():
    from diffadapt import OFT, LoRA, SubjectConfig

    with pytest.raises(Refused, match="unknown option rnk; did you mean rank?"):
        LoRA(rnk=8)
    with pytest.raises(Refused, match="rank: expected at least 1, got 0"):
        LoRA(rank=0)
    with pytest.raises(Refused, match=r"block_size: expected a whole number.*, got 'many' \(text\)"):
        OFT(block_size="many")
    with pytest.raises(Refused, match="unknown option step; did you mean steps?"):
        SubjectConfig(step=3)
    with pytest.raises(Refused, match="train.steps: expected at least 1, got 0"):
        build(SubjectConfig, {"steps": 0}, name="train")
    assert LoRA(rank=8) == LoRA(rank=8) and LoRA(rank=8).rank == 8


def test_the_docstring_of_settings_says_what_each_option_is():
    @dataclass(frozen=True, kw_only=True)
    class Part(config_module.Settings):
        """A part."""

        side: int = option(8, "side in pixels", low=1, high=64)

    @dataclass(frozen=True, kw_only=True)
    class Whole(Part):
        """A whole.

        With a second paragraph.
        """

        side: int = option(16, "side in pixels, larger here", low=1)
        name: str = option(REQUIRED, "what it is called", choices=("a", "b"))
        inner: Part = option(Part(), "the part in it")

    assert Whole.__doc__ == (
        "A whole.\n\nWith a second paragraph.\n\nArgs:\n"
        "    side (default 16): side in pixels, larger here [a whole number, >= 1]\n"
        "    name (required): what it is called [a | b]\n"
        "    inner (Part): the part in it"
    )
