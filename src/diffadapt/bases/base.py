"""A base: a pretrained model as diffusers loads it, seen through what adaptation needs of it.

Recipes encode, denoise and decode through a `Base`; methods see its layers by role. One code path serves the embedded
model and the real ones.
"""

import difflib
import itertools
import os
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import Failed, Refused
from .covariance import Covariance, load_covariance
from .defaults import Defaults, write_defaults
from .fingerprint import combined, digests
from .quiet import quiet


class Base:
    """What `load_base` returns; a family is a subclass.

    Args:
        pipeline: a diffusers pipeline.
        name: what was asked for: "embedded", a folder, a file or a hub id.
        defaults: how it is sampled when nothing else is said, and its world.
        prediction_type: replaces the scheduler's "epsilon" or "v_prediction"; None believes it.

    Attributes:
        roles: role -> paths of its layers, for example "cross_attention.key" -> ("unet.mid_block...", ...). Paths are
            those of the untouched base and stay valid while adapters stand on the layers.
        fingerprint: a short name of the weights of denoiser and text encoder as loaded; see `fingerprint.py`.
        attachments: what stands on the base now, innermost first.
        world: the word lists of a base with a small vocabulary, or None.
        default_guidance, default_steps: sampling defaults.
        text_fingerprint: the same of the text encoder alone.
        folder: the one it was loaded from, if it was.
    """

    family: ClassVar[str]
    components: ClassVar[tuple[str, ...]]
    parts: ClassVar[tuple[str, ...]]  # the components whose layers have roles

    def __init__(self, pipeline: Any, *, name: str, defaults: Defaults, prediction_type: str | None = None) -> None:
        self.name, self.pipeline = name, pipeline
        self.folder: Path | None = None
        self.world: Mapping[str, tuple[str, ...]] | None = defaults.world
        self.default_guidance, self.default_steps = defaults.guidance, defaults.steps
        if prediction_type not in (None, "epsilon", "v_prediction"):
            raise Refused(f"prediction_type {prediction_type!r}; expected 'epsilon' or 'v_prediction'")
        if prediction_type:
            pipeline.scheduler.register_to_config(prediction_type=prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise Refused(f"{name} predicts {self.prediction_type!r}; supported: epsilon and v_prediction")
        self.attachments: list[Any] = []
        self.roles = self.find_roles()
        channels, latent = pipeline.unet.config.in_channels, pipeline.vae.config.latent_channels
        if channels != latent:  # an inpainting, depth or upscaling model, which would fail at the first denoise
            raise Refused(f"{name} is no text-to-image model: UNet with {channels} channels on latents of {latent}")
        # The base's own parameters: those of adapters come later and stay trainable when the base is frozen again.
        whole = (pipeline.unet, pipeline.text_encoder, pipeline.vae)
        self._covariance: Covariance | None = None
        self._own = [parameter for part in whole for parameter in part.parameters()]
        self.freeze_()
        found = digests(
            (f"{part}.{key}", value) for part in self.parts for key, value in getattr(pipeline, part).named_parameters()
        )
        of_text = {name: each for name, each in found.items() if name.startswith("text_encoder.")}
        self.fingerprint, self.text_fingerprint = combined(found), combined(of_text)

    def find_roles(self) -> dict[str, tuple[str, ...]]:
        """The family's role table; raises Refused when a layer fits no role."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.family}, {self.prediction_type}, {self.resolution} px, {self.fingerprint})"

    # --- parts --------------------------------------------------------------------------------------------------------

    @property
    def denoiser(self) -> Any:
        return self.pipeline.unet

    @property
    def text_encoder(self) -> Any:
        return self.pipeline.text_encoder

    @property
    def vae(self) -> Any:
        return self.pipeline.vae

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.pipeline.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        return next(iter(self.vae.parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.vae.parameters())).dtype

    @property
    def resolution(self) -> int:
        """Side of the pictures the base was trained on, in pixels."""
        return int(self.denoiser.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @property
    def prediction_type(self) -> str:
        """ "epsilon" or "v_prediction"."""
        return str(self.pipeline.scheduler.config.prediction_type)

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float32 share of signal power at each training step."""
        return self.pipeline.scheduler.alphas_cumprod.float()

    @property
    def num_train_timesteps(self) -> int:
        return len(self.alphas_cumprod)

    # --- layers -------------------------------------------------------------------------------------------------------

    def module(self, path: str) -> nn.Module:
        """The module that stands at a path of the untouched base now: the layer, or the outermost adapter on it.

        Raises:
            Refused: there is no such path.
        """
        holder, name = self._holder(path)
        return holder.get_submodule(name)

    def replace_(self, path: str, module: nn.Module) -> None:
        """Puts a module at a path; raises Refused when there is no such path."""
        holder, name = self._holder(path)
        if not name:
            raise Refused(f"{path!r} is a whole part of base {self.name!r}; expected the path of a layer in it")
        setattr(holder, name, module)

    def _holder(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds the one at a path, and its name there ("" for a whole part)."""
        part, *names = path.split(".")
        if part not in self.parts:
            raise Refused(f"no part {part!r} in base {self.name!r}; paths start with {' or '.join(self.parts)}")
        module: nn.Module = getattr(self.pipeline, part)
        holder, last = module, ""
        for name in names:
            # An adapter on a block hides the block's own layers one step further down.
            while name not in module._modules and isinstance(getattr(module, "layer", None), nn.Module):
                module = module.get_submodule("layer")
            if module._modules.get(name) is None:
                known = [known for paths in self.roles.values() for known in paths]
                near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
                raise Refused(f"no layer {path!r} in base {self.name!r}; the nearest is {''.join(near)}")
            holder, last, module = module, name, module.get_submodule(name)
        return holder, last

    def freeze_(self) -> None:
        """No parameter of the base trains; those of adapters stay as they are. All is in evaluation mode."""
        for part in (self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.vae):
            part.eval()
        for parameter in self._own:
            parameter.requires_grad_(False)

    def select(self, patterns: Sequence[str]) -> dict[str, str]:
        """The layers of the roles that match, as {path: role} in the order of the role table.

        Args:
            patterns: role names or shell patterns, for example "cross_attention.*".

        Raises:
            Refused: there is no pattern, or one matches no role; lists the roles and names the nearest.
        """
        if not patterns:
            raise Refused("no role given; expected names or patterns such as 'cross_attention.*'")
        chosen: set[str] = set()
        for pattern in patterns:
            matched = {role for role in self.roles if fnmatchcase(role, pattern)}
            if not matched:
                near = difflib.get_close_matches(pattern, self.roles, n=1, cutoff=0.0)
                raise Refused(
                    f"role {pattern!r} matches nothing on {self.name!r}; did you mean {near[0]!r}? Its roles are: "
                    + ", ".join(self.roles)
                )
            chosen |= matched
        return {path: role for role, paths in self.roles.items() if role in chosen for path in paths}

    # --- encode, denoise, decode --------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> latents (N, C, h, w) as the denoiser sees them (the posterior's mode)."""
        factor = int(self.pipeline.vae_scale_factor)
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
            came = tuple(pixels.shape)
            raise Refused(f"expected pixels (N, 3, H, W) with sides that {factor} divides, came {came}; crop them")
        low, high = pixels.aminmax()
        if not (low >= 0 and high <= 1):
            raise Refused(f"expected pixels in [0, 1], got {float(low):.3g} to {float(high):.3g}; rescale them")
        encoded = self.vae.encode((2 * pixels.float() - 1).to(self.device, self.dtype))  # autoencoders see [-1, 1]
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return (latents.float() - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (N, C, h, w) -> pixels (N, 3, H, W) in [0, 1]."""
        latents = latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)
        return (self.vae.decode(latents.to(self.device, self.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> identities (N, L); a token of several vectors is spelled out, a long prompt is cut."""
        spelled = [self._spelled(prompt) for prompt in prompts]
        length = min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)
        ids = self.tokenizer(spelled, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return ids.input_ids.to(self.device)

    def _spelled(self, prompt: str) -> str:
        """A token of several vectors becomes "<t> <t>_1 <t>_2", as diffusers' own pipeline does."""
        added = self.tokenizer.added_tokens_encoder
        for token in [token for token in added if f"{token}_1" in added and f"{token}_1" not in prompt]:
            further = itertools.takewhile(added.__contains__, (f"{token}_{i}" for i in itertools.count(1)))
            prompt = prompt.replace(token, " ".join([token, *further]))
        return prompt

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Identities (N, L) -> text (N, L, D), with gradient where it is enabled."""
        return self.text_encoder(ids).last_hidden_state

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> text (N, L, D), with gradient where it is enabled."""
        return self.encode_ids(self.tokenize(prompts))

    def denoise(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The denoiser's prediction (N, C, h, w) for noisy latents (N, C, h, w), timesteps (N,) and text (N, L, D)."""
        return self.denoiser(noisy.to(self.dtype), timesteps, encoder_hidden_states=text.to(self.dtype)).sample

    # --- the text encoder's second moment -----------------------------------------------------------------------------

    @property
    def covariance_file(self) -> Path:
        """Where the second moment of its text encoder is: beside the base's own files, else in the user's cache."""
        if self.folder and (self.folder / "covariance.safetensors").is_file():
            return self.folder / "covariance.safetensors"
        cache = Path(os.environ.get("DIFFADAPT_CACHE", "~/.cache/diffadapt")).expanduser()
        return cache / "covariance" / f"{self.text_fingerprint.split(':')[-1]}.safetensors"

    def covariance(self) -> Covariance:
        """The second moment of its text encoder's outputs; read once.

        Raises:
            Refused: it was not measured yet, or on another text encoder; says how to.
        """
        if self._covariance is None:
            file = self.covariance_file
            if not file.is_file():
                raise Refused(
                    f"the text encoder of {self.name!r} has no covariance yet, expected at {file}; measure it once: "
                    f"diffadapt covariance --base {self.name} --captions CAPTIONS.txt"
                )
            found = load_covariance(file)
            if found.facts.get("encoder") != self.text_fingerprint:
                raise Refused(
                    f"{file} was measured on another text encoder ({found.facts.get('encoder')}), {self.name!r} has "
                    f"{self.text_fingerprint}; measure it again: diffadapt covariance --base {self.name} ..."
                )
            self._covariance = found
        return self._covariance

    # --- words and files ----------------------------------------------------------------------------------------------

    def check_noun(self, noun: str) -> None:
        """Raises Refused when the base cannot know a class noun."""
        if self.world:
            kinds, nouns = self.world.get("kinds", ()), self.world.get("nouns", ())
            if noun not in (*kinds, *nouns):
                near = difflib.get_close_matches(noun, [*kinds, *nouns], n=1, cutoff=0.0)
                raise Refused(
                    f"class noun {noun!r} is no word that base {self.name!r} was trained on; did you mean {near[0]!r}? "
                    f"It knows the kinds {', '.join(kinds)} and the nouns {', '.join(nouns)}"
                )
            return
        ids = self.tokenizer(noun, add_special_tokens=False).input_ids
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        special = self.tokenizer.eos_token_id
        if not ids or (unknown is not None and unknown != special and unknown in ids):
            raise Refused(f"class noun {noun!r} has no word in the tokenizer of {self.name!r}; use a plain word: 'dog'")

    def save(self, folder: str | Path) -> Path:
        """Writes the base as it is now (merged attachments included) in diffusers' folder format, whole or not at all.

        Raises:
            Refused: something is attached and not merged, or the folder holds something already.
            Failed: the disk is full or the place cannot be written.
        """
        folder = Path(folder)
        if any(not attachment.is_merged for attachment in self.attachments):
            raise Refused("something is attached and not merged; merge_() or detach() it before saving the base")
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise Refused(f"{folder} exists and is not empty; choose a new folder to save the base in")
        self.text_encoder.config.vocab_size = self.text_encoder.get_input_embeddings().weight.shape[0]
        defaults = Defaults(guidance=self.default_guidance, steps=self.default_steps, world=self.world)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            with quiet():
                self.pipeline.save_pretrained(temporary)
            write_defaults(temporary, self.name, defaults)
            os.replace(temporary, folder)
        except Exception as error:  # safetensors, diffusers and tokenizers each say "disk full" in a class of their own
            shutil.rmtree(temporary, ignore_errors=True)
            raise Failed(f"cannot write {folder} ({error}); free some space or choose another place") from error
        return folder
