"""Whatever a file or a command line holds, the answer is a result or one sentence (Refused, Failed): never a traceback.

`make test` draws a few examples of each kind, always the same; `make fuzz` draws for minutes, others each time.
"""

import contextlib
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffadapt.adapters import METHODS, LoRA, attach, load_adapter, read_adapter
from diffadapt.bases import load_classifier
from diffadapt.bases.defaults import read_defaults
from diffadapt.bases.local_folder import check_class, check_components
from diffadapt.cli.arguments import read_bias, split_adapter
from diffadapt.cli.train import read_settings
from diffadapt.config import override, read_toml
from diffadapt.data.class_record import ClassRecord
from diffadapt.data.folder import list_folder
from diffadapt.data.memory_bank import BankSettings, MemoryBank
from diffadapt.data.prompt_check import cut_at, prompt_notes
from diffadapt.data.sequence_record import SequenceRecord
from diffadapt.errors import LONGEST, Failed, Refused
from diffadapt.evidence.results import NO_BASE, read_results
from diffadapt.files import load_tensors, save_tensors
from diffadapt.interchange import import_adapter
from diffadapt.metrics.features import _Preparation
from diffadapt.recipes.job import read_job
from diffadapt.report.run_folder import read_run_folder
from diffadapt.sampling.sample import check_lines, parse_prompt_line
from diffadapt.training.checkpoint import load_checkpoint

LONG = "FUZZ_EXAMPLES" in os.environ
fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "12")), deadline=None, database=None, derandomize=not LONG,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink] if LONG else [Phase.generate],
)  # fmt: skip

TEXT = st.text(max_size=30) | st.sampled_from(
    ["", " ", "none", "nan", "inf", "-1", "1e400", "0", "9" * 400, "true", "lora", "oft", "subject", "~", "/", "a=b",
     "{}", "<t>", "\0", "\x1b[2J", "\u2028", "\ud800", "x" * 5000, "unet.*=4", "unet.*=nan", "a" * 300 + ".safetensors"]
)  # fmt: skip
MANY = st.builds(lambda word, count: " ".join([word[:20]] * count), TEXT, st.integers(0, 2_000))  # words
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
VALUES = st.recursive(
    NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@contextlib.contextmanager
def one_sentence():
    """Lets a refusal pass that a person can read; anything else is a fault."""
    try:
        yield
    except (Refused, Failed) as error:
        assert len(str(error)) <= LONGEST + 10 and "\x1b" not in str(error) and "\0" not in str(error)


def tables(names):
    """A table with some known names, some unknown ones and any values."""
    return st.dictionaries(st.sampled_from(sorted(names)) | TEXT, VALUES, max_size=6)


# --- configs and command lines ----------------------------------------------------------------------------------------

METHOD_NAMES = {
    "name",
    "rank",
    "alpha",
    "ranks",
    "alphas",
    "dropout",
    "block_size",
    "blocks",
    "vectors",
    "train",
    "roles",
}
TRAIN_NAMES = {
    "steps",
    "learning_rate",
    "roles",
    "templates",
    "memory_bank",
    "schedule",
    "mixed_precision",
    "optimizer",
}
JOBS = st.fixed_dictionaries(
    {},
    optional={
        "recipe": VALUES, "base": VALUES, "out": VALUES, "seed": VALUES, "prediction_type": VALUES, "made_by": VALUES,
        "concept": VALUES | tables({"folder", "noun", "token", "also"}), "method": VALUES | tables(METHOD_NAMES),
        "train": VALUES | tables(TRAIN_NAMES), "pairs": VALUES | tables({"folder", "signals", "kind", "held_out"}),
    },
)  # fmt: skip


@fuzzed
@given(JOBS, st.lists(TEXT, max_size=3))
def test_a_config(table, assignments):
    with one_sentence():
        job = read_job(override(table, assignments))
        assert job.table()["train"] is job.train


@fuzzed
@given(st.binary(max_size=200) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_a_config_file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("fuzz") / "a.toml"
    path.write_bytes(data)
    with one_sentence():
        read_job(read_toml(path))


@fuzzed
@given(st.sampled_from(sorted(METHODS)), tables(METHOD_NAMES))
def test_a_method_s_settings_on_a_base(base, name, values):
    with one_sentence():
        base_options = {"concept": {"folder": "x", "noun": "cat"}, "method": {**values, "name": name}}
        attach(base, read_job(base_options).method, ["cross_attention.key"]).detach()


@fuzzed
@given(st.lists(TEXT, max_size=3))
def test_a_command_s_words(texts):
    for text in texts:
        with one_sentence():
            split_adapter(text)
        with one_sentence():
            read_bias([text])
    with one_sentence():
        read_settings(texts)


@fuzzed
@given(st.lists(TEXT | MANY | st.sampled_from(["--w", "--h", "--d", "--s", "--l", "--n", "--cn", "--x"]), max_size=6))
def test_a_prompt(base, parts):
    with one_sentence():
        line = parse_prompt_line(" ".join(parts))
        check_lines(base, [line])
        if line.prompt.isprintable():
            base.tokenize([line.prompt])
            prompt_notes(base, [line.prompt])
            assert line.prompt.rstrip().endswith(cut_at(base, line.prompt))


# --- files of ours ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter_bytes(tmp_path_factory, tiny_folder):
    from diffadapt.bases import load_base

    base = load_base(tiny_folder, device="cpu")
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    attach(base, LoRA(rank=1), ["cross_attention.key"], tokens={"<t>": "cat"}).save(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def base(tiny_folder):
    """One for all examples, since each takes off what it puts on."""
    from diffadapt.bases import load_base

    return load_base(tiny_folder, device="cpu")


HEADER = (
    "format",
    "format_version",
    "method",
    "config",
    "roles",
    "tokens",
    "base",
    "base_fingerprint",
    "prediction_type",
)


@fuzzed
@given(st.dictionaries(st.sampled_from(HEADER), VALUES.map(json.dumps) | TEXT, max_size=3))
def test_an_adapter_s_header(base, adapter_bytes, tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(adapter_bytes)
    tensors, header = load_tensors(path)
    clean = {key: value.encode("utf-8", "replace").decode() for key, value in changes.items()}
    save_tensors(path, tensors, {**header, **clean})
    with one_sentence():
        load_adapter(base, path).detach()
    assert not base.attachments


@fuzzed
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), st.floats(0.2, 1))
def test_an_adapter_s_bytes(base, adapter_bytes, tmp_path_factory, edits, kept):
    data = bytearray(adapter_bytes)
    (length,) = struct.unpack("<Q", data[:8])
    for place, value in edits:
        data[int(place * (8 + length))] = value  # in the header; the values behind it are numbers or they are not
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    path.write_bytes(bytes(data[: max(1, int(kept * len(data)))]))
    with one_sentence():
        load_adapter(base, path).detach()
    assert not base.attachments


def written(folder, name, value):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))


ANY = VALUES | TEXT | st.just("[" * 3000)
BANK = tables({"settings", "pictures", "format"}) | ANY
STATE = tables({"step", "of", "sha256"}) | ANY


@fuzzed
@given(BANK, STATE, ANY, tables({"format_version", "default_guidance", "default_steps", "world"}) | ANY)
def test_the_json_of_banks_checkpoints_runs_and_bases(tmp_path_factory, bank, state, other, defaults):
    folder = tmp_path_factory.mktemp("fuzz")
    written(folder, "bank.json", bank)
    with one_sentence():
        MemoryBank(folder, BankSettings(base_fingerprint="a", resolution=8, guidance=1.0, steps=1))
    save_tensors(folder / "checkpoints" / "step-000002" / "state.safetensors", {"x": torch.ones(1)})
    written(folder, "checkpoints/step-000002/state.json", state)
    with one_sentence():
        load_checkpoint(folder / "checkpoints")
    for name in ("metrics.json", "log.jsonl", "samples/prompts.json", "concept/crops.json", "run.toml"):
        written(folder, name, other)
    with one_sentence():
        read_run_folder(folder)
    written(folder, "base.json", defaults)
    with one_sentence():
        read_defaults(folder)
    written(folder, "model_index.json", other)
    with one_sentence():
        check_class(folder / "model_index.json", ["StableDiffusionPipeline"])
        check_components(folder, ["unet", "vae"], {})


LEARNED = st.lists(tables({"name", "token", "contents", "classes", "files", "trainable"}), max_size=2) | ANY
ROWS = st.lists(st.lists(NUMBERS | st.lists(NUMBERS, max_size=2), max_size=2), max_size=2) | ANY
UNITS = st.lists(tables({"unit", "scores", "seconds", "error"}), max_size=2) | ANY
SIDES = tables({"shortest_edge", "height"}) | ANY
CONFIG = st.fixed_dictionaries({"sample_size": ANY, "scaling_factor": ANY, "image_size": ANY, "model_type": TEXT}) | ANY


@fuzzed
@given(LEARNED, ROWS, UNITS, tables({"fingerprint"}) | ANY, CONFIG)
def test_the_json_of_records_results_and_models(tmp_path_factory, learned, rows, units, base, config):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, key, read in (("sequence.json", "scores", SequenceRecord), ("classes.json", "answers", ClassRecord)):
        written(folder, name, {"learned": learned, key: rows})
        with one_sentence():
            read.read(folder)
    written(folder, "results/a.json", {"format": 1, "base": base, "commit": "a", "units": units, "failed": units})
    with one_sentence():
        read_results(folder / "results", NO_BASE)
    written(folder, "model_index.json", {"_class_name": "StableDiffusionPipeline", "unet": ["a"], "vae": ["a"]})
    for name in ("unet/config.json", "vae/config.json", "vit/config.json", "vit/model.safetensors"):
        written(folder, name, config)
    with one_sentence():
        check_components(folder, ["unet", "vae"], {})
    with one_sentence():
        load_classifier(folder / "vit", 2, device="cpu")


@fuzzed
@given(SIDES, SIDES, ANY, st.lists(NUMBERS, min_size=3, max_size=3) | ANY, st.lists(NUMBERS, min_size=3) | ANY)
def test_the_preparation_of_an_encoder(tmp_path_factory, size, crop, centre, mean, std):
    folder = tmp_path_factory.mktemp("fuzz")
    facts = {"size": size, "crop_size": crop, "do_center_crop": centre, "image_mean": mean, "image_std": std}
    written(folder, "preprocessor_config.json", facts)
    with one_sentence():
        _Preparation(str(folder), 8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@fuzzed
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["file_name", "text", "caption", "prompt"]) | TEXT, VALUES) | ANY, max_size=3
    )
)
def test_the_metadata_of_a_folder(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("fuzz")
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    lines = [row if isinstance(row, str) else json.dumps({"file_name": "a.png"} | row if isinstance(row, dict) else row)
             for row in rows]  # fmt: skip
    written(folder, "metadata.jsonl", "\n".join(lines))
    with one_sentence():
        list_folder(folder)


@fuzzed
@given(st.dictionaries(TEXT.filter(lambda t: "/" not in t and "\0" not in t and len(t.encode("utf-8", "replace")) < 80),
                       st.binary(max_size=40), max_size=4))  # fmt: skip
def test_the_names_in_a_folder(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("fuzz")
    for name, data in files.items():
        with contextlib.suppress(OSError, UnicodeEncodeError):
            (folder / name).write_bytes(data)
            (folder / f"{name}.txt").write_bytes(data)
            Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    with one_sentence():
        list_folder(folder)


# --- files of other tools ---------------------------------------------------------------------------------------------

LAYER = st.sampled_from(
    ["lora_unet_conv_in", "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", "unet.conv_in",
     "emb_params",
     "base_model.model.mid_block.attentions.0.proj_in",
     "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"]
)  # fmt: skip
PART = st.sampled_from(
    ["lora_down.weight", "lora_up.weight", "alpha", "lora_A.weight", "lora_B.weight", "lora_mid.weight", "oft_R.weight",
     "R", "hada_w1_a", "diff", "dora_scale", "down.weight", "up.weight", "weight", "scaled_oft"]
)  # fmt: skip
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 16, 32]), max_size=5)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64])
TENSORS = st.dictionaries(
    st.tuples(LAYER, PART).map(".".join) | LAYER | st.text(alphabet="abc._", min_size=1, max_size=9),
    st.tuples(SHAPES, DTYPES).map(lambda two: torch.ones(two[0]).to(two[1])),
    max_size=4,
)
PEFT = tables(
    {"peft_type", "r", "lora_alpha", "alpha_pattern", "rank_pattern", "use_rslora", "oft_block_size", "coft", "eps",
     "lora_dropout", "module_dropout", "use_cayley_neumann", "num_cayley_neumann_terms", "block_share"}
) | ANY  # fmt: skip


@fuzzed
@given(TENSORS, VALUES.map(json.dumps) | TEXT, PEFT, st.sampled_from(["LORA", "OFT", "LOHA", None]))
def test_an_adapter_of_another_tool(base, tmp_path_factory, tensors, metadata, config, kind):
    folder = tmp_path_factory.mktemp("fuzz")
    header = {"lora_adapter_metadata": metadata.encode("utf-8", "replace").decode()}
    save_tensors(folder / "a.safetensors", tensors, header)
    with one_sentence():
        import_adapter(base, folder / "a.safetensors", folder / "out.safetensors")
    assert not base.attachments
    save_tensors(folder / "peft" / "adapter_model.safetensors", tensors)
    written(folder, "peft/adapter_config.json", {**config, "peft_type": kind} if isinstance(config, dict) else config)
    with one_sentence():
        import_adapter(base, folder / "peft", folder / "peft.safetensors")
    assert not base.attachments
    with one_sentence():
        read_adapter(Path(folder / "a.safetensors"))
