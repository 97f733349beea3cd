"""Soft masks of a noun in a picture: CLIPSeg (Lueddecke and Ecker 2022, arXiv:2112.10003), through transformers.

Perfusion and others weight the loss with them for concepts without masks. Pictures are resized in torch to 352 x 352,
the size the model was trained on.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused
from .signal import check_pictures

MODEL = "CIDAS/clipseg-rd64-refined"
SIDE = 352
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEMPLATES = ("a photo of a {}", "the photo of a {}", "image of a {}", "a {}")


class ClipSeg:
    """A loaded model.

    Args:
        name: a hub id or the folder of a CLIPSeg model.
        device: of the model; masks are returned on the CPU.

    Raises:
        Refused: it cannot be loaded, or is another kind of model.
    """

    def __init__(self, name: str = MODEL, *, device: str | torch.device = "cpu") -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPSegForImageSegmentation

        try:
            kind = AutoConfig.from_pretrained(name).model_type
            if kind != "clipseg":
                raise Refused(f"{name} is a {kind!r} model; expected a CLIPSeg model, such as {MODEL}")
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = CLIPSegForImageSegmentation.from_pretrained(name, use_safetensors=True)
        except Refused:
            raise
        except Exception as error:  # transformers has a class for most of what can be wrong
            raise Refused(
                f"cannot load the mask model {name!r} ({error}); name the folder of a CLIPSeg model, or put masks "
                "beside the pictures as NAME-masklabel.png"
            ) from error
        try:
            self.device = torch.device(device)
            self.model: Any = model.to(self.device).eval().requires_grad_(False)
        except (RuntimeError, AssertionError) as error:  # an unknown word, or a torch without it
            said = str(error).splitlines()[0]
            raise Refused(f"device {str(device)!r} cannot be used here ({said}); leave it out, or use cpu") from error

    @torch.no_grad()
    def masks(self, pictures: Tensor, noun: str, *, templates: Sequence[str] = TEMPLATES) -> Tensor:
        """Soft masks (N, 1, H, W) in [0, 1], each scaled so that its maximum is 1.

        Args:
            pictures: (N, 3, H, W) in [0, 1].
            noun: what to look for, such as "cat".
            templates: prompts in which "{}" stands for the noun; the mask is their mean.
        """
        check_pictures("pictures", pictures)
        prepared = F.interpolate(pictures.float(), (SIDE, SIDE), mode="bicubic", antialias=True)  # (N, 3, 352, 352)
        prepared = (prepared - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        prompts = self.tokenizer([each.replace("{}", noun) for each in templates], padding=True, return_tensors="pt")
        rows = []
        for picture in prepared:
            pixels = picture.expand(len(templates), -1, -1, -1).to(self.device)
            logits = self.model(pixel_values=pixels, **prompts.to(self.device)).logits
            logits = logits.reshape(len(templates), SIDE, SIDE)
            rows.append(logits.float().sigmoid().mean(0).cpu())
        found = torch.stack(rows)[:, None]  # (N, 1, 352, 352)
        found = F.interpolate(found, pictures.shape[2:], mode="bilinear", align_corners=False)
        return found / found.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
