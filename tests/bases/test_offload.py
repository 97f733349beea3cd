"""Components that wait until they are used: the order of moves, on a base that is never really moved."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffadapt.adapters import LoRA, attach
from diffadapt.bases import base as face
from diffadapt.bases.base import Base
from diffadapt.data.concept import load_concept
from diffadapt.recipes.subject import train_subject
from diffadapt.sampling.sample import sample


class Places:
    """Where each component is, as far as the base knows; one that is used while it waits fails the test."""

    def __init__(self, base: Base) -> None:
        self.names = {id(part): name for name, part in {**base.modules(), "vae": base.vae}.items()}
        self.waiting: set[str] = set()
        self.moves: list[tuple[str, bool]] = []
        self.used: list[tuple[str, frozenset[str]]] = []
        for name, part in (*base.modules().items(), ("vae", base.vae.encoder), ("vae", base.vae.decoder)):
            part.register_forward_pre_hook(lambda *_, name=name: self._use(name))

    def put(self, part, device) -> None:
        name, waits = self.names[id(part)], device.type == "meta"
        (self.waiting.add if waits else self.waiting.discard)(name)
        self.moves.append((name, waits))

    def _use(self, name: str) -> None:
        assert name not in self.waiting, f"{name} is used while it waits"
        self.used.append((name, frozenset(self.waiting)))


@pytest.fixture
def places(base, monkeypatch) -> Places:
    places = Places(base)
    monkeypatch.setattr(face, "WAITING_ROOM", torch.device("meta"))
    monkeypatch.setattr(face, "_put", places.put)
    return places


def test_parts_wait_while_the_denoiser_works_and_wake_when_they_are_used(base, places):
    picture = torch.rand(1, 3, base.resolution, base.resolution)
    condition = base.condition(["a cat"])
    with base.offloaded():
        assert places.waiting == {"text_encoder", "vae"}
        base.denoise(base.encode_pictures(picture), torch.tensor([5]), condition)
        assert places.waiting == {"text_encoder", "vae"}
        sample(base, "a cat", steps=1)
        with base.awake(), base.awake():
            assert not places.waiting
        assert places.waiting == {"text_encoder", "vae"}
    assert not places.waiting
    assert ("unet", frozenset({"text_encoder", "vae"})) in places.used and ("unet", frozenset()) in places.used


def test_a_part_with_an_adapter_on_it_does_not_wait(base, places):
    attach(base, LoRA(rank=1), ["text.self_attention.query"])
    with base.offloaded():
        base.condition(["a cat"])
        assert places.waiting == {"vae"}


def test_parts_wake_after_an_error(base, places):
    with pytest.raises(ZeroDivisionError), base.offloaded(), base.awake():
        raise ZeroDivisionError
    assert not places.waiting


def test_nothing_moves_on_the_cpu(base, monkeypatch):
    monkeypatch.setattr(face, "_put", lambda *_: pytest.fail("moved"))
    with base.offloaded(), base.awake():
        base.condition(["a cat"])


@pytest.mark.parametrize("train_token", [True, False])
def test_a_run_with_offload_waits_at_every_step_and_learns_the_same(base, places, tmp_path, train_token):
    """A trained word needs the text encoder at every step; without one its texts are encoded before the first."""
    (tmp_path / "of").mkdir()
    Image.new("RGB", (32, 32), "navy").save(tmp_path / "of" / "a.png")
    concept = load_concept(tmp_path / "of", "cat", token="<x>" if train_token else "apple")
    files = []
    for offload in (False, True):
        places.used.clear()
        run = train_subject(
            base, concept, method=LoRA(rank=1), out=tmp_path / f"run-{offload}", steps=2, warmup=0, prior_weight=0,
            sample_every=1, evaluation_prompts=0, train_token=train_token, offload=offload, quiet=True,
        )  # fmt: skip
        files.append(load_file(run.adapter))
        steps = {waiting for name, waiting in places.used if name == "unet"}
        idle = {"vae"} if train_token else {"vae", "text_encoder"}
        assert (frozenset(idle) in steps) == offload and frozenset() in steps  # the pictures on the way
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert not places.waiting
