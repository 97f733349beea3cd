"""Shared by the tests of perfusion: a tiny base with a covariance, concepts on it, and equation 3 written out."""

import torch
from torch import Tensor

from diffadapt.adapters import Attachment, Perfusion, SideInputs, attach
from diffadapt.bases.covariance import Covariance
from diffadapt.bases.measure_covariance import measure_covariance

NOUNS, GROUNDS = ("cat", "dog", "apple"), ("red", "blue", "flat")
CAPTIONS = [
    f"{a} {size} {noun} {on} {the} {ground} {last}"
    for a in ("a", "the", "photo of a") for size in ("small", "flat", "red") for noun in NOUNS
    for on in ("on", "of") for the in ("the", "a") for ground in GROUNDS for last in ("background", "photo")
]  # fmt: skip


MEASURED: dict[str, Covariance] = {}  # text encoder -> its covariance, measured once in a process


def prepared(base):
    """The base with its covariance, as `base.covariance()` would have read it."""
    if base.text_fingerprint not in MEASURED:
        MEASURED[base.text_fingerprint] = measure_covariance(base, CAPTIONS)
    base._covariance = MEASURED[base.text_fingerprint]
    return base


def exact(base):
    """The same, all in float64."""
    prepared(base)
    base.pipeline.unet.double()
    base.pipeline.text_encoder.double()
    return base


def concept(base, method: Perfusion | None = None, token: str = "<x>", noun: str = "cat", seed: int = 0) -> Attachment:
    """A concept as a training leaves it: word, anchor and targets away from where they began."""
    attachment = attach(base, method or Perfusion(), tokens={token: noun})
    shared = attachment.shared
    assert shared is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in attachment.parameters():
            parameter += 0.5 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        shared.anchor += 0.2 * shared.anchor.std() * torch.randn(shared.anchor.shape, generator=generator)
    if base.denoiser.dtype == torch.float64:
        shared.double()
        for adapter in attachment.adapters.values():
            for name in ("vectors", "initial"):
                if hasattr(adapter, name):
                    getattr(adapter, name).data = getattr(adapter, name).data.double()
    return attachment


def given(base, prompts: list[str], text: Tensor | None = None) -> Tensor:
    """Hands prompts (with their own encodings, or others) to all that is attached; returns the encodings."""
    ids = base.tokenize(prompts)
    if text is None:
        text = base.encode_ids(ids)
    for attachment in base.attachments:
        attachment.begin(SideInputs(token_ids=ids, text=text))
    return text


def projections(attachment: Attachment, kind: str) -> list[tuple[str, torch.nn.Module]]:
    """(path, adapter) of all "key" or "value" projections."""
    return [(path, attachment.adapters[path]) for path in attachment.base.roles[f"cross_attention.{kind}"]]


def similarity(e: Tensor, anchor: Tensor, covariance: Covariance) -> Tensor:
    """<i*, e> / <i*, i*> with the inverse written out."""
    inverse = torch.linalg.inv(covariance.matrix + covariance.ridge * torch.eye(len(covariance.matrix)).double())
    return (e.double() @ inverse @ anchor.double()) / (anchor.double() @ inverse @ anchor.double())


def equation_3(w: Tensor, e: Tensor, r: Tensor, gate: Tensor, anchor: Tensor, target: Tensor) -> Tensor:
    """W (e - r i*) + g o*, in float64."""
    w, e, anchor, target = (each.double() for each in (w, e, anchor, target))
    return (e - r[..., None] * anchor) @ w.T + gate[..., None] * target
