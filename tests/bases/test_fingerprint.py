"""One name for one set of weights, whatever the precision, the attachments and the order."""

import shutil

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffadapt.bases import load_base
from diffadapt.fingerprint import fingerprint


class Wrapper(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.extra = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.layer(x)


def test_it_has_the_promised_form_and_repeats(tiny_folder):
    first, second = (load_base(tiny_folder, device="cpu").fingerprint for _ in range(2))
    assert first == second and first.startswith("sha256:") and len(first) == 23


def test_every_single_value_counts(tiny_folder, tmp_path):
    seen = {load_base(tiny_folder, device="cpu").fingerprint}
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        for row in (0, -1):
            folder = tmp_path / f"{len(seen)}"
            shutil.copytree(tiny_folder, folder)
            tensors = load_file(folder / name)
            tensors[sorted(tensors)[row]].view(-1)[-1] += 0.01
            save_file(tensors, folder / name, {"format": "pt"})
            seen.add(load_base(folder, device="cpu").fingerprint)
    assert len(seen) == 5


def test_names_and_shapes_count_and_order_and_precision_do_not():
    a, b = torch.randn(4, 6), torch.randn(3)
    whole = fingerprint([("a", a), ("b", b)])
    assert whole == fingerprint([("b", b), ("a", a)])
    assert whole == fingerprint([("a", a.half()), ("b", b.half().float())])
    assert len({whole, fingerprint([("b", a), ("a", b)]), fingerprint([("a", a.view(6, 4)), ("b", b)])}) == 3


def test_what_stands_on_the_base_or_is_merged_later_does_not_count(tiny_folder):
    base, untouched = load_base(tiny_folder, device="cpu"), load_base(tiny_folder, device="cpu").fingerprint
    path = "unet.mid_block.attentions.0.proj_in"
    base.replace_(path, Wrapper(base.module(path)))
    with torch.no_grad():
        base.module(path).layer.weight += 1
    assert base.fingerprint == untouched


def test_ten_million_values_take_less_than_a_second():
    import time

    tensors = [(str(i), torch.randn(1000, 1000)) for i in range(10)]
    start = time.perf_counter()
    fingerprint(tensors)
    assert time.perf_counter() - start < 1


def test_what_pictures_depend_on_has_a_fingerprint_of_its_own(tiny_folder):
    """Kept pictures of a base that was loaded as one of epsilon are not those of the same weights that predict v."""

    def loaded(change=lambda base: None, **settings):
        base = load_base(tiny_folder, device="cpu", **settings)
        change(base)
        return base

    def another_autoencoder(base):
        with torch.no_grad():
            next(base.vae.parameters()).add_(1)
        base.autoencoder_fingerprint = fingerprint(base.vae.named_parameters())

    plain = loaded()
    assert loaded().drawing_fingerprint == plain.drawing_fingerprint
    changed = [
        loaded(prediction_type="v_prediction"),
        loaded(lambda base: base.pipeline.scheduler.register_to_config(timestep_spacing="trailing")),
        loaded(another_autoencoder),
    ]
    assert {base.fingerprint for base in changed} == {plain.fingerprint}
    assert len({plain.drawing_fingerprint, *(base.drawing_fingerprint for base in changed)}) == 4
    assert changed[2].autoencoder_fingerprint != plain.autoencoder_fingerprint == changed[0].autoencoder_fingerprint
