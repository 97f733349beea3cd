"""Preference: which of two pictures of a prompt would people rather have? Models that were trained on such choices.

    pickscore:<id|folder>   Kirstain et al. 2023, arXiv:2305.01569: exp(scale) times CLIP's cosine
    hps:<id|folder>         Wu et al. 2023, HPS v2, arXiv:2306.09341: CLIP's cosine, of weights in transformers' layout
    probe                   a stand-in, and nobody's preference: how surely the probe names what it sees

Both models are fine-tuned CLIPs (ViT-H/14), read as transformers saves them, in safetensors. ImageReward (Xu et al.
2023, arXiv:2304.05977) is a BLIP with a head that transformers has no class for, and is refused by its name.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import Refused
from .alignment import text_alignment
from .features import CLIPFeatures, ProbeFeatures, load_features

STAND_IN = "probe"


class Preference:
    """A preference model.

    Args:
        name: as `load_preference` takes it.
        device: where it is computed.

    Attributes:
        title: what reports call its scores.
        meaning: of its scores, as reports have it.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        self.name = name
        kind, _, source = name.partition(":")
        if name == STAND_IN:
            self._features = load_features("probe", device=device)
            self.title = "preference_stand_in"
            self.meaning = (
                "how surely the probe names what it sees (mean of each head's largest probability); a stand-in for "
                "preference, which nobody was asked about"
            )
        elif kind in ("pickscore", "hps") and source:
            self._features = load_features(f"clip:{source}", device=device)
            self.title = kind
            self.meaning = {
                "pickscore": "PickScore: picture and prompt, trained on people's choices",
                "hps": "HPS v2: picture and prompt, trained on people's choices",
            }[kind]
        else:
            more = "; ImageReward is a BLIP that transformers has no class for" if kind == "imagereward" else ""
            raise Refused(
                f"unknown preference model {name!r}{more}; expected 'pickscore:<hub id or folder>', 'hps:<hub id or "
                "folder>' (in transformers' layout), or 'probe', a stand-in for the embedded base"
            )

    @torch.no_grad()
    def scores(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] and the prompt of each -> (N,); higher is rather preferred."""
        features = self._features
        if isinstance(features, ProbeFeatures):
            chances = features.probabilities(pixels)
            return torch.stack([rows.amax(1) for rows in chances.values()]).mean(0)
        cosine = text_alignment(features.pictures(pixels), features.texts(prompts))
        if self.title == "hps":
            return cosine
        assert isinstance(features, CLIPFeatures)
        return features.model.logit_scale.exp() * cosine


def load_preference(name: str, *, device: str | torch.device = "cpu") -> Preference:
    """Loads a preference model by name.

    Args:
        name: "pickscore:<hub id or folder>", "hps:<hub id or folder>", or "probe", the stand-in.
        device: of the model and its scores.

    Raises:
        Refused: an unknown name, or a model that cannot be loaded or is no CLIP in safetensors.
    """
    return Preference(name, device)
