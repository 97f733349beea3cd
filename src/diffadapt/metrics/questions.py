"""Asked and answered: how sure a model of visual questions is that a picture shows what its prompt says.

The probability of "yes" to a question made from the prompt (VQAScore, Lin et al. 2024, arXiv:2404.01291, equation 1),
here by BLIP's question answering (Li et al. 2022, arXiv:2201.12086), as T2I-CompBench uses it (Huang et al. 2023,
arXiv:2307.06350). For photographs, beside CLIP-T, which hardly sees who does what. Not for the embedded world.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import Refused
from .features import CLIP_MEAN, CLIP_STD, _guard, _load, _Preparation

QUESTION = 'does this picture show "{}"?'


class Questions:
    """A model that answers questions about pictures.

    Args:
        source: hub id or folder of a BLIP model for question answering, such as Salesforce/blip-vqa-base.
        device: of the model.

    Raises:
        Refused: it cannot be loaded, is of another kind, not in safetensors, or has no single words "yes" and "no".
    """

    def __init__(self, source: str, *, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer, BlipForQuestionAnswering

        self.source, self.device = source, torch.device(device)
        self.model = _load(source, source, BlipForQuestionAnswering, ("blip",)).to(self.device)
        self.tokenizer = _guard(source, lambda: AutoTokenizer.from_pretrained(source))
        side = self.model.config.vision_config.image_size
        self.prepare = _Preparation(source, side, side, CLIP_MEAN, CLIP_STD)
        answers = [self.tokenizer(word, add_special_tokens=False).input_ids for word in ("yes", "no")]
        if any(len(ids) != 1 or ids[0] == self.tokenizer.unk_token_id for ids in answers):
            raise Refused(f"{source}: its tokenizer has no single words for yes and no; take a model that has")
        self.answers = [ids[0] for ids in answers]

    @torch.no_grad()
    def yes(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """How sure it is that each picture shows its prompt.

        Args:
            pixels: (N, 3, H, W) in [0, 1].
            prompts: N, such as "a cat in the snow".

        Returns:
            (N,) on the CPU: the probability of "yes" over that of "yes" or "no"

        Raises:
            Refused: the counts differ.
        """
        if len(pixels) != len(prompts) or not len(prompts):
            raise Refused(f"{len(pixels)} pictures for {len(prompts)} prompts; pass the prompt of each picture")
        found = torch.empty(len(prompts))
        for prompt in dict.fromkeys(prompts):  # one question at a time: padding would change the answer
            rows = [i for i, each in enumerate(prompts) if each == prompt]
            for part in torch.tensor(rows).split(16):
                found[part] = self._answer(pixels[part], prompt)
        return found

    def _answer(self, pixels: Tensor, prompt: str) -> Tensor:
        model, count = self.model, len(pixels)
        seen = model.vision_model(pixel_values=self.prepare(pixels.to(self.device, torch.float32)))[0]
        ids = self.tokenizer(QUESTION.format(prompt), truncation=True, return_tensors="pt").input_ids.to(self.device)
        question = model.text_encoder(
            input_ids=ids.expand(count, -1), encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self.device),
        )[0]  # fmt: skip
        start = torch.full((count, 1), model.decoder_start_token_id, device=self.device)
        logits = model.text_decoder(
            input_ids=start, encoder_hidden_states=question,
            encoder_attention_mask=torch.ones(question.shape[:2], dtype=torch.long, device=self.device),
        ).logits[:, -1, self.answers]  # fmt: skip
        return logits.float().softmax(1)[:, 0].cpu()
