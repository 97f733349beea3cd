import pytest
import torch
from PIL import Image

from diffadapt.adapters import LoRA, StyleInject, attach
from diffadapt.data.styles import load_styles
from diffadapt.errors import Refused
from diffadapt.evaluation.routing import information, routing_by_style


def test_information_is_that_of_known_tables():
    same = [torch.tensor([0, 1, 2, 3])] * 3
    assert information(same, 4) == pytest.approx(0, abs=1e-6)
    apart = [torch.full((5,), i) for i in range(4)]
    assert information(apart, 4) == pytest.approx(2)
    assert information([torch.tensor([0, 0]), torch.tensor([1, 1])], 4) == pytest.approx(1)


def test_routers_that_read_brightness_tell_dark_pictures_from_light_ones(tiny_v_base, tmp_path):
    for name, value in (("dark", 10), ("light", 240)):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (32, 32), (value, value, value + i)).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text("a cat")
    pictures = load_styles(tmp_path, held_out=0).pictures
    attachment = attach(tiny_v_base, StyleInject(branches=2), ["input.conv"])
    (adapter,) = attachment.adapters.values()
    plain = routing_by_style(tiny_v_base, attachment, pictures, level=0.0)
    assert plain["weights"] == {"dark": [0.5, 0.5], "light": [0.5, 0.5]} and plain["bits"] == pytest.approx(0, abs=1e-6)
    latents = [tiny_v_base.encode_pictures(each.pixels([0], 32)).mean((0, 2, 3)) for each in pictures.values()]
    with torch.no_grad():
        apart = 1e5 * (latents[0] - latents[1])
        adapter.router.weight.copy_(torch.stack([apart, -apart]))
        adapter.router.bias.copy_(-adapter.router.weight @ (latents[0] + latents[1]) / 2)
    told = routing_by_style(tiny_v_base, attachment, pictures, level=0.0)
    assert told["bits"] == pytest.approx(1, abs=1e-3)
    assert told["weights"]["dark"][0] > 0.99 and told["weights"]["light"][1] > 0.99
    attachment.detach()


def test_nothing_of_style_inject_is_refused(tiny_v_base, tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(2):
        Image.new("RGB", (32, 32)).save(tmp_path / "a" / f"{i}.png")
        (tmp_path / "a" / f"{i}.txt").write_text("a cat")
    attachment = attach(tiny_v_base, LoRA(rank=1))
    with pytest.raises(Refused, match="no router was asked"):
        routing_by_style(tiny_v_base, attachment, load_styles(tmp_path / "a", held_out=0).pictures)
    attachment.detach()
