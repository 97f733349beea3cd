"""Tiny bases with random weights, in the format and layout of real ones, for every test that needs a model."""

import copy
import gc
import io
import json
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

WORDS = ("a", "photo", "of", "cat", "dog", "apple", "on", "red", "blue", "background", "flat", "small", "the")


def pytest_configure(config: pytest.Config):
    """One thread for each process that tests, and for the programs it starts: the processes share the cores."""
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))


def pytest_collection_finish(session: pytest.Session):
    """What is loaded by now stays: a full garbage collection that walks it takes a fifth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def make_tokenizer(folder: Path, length: int = 16):
    """A CLIP tokenizer whose vocabulary is every byte letter and `WORDS`, each of those one token."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:  # from the right, so that each merge ends a word and none gets in another's way
            pair = (pieces[-2], pieces[-1])
            merges.append(pair)
            pieces[-2:] = ["".join(pair)]
    merges = list(dict.fromkeys(merges))
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length, pad_token="<|endoftext|>"
    )
    for word in WORDS:
        assert len(tokenizer.tokenize(word)) == 1, tokenizer.tokenize(word)
    return tokenizer


def make_pipeline(folder: Path, *, prediction_type: str, tiny_autoencoder: bool):
    """A StableDiffusionPipeline for 32x32 pictures: 8x8 latents, two levels of cross-attention, two text layers."""
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "words")
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=16, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    if tiny_autoencoder:
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8), latent_channels=4,
            num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1),
        )  # fmt: skip
        scheduler = DPMSolverMultistepScheduler(
            beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type, timestep_spacing="trailing"
        )
    else:
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=32,
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        )  # fmt: skip
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type,
            clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def make_dit(place: Path) -> Path:
    """A random DiT for 16x16 pictures as published checkpoints are: one embedding, copied into every block."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=3,
    )  # fmt: skip
    first, second = transformer.transformer_blocks
    second.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    vae = AutoencoderKL(
        block_out_channels=(8, 16), latent_channels=4, layers_per_block=1, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2, clip_sample=False)
    pipeline = DiTPipeline(transformer, vae, scheduler)
    classes = {"0": "cat, house cat", "1": "dog", "2": "apple"}  # as the published model_index.json has them
    pipeline.register_to_config(id2label=classes)
    pipeline.save_pretrained(place)
    (place / "base.json").write_text(json.dumps({"format_version": 1, "default_guidance": 1.5, "default_steps": 3}))
    return place


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved base that predicts epsilon, with AutoencoderKL and a DDIM scheduler, like Stable Diffusion 1.x."""
    return _saved(tmp_path_factory.mktemp("tiny"), prediction_type="epsilon", tiny_autoencoder=False)


@pytest.fixture(scope="session")
def tiny_v_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved base that predicts v, with AutoencoderTiny, a multistep solver and a base.json, like the embedded one."""
    folder = _saved(tmp_path_factory.mktemp("tiny-v"), prediction_type="v_prediction", tiny_autoencoder=True)
    world = {"nouns": ["cat", "dog", "apple"], "styles": ["flat"]}
    defaults = {"format_version": 1, "name": "tiny", "default_guidance": 4.0, "default_steps": 2, "world": world}
    (folder / "base.json").write_text(json.dumps(defaults))
    return folder


def _saved(folder: Path, **kind) -> Path:
    from diffadapt.bases.quiet import quiet

    with quiet():
        make_pipeline(folder, **kind).save_pretrained(folder / "base")
    return folder / "base"


class Copies:
    """Deep copies of one object, a quarter of copy.deepcopy's time: pickled in memory, but for its tensors."""

    def __init__(self, original):
        self.tensors: list[torch.Tensor] = []
        with io.BytesIO() as content:
            pickler = pickle.Pickler(content)
            pickler.persistent_id = self._number
            pickler.dump(original)
            self.content = content.getvalue()

    def _number(self, found) -> int | None:
        if not isinstance(found, torch.Tensor):
            return None
        self.tensors.append(found)
        return len(self.tensors) - 1

    def another(self):
        memo: dict = {}  # tensors that are one in the original are one in its copy
        unpickler = pickle.Unpickler(io.BytesIO(self.content))
        unpickler.persistent_load = lambda number: copy.deepcopy(self.tensors[number], memo)
        return unpickler.load()


@pytest.fixture(scope="session")
def copies_of_tiny_base(tiny_folder: Path) -> Copies:
    """`tiny_folder`, loaded once in a process."""
    from diffadapt.bases import load_base

    return Copies(load_base(tiny_folder, device="cpu"))


@pytest.fixture(scope="session")
def copies_of_tiny_v_base(tiny_v_folder: Path) -> Copies:
    """`tiny_v_folder`, likewise."""
    from diffadapt.bases import load_base

    return Copies(load_base(tiny_v_folder, device="cpu"))


@pytest.fixture
def tiny_base(copies_of_tiny_base: Copies):
    """`tiny_folder` as loaded: a copy of its own for each test."""
    return copies_of_tiny_base.another()


@pytest.fixture
def tiny_v_base(copies_of_tiny_v_base: Copies):
    """`tiny_v_folder` as loaded, likewise."""
    return copies_of_tiny_v_base.another()


@pytest.fixture
def base(tiny_v_base):
    """A tiny base whose pictures take one step: a run makes many, and most tests look at something else."""
    tiny_v_base.default_steps = 1
    return tiny_v_base


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt here and in programs started from here.

    Where the suite was started in the background, SIGINT is inherited as ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffadapt.bases.quiet import quiet

    with quiet():
        return make_dit(tmp_path_factory.mktemp("dit") / "base")


@pytest.fixture
def tiny_dit(tiny_dit_folder: Path):
    """A class-conditional transformer of three classes, loaded anew."""
    from diffadapt.bases import load_base

    return load_base(tiny_dit_folder, device="cpu")
