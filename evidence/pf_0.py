"""PF-0: what Perfusion's lock promises, exactly, on a UNet of Stable Diffusion 1.5's shape with random weights.

    the lock     with the gate open and a token at the anchor, keys are those of the super-category, so that the whole
                 attention map of every layer is the one that the category's word would have
    the gate     a prompt without the concept's word is the untouched base's, bit for bit, through 50 sampling steps

Beside it what does not promise that: Perfusion with trained keys, LoRA, and fine-tuned keys and values. All of them are
moved as far as a training moves them, every parameter by a tenth of its scale. The other words of the prompt are made
C^-1-orthogonal to the anchor, as equation 3 assumes of words that have nothing of the concept.
"""

from typing import Any

import torch
from sd15_shapes import ARCHITECTURE
from torch import Tensor

from diffadapt.adapters import Attachment, LoRA, Method, Perfusion, Selective, SideInputs, attach
from diffadapt.adapters.perfusion import ConceptEdit
from diffadapt.bases import Base
from diffadapt.bases.covariance import Covariance
from diffadapt.bases.defaults import Defaults
from diffadapt.bases.load import EMBEDDED
from diffadapt.bases.stable_diffusion import StableDiffusion
from diffadapt.evidence import Claim, Context, Design, Finding, Results, Settings, Table, Unit, Verdict

SIDE, STEPS, QUERIES = 8, 50, 64  # latents of 8 x 8: the claim is about keys and weights, not about how many pixels ask
NOUN, WORD = "cat", "<concept>"
PROMPT, PLAIN = f"a small {WORD} on the left in a meadow", "a small dog on the left in a meadow"
GAIN = 2.0  # of queries and keys, so that random weights attend to some words more than to others
MOVED, GOAL = 0.1, 1e-5
ROLES = ("cross_attention.key", "cross_attention.value")
METHODS: dict[str, tuple[str, Method]] = {
    "locked": ("Perfusion, locked keys", Perfusion(gate="hard")),
    "trained": ("Perfusion, trained keys", Perfusion(gate="hard", key_lock="trained")),
    "lora": ("LoRA, rank 4", LoRA(rank=4)),
    "full": ("fine-tuned keys and values", Selective()),
}


def units(results: Results, settings: Settings) -> list[Unit]:
    return [{"contender": name, "seed": 0} for name in METHODS]


@torch.no_grad()
def run(unit: Unit, context: Context) -> dict[str, Any]:
    base = shaped_base()
    parameters = sum(parameter.numel() for parameter in base.denoiser.parameters())
    steps = STEPS if unit["contender"] == "locked" else 1  # what differs at the first step differs
    before = trajectory(base, steps)
    attachment = moved(base, METHODS[unit["contender"]][1])
    after = trajectory(base, steps)
    return {
        "equal_steps": [torch.equal(a, b) for a, b in zip(before, after, strict=True)].count(True),
        "steps": steps,
        "difference": max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True)),
        "parameters": parameters,
        **maps(base, attachment),
    }


def shaped_base() -> Base:
    """A base with the UNet of Stable Diffusion 1.5, seeded random weights, and a text encoder of its width."""
    from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words, width = AutoTokenizer.from_pretrained(EMBEDDED / "tokenizer"), ARCHITECTURE["cross_attention_dim"]
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=12,
        max_position_embeddings=words.model_max_length, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=SIDE, **ARCHITECTURE)
    for name, parameter in unet.named_parameters():
        if name.endswith(("attn2.to_q.weight", "attn2.to_k.weight")):
            parameter *= GAIN
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderTiny(latent_channels=4), text_encoder=CLIPTextModel(text), tokenizer=words, unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    base = StableDiffusion(pipeline, name="Stable Diffusion 1.5's shape", defaults=Defaults())
    rows = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows *= torch.linspace(0.3, 2.0, width, dtype=torch.float64)
    base._covariance = Covariance(matrix=rows.T @ rows / len(rows), facts={"encoder": base.text_fingerprint})
    return base


def moved(base: Base, method: Method) -> Attachment:
    """A concept as a training would leave it: every parameter, and the anchor, moved by a tenth of its scale."""
    tokens = {WORD: NOUN} if isinstance(method, Perfusion) else {}
    attachment = attach(base, method, ROLES, tokens=tokens)
    edit = edit_of(attachment)
    generator = torch.Generator().manual_seed(2)
    for tensor in [*attachment.parameters(), *([edit.anchor] if edit else [])]:
        scale = float(tensor.std()) or 0.1  # LoRA's `up` starts at zero
        tensor += MOVED * scale * torch.randn(tensor.shape, generator=generator)
    return attachment


def edit_of(attachment: Attachment) -> ConceptEdit | None:
    return attachment.shared if isinstance(attachment.shared, ConceptEdit) else None


def trajectory(base: Base, steps: int) -> list[Tensor]:
    """The latents after each of the first steps of 50 of DDIM at guidance 7.5, from one noise, for `PLAIN`."""
    ids = base.tokenize(["", PLAIN])
    text = base.encode_ids(ids)
    for attachment in base.attachments:
        attachment.begin(SideInputs(token_ids=ids, text=text))
    scheduler = base.pipeline.scheduler
    scheduler.set_timesteps(STEPS)
    latents, kept = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3)), []
    for t in scheduler.timesteps[:steps]:
        empty, asked = base.denoiser(latents.expand(2, -1, -1, -1), t, encoder_hidden_states=text).sample.chunk(2)
        latents = scheduler.step(empty + 7.5 * (asked - empty), t, latents).prev_sample
        kept.append(latents.clone())
    return kept


def maps(base: Base, attachment: Attachment) -> dict[str, list[float]]:
    """Of every cross-attention layer: by how much its attention map moves from the category's, and its largest entry.

    Perfusion is given the concept's word at the anchor where the untouched base is given the category; the others,
    which have no word, are given what the base is given.
    """
    edit = edit_of(attachment)
    ids = base.tokenize([PROMPT if edit else PROMPT.replace(WORD, NOUN)])
    encoded = base.encode_ids(ids)
    if edit:
        direction = edit.direction()
        encoded = encoded - (encoded @ direction / (edit.anchor @ direction))[..., None] * edit.anchor
    plain = encoded.clone()
    if edit:
        (place,) = edit.places(ids)[0].nonzero()[:, 0].tolist()
        encoded[0, place], plain[0, place] = edit.anchor, edit.category
    attachment.begin(SideInputs(token_ids=ids, text=encoded))
    moved, largest = [], []
    for path in base.roles["cross_attention.key"]:
        adapter, to_q = attachment.adapters[path], base.module(path.replace("to_k", "to_q"))
        asking = torch.randn(QUERIES, to_q.in_features, generator=torch.Generator().manual_seed(4))
        edited, frozen = (attention(to_q(asking), keys[0]) for keys in (adapter(encoded), adapter.layer(plain)))
        moved.append(float((edited - frozen).abs().max()))
        largest.append(float(frozen.max()))
    return {"map_moved": moved, "map_largest": largest}


def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """(heads, queries, keys) of rows (n, D)."""
    q, k = (each.unflatten(1, (ARCHITECTURE["attention_head_dim"], -1)).transpose(0, 1) for each in (queries, keys))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def judge(results: Results) -> Verdict:
    rows, scores = [], {}
    for name, (title, _) in METHODS.items():
        (each,) = results.where(contender=name)
        scores[name] = each.scores
        peak, shift = max(each.scores["map_largest"]), max(each.scores["map_moved"])
        same = f"{each.scores['equal_steps']} of {each.scores['steps']}"
        rows.append([title, f"{shift:.1e}", f"{peak:.2f}", same, f"{each.scores['difference']:.1e}"])
    locked = scores["locked"]
    shift = max(locked["map_moved"])
    others = {name: min(scores[name]["map_moved"]) for name in METHODS if name != "locked"}
    leaks = [name for name in ("lora", "full") if scores[name]["equal_steps"]]
    held = shift <= GOAL and locked["equal_steps"] == STEPS
    return Verdict(
        paper=Finding(
            status="reproduced" if shift <= GOAL else "not reproduced",
            sentence=f"With locked keys no entry of the attention map of any of {len(locked['map_moved'])} layers is "
            f"further than {shift:.1e} from the category's; with trained keys every layer's moves by "
            f"{others['trained']:.1e} or more, with LoRA {others['lora']:.1e}, fine-tuned {others['full']:.1e}.",
        ),
        goal=Finding(
            status="met" if held and min(others.values()) > 100 * GOAL and not leaks else "not met",
            sentence=f"A prompt without the word is the base's bit for bit in {locked['equal_steps']} of {STEPS} "
            f"steps; LoRA and fine-tuning change the first step by {scores['lora']['difference']:.1e} and "
            f"{scores['full']['difference']:.1e}.",
        ),
        tables=[
            Table(
                title="Attention at the anchor, and a prompt without the word",
                columns=["contender", "map moved by", "largest entry", "steps bit-equal", "latents moved by"],
                rows=rows,
                note=f"UNet of {locked['parameters']:,} parameters, random weights (seed 0), float32, latents of "
                f"{SIDE} x {SIDE}, {STEPS} steps of DDIM at guidance 7.5; {QUERIES} queries a layer. Every parameter "
                f"moved by {MOVED:g} of its scale.",
            )
        ],
    )


def null(unit: Unit, generator: torch.Generator) -> dict[str, Any]:
    """All contenders are LoRA, each with another seed."""
    return fabricated(0.1 + 0.01 * float(torch.rand((), generator=generator)), 0)


def oracle(unit: Unit) -> dict[str, Any]:
    return fabricated(1e-7, STEPS) if unit["contender"] == "locked" else fabricated(0.1, 0)


def fabricated(shift: float, equal: int) -> dict[str, Any]:
    return {
        "equal_steps": equal, "steps": STEPS, "difference": 0.0 if equal else 0.1, "parameters": 859_520_964,
        "map_moved": [shift] * 16, "map_largest": [0.5] * 16,
    }  # fmt: skip


CLAIM = Claim(
    id="PF-0",
    title="Locked keys attend as the category does, and a prompt without the word is the base's",
    paper="Section 4.1 and equation 3: the keys of the concept are those of its super-category, so that it attends as "
    "the category does",
    goal="on a UNet of Stable Diffusion 1.5's shape the concept's attention map is the category's to 1e-5 in all 16 "
    "layers, and a prompt without the word stays bit-equal through 50 steps; trained keys, LoRA and fine-tuning fail",
    design=Design(
        resampled="nothing: exact, one seed", margin="1e-5 of a map's entries, the rounding of float32",
        half_width=None, pilot="", seconds=60.0,
    ),
    units=units,
    run=run,
    judge=judge,
    null=null,
    oracle=oracle,
    needs_base=False,
)  # fmt: skip
