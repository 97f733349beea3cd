"""A vision transformer as a classifier: transformers' ViT with one linear layer behind its class token.

Any checkpoint that `ViTModel` or `ViTForImageClassification` wrote to a folder will do; a head that comes with it is
left out. "embedded" is a small one of our own (`tools/train_vit.py`), for pictures of 64 pixels.
"""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..conditioning import PICTURES, Conditioning
from ..errors import Refused
from ..files import at_home, is_there, read_json
from ..network import Network, Rules
from ..shapes import PREPROCESSOR, VIT_CONFIG
from .local_folder import first_line, tensor_names
from .quiet import quiet

EMBEDDED_VIT = Path(__file__).parent / "embedded_vit"
# The convolution that makes patches has no role: transformers looks its weight up from outside.
RULES: Rules = (
    (r"vit\..*attention\.(attention\.)?(q_proj|query)", "self_attention.query"),
    (r"vit\..*attention\.(attention\.)?(k_proj|key)", "self_attention.key"),
    (r"vit\..*attention\.(attention\.)?(v_proj|value)", "self_attention.value"),
    (r"vit\..*attention\.(o_proj|output\.dense)", "self_attention.out"),
    (r"vit\..*(mlp\.fc1|intermediate\.dense)", "feed_forward.in"),
    (r"vit\..*(mlp\.fc2|output\.dense)", "feed_forward.out"),
    (r"vit\..*layernorm\w*", "norm"),
    (r"vit\.embeddings", "input.tokens"),
    (r"head\.linear", "head"),
)


class Classifier(Network):
    """A vision transformer and a linear head over all classes, called as objectives call a model.

    Args:
        vit: a `ViTModel`.
        classes: rows of the head, which starts at zero.
        mean, std: (3,) of the pixels that the transformer was trained on.
        name: what files and messages call it.

    Attributes:
        size: side of its pictures, in pixels.
        classes: rows of the head.
    """

    def __init__(self, vit: Any, classes: int, *, mean: Tensor, std: Tensor, name: str) -> None:
        linear = nn.Linear(vit.config.hidden_size, classes)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        head = nn.Sequential(OrderedDict(linear=linear))  # an adapter takes the place of a layer inside a part
        super().__init__({"vit": vit, "head": head}, RULES, name=name)
        self.classes = classes
        self.size = int(vit.config.image_size)
        self._mean, self._std = mean[:, None, None], std[:, None, None]

    def features(self, pictures: Tensor) -> Tensor:
        """Pictures (N, 3, R, R) in [0, 1] -> the class token behind the last norm, (N, D)."""
        given = (pictures - self._mean.to(pictures)) / self._std.to(pictures)
        return self.modules()["vit"](pixel_values=given.to(self.dtype)).last_hidden_state[:, 0]

    def __call__(self, pictures: Tensor, timesteps: Tensor | None = None, condition: Any = None) -> Tensor:
        """Pictures (N, 3, R, R) in [0, 1] -> logits (N, classes)."""
        return self.modules()["head"](self.features(pictures))

    def with_variance(self, pictures: Tensor, timesteps: Tensor | None = None, condition: Any = None) -> NoReturn:
        """Raises Refused: there is no variance."""
        raise Refused(f"{self.name!r} is a classifier, which predicts no variance; use another objective")

    @torch.no_grad()
    def teacher(self, pictures: Tensor, timesteps: Tensor | None = None, condition: Any = None) -> Tensor:
        """The same of the network itself, without its attachments."""
        before = [(attachment, attachment.enabled) for attachment in self.attachments]
        try:
            for attachment, _ in before:
                attachment.enabled = False
            return self(pictures)
        finally:
            for attachment, enabled in before:
                attachment.enabled = enabled

    def condition(self, pictures: Tensor, labels: Tensor) -> Conditioning:
        """The conditioning of labelled pictures, which adapters may ask for."""
        return Conditioning(class_labels=labels, control={PICTURES: pictures})


def load_classifier(
    name: str | os.PathLike[str], classes: int, *, device: str | torch.device | None = None
) -> Classifier:
    """Loads a vision transformer, frozen, with a new head.

    Args:
        name: "embedded", or a folder with `config.json` and `model.safetensors` as `save_pretrained` writes them. A
            `preprocessor_config.json` in it says mean and standard deviation of the pixels; without one they are .5.
        classes: of all tasks together.
        device: where to put it; None means the GPU if there is one, else the CPU.

    Raises:
        Refused: there is no such folder, or it holds no vision transformer for square pictures.
    """
    name = os.fspath(name)
    folder = EMBEDDED_VIT if name == "embedded" else at_home(name)
    if not is_there(folder) or not (folder / "config.json").is_file():
        raise Refused(
            f'no vision transformer at {name!r}: expected "embedded" or a folder with config.json and '
            "model.safetensors, as ViTModel.save_pretrained writes them"
        )
    config = read_json(folder / "config.json", VIT_CONFIG)
    if config["model_type"] != "vit":
        raise Refused(f"{name} holds a model of type {config['model_type']!r}; classification takes a ViT")
    if not (folder / "model.safetensors").is_file():
        raise Refused(f"{folder} holds no model.safetensors; save the model again with safe_serialization=True")
    tensor_names(folder / "model.safetensors")
    fit: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        fit = read_json(folder / "preprocessor_config.json", PREPROCESSOR)
    with quiet():
        from transformers import ViTModel

        try:
            vit = ViTModel.from_pretrained(folder, add_pooling_layer=False, dtype=torch.float32, local_files_only=True)
        except Exception as error:  # transformers has a class for most of what can be wrong
            raise Refused(f"the vision transformer in {folder} cannot be read: {first_line(error)}") from error
    mean, std = (torch.tensor(fit.get(key, [0.5] * 3), dtype=torch.float32) for key in ("image_mean", "image_std"))
    network = Classifier(vit, classes, mean=mean, std=std, name="embedded" if name == "embedded" else str(name))
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for module in network.modules().values():
        module.to(place)
    return network
