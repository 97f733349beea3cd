"""A second text encoder for a base: another tokenizer and a smaller encoder, of a made-up language.

The language is every word spelled backwards, so that next to no token of it is one of the base's. It is trained to
give, for the translated caption, what the base's encoder gives for the original: the base's denoiser then works with
either. It is made anew wherever it is needed rather than shipped.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from diffadapt.bases import Base, load_base


def translated(caption: str) -> str:
    """The caption in the made-up language: every word spelled backwards, in the same order."""
    return " ".join(word[::-1] for word in caption.split())


def with_second_encoder(base: Base, captions: Sequence[str], folder: Path, *, steps: int = 1500, seed: int = 0) -> Base:
    """The base with the second tokenizer and encoder in the place of its own, saved in `folder` and read from there.

    Args:
        base: whose encoder is imitated; it is left as it is.
        captions: what the encoder is trained on; words that are not in them stay unknown.
        folder: where the base is saved; what is there is read.
        steps: of batches of 64 captions.
        seed: of weights and batches.
    """
    if not (folder / "model_index.json").is_file():
        other = copy.copy(base.pipeline)
        pairs = [(caption, translated(caption)) for caption in captions]
        tokenizer = _tokenizer(base, [theirs for _, theirs in pairs])
        encoder = _encoder(base, len(tokenizer), seed)
        _train(base, pairs, tokenizer, encoder, steps, seed)
        other.register_modules(tokenizer=tokenizer, text_encoder=encoder)
        other.save_pretrained(folder)
    return load_base(folder, device=base.device)


def _tokenizer(base: Base, captions: Sequence[str]):
    """A CLIP tokenizer with one token for each word of the captions."""
    import json
    import tempfile

    from transformers import CLIPTokenizer

    words = sorted({word for caption in captions for word in caption.split()})
    letters = sorted({letter for word in words for letter in word})
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[-2], pieces[-1]))
            pieces[-2:] = ["".join(merges[-1])]
    merges = list(dict.fromkeys(merges))
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    entries = [*dict.fromkeys(entries), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as place:
        vocabulary, rules = Path(place) / "vocab.json", Path(place) / "merges.txt"
        vocabulary.write_text(json.dumps({entry: i for i, entry in enumerate(entries)}), encoding="utf-8")
        rules.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
        length = base.pipeline.tokenizer.model_max_length
        return CLIPTokenizer(str(vocabulary), str(rules), model_max_length=length, pad_token="<|endoftext|>")


def _encoder(base: Base, words: int, seed: int):
    """A CLIP text model of one layer and the base's width."""
    from transformers import CLIPTextConfig, CLIPTextModel

    own = base.pipeline.text_encoder.config
    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words, hidden_size=own.hidden_size, intermediate_size=2 * own.hidden_size, num_hidden_layers=1,
            num_attention_heads=own.num_attention_heads, max_position_embeddings=own.max_position_embeddings,
            projection_dim=own.projection_dim, bos_token_id=words - 2, eos_token_id=words - 1, pad_token_id=words - 1,
        )
    )  # fmt: skip


def _train(base: Base, pairs: Sequence[tuple[str, str]], tokenizer, encoder, steps: int, seed: int) -> None:
    """Regression on the outputs of the base's encoder; the empty caption, which guidance needs, is one of them."""
    pairs = [("", ""), *pairs]
    with torch.no_grad():
        targets = base.condition([own for own, _ in pairs]).text
    length = targets.shape[1]
    ids = tokenizer(
        [theirs for _, theirs in pairs], padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids.to(targets.device)
    encoder.to(targets.device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(pairs), (64,), generator=generator)
        rows[0] = 0
        optimizer.zero_grad()
        (encoder(ids[rows]).last_hidden_state - targets[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()
    encoder.eval()
