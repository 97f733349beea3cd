"""The face of a base: a pretrained diffusion model, seen through what adaptation needs of it.

Recipes, samplers and measurements know a base only through this class; a family of models is a subclass in a file of
its own. A family gives

    roles                      its role table, `rules`
    condition                  prompts (or class names) -> `Conditioning`
    denoiser_inputs            the denoiser's arguments by keyword, and `learned_sigma`
    generate                   its pipeline, from conditioning to pictures
    encode, decode             pictures <-> latents; the defaults are an autoencoder's
    noise_schedule             the default is read from the pipeline's scheduler
    changes_condition          which layers take part in `condition`, so that it cannot be computed once
    open_                      how its folder is read
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..conditioning import Conditioning
from ..errors import Failed, Refused
from ..files import temporary_of
from ..fingerprint import combined, fingerprint, short_hash
from ..network import Network, Rules, broken_weight, find_roles, owns_parameters
from ..noise_schedule import NoiseSchedule
from .autoencoder import decode_latents, encode_pictures
from .defaults import Defaults, write_defaults
from .quiet import quiet

WAITING_ROOM = torch.device("cpu")  # where components are while they are not used
SLICED = 256  # pixels; decoding a whole batch of larger pictures would fill a small card


class Base(Network):
    """A pretrained diffusion model, as `load_base` returns it; a family is a subclass.

    Args:
        pipeline: a diffusers pipeline, or what the family has in its place.
        name: what was asked for: "embedded", a folder, a file or a hub id.
        defaults: how it is sampled when nothing else is said, and its world.
        prediction_type: replaces the scheduler's, where files do not say; None believes it.

    Attributes:
        roles, fingerprint, attachments: see `Network`; the fingerprint is that of `parts`.
        world: the word lists of a base with a small vocabulary, or None.
        default_guidance, default_steps: sampling defaults.
        encoder: the one that its pictures are measured with unless another is named: the probe where it has a word
            list; "" for none in particular.
        text_fingerprint: the fingerprint of the text encoder alone.
        autoencoder_fingerprint: that of the autoencoder, which `fingerprint` leaves out: adapters do not depend on it.
        folder: the one it was loaded from, if it was.
    """

    family: ClassVar[str]
    rules: ClassVar[Rules]
    components: ClassVar[tuple[str, ...]]  # the folders that must be there
    weights: ClassVar[Mapping[str, str]]  # component with weights -> stem of its file
    parts: ClassVar[tuple[str, ...]]  # the components whose layers have roles; the denoiser is the first
    prediction_types: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction", "sample", "flow")
    learned_sigma: ClassVar[bool] = False  # whether the denoiser's output holds a variance behind the prediction
    upcasts: ClassVar[bool] = False  # whether `force_upcast` of its autoencoder is heeded: in float16 it overflows
    unconditional_first: ClassVar[bool] = True  # with guidance, whether unconditional rows come before the others
    _waiting: tuple[nn.Module, ...] = ()  # components that are on the CPU until they are used
    own_classes: tuple[str, ...] = ()  # names of the classes of a class-conditional base, without those brought to it
    draws_in: torch.dtype | None = None  # see `sampling.sample.drawn_in`; None means its own
    given: Mapping[str, str] = MappingProxyType({})  # what it was loaded with, by the names that a run's config has

    def __init__(self, pipeline: Any, *, name: str, defaults: Defaults, prediction_type: str | None = None) -> None:
        self.name, self.pipeline = name, pipeline
        self.folder: Path | None = None
        self.world = defaults.world
        self.default_guidance, self.default_steps = defaults.guidance, defaults.steps
        self.encoder = defaults.encoder or ("probe" if defaults.world else "")
        expected = " or ".join(self.prediction_types)
        if prediction_type and prediction_type not in self.prediction_types:
            raise Refused(f"prediction_type {prediction_type!r}; expected {expected}")
        if prediction_type:
            pipeline.scheduler.register_to_config(prediction_type=prediction_type)
        if self.prediction_type not in self.prediction_types:
            raise Refused(f"{name} predicts {self.prediction_type!r}; expected {expected}")
        self.attachments: list[Any] = []
        self.roles = find_roles(self.modules(), self.rules)
        self._refuse_layers_without_role()
        self.check_parts()
        self._own = [parameter for part in self.all_parts() for parameter in part.parameters()]
        self.freeze_()
        if broken := broken_weight(self.named_parts()):
            raise Refused(f"{broken}; copy or download the base {name!r} again")
        found = self._digests()
        of_text = {name: each for name, each in found.items() if name.startswith("text_encoder.")}
        self.fingerprint, self.text_fingerprint = combined(found), combined(of_text)
        self.autoencoder_fingerprint = fingerprint(self.vae.named_parameters()) if self.vae else ""

    def check_parts(self) -> None:
        """Raises Refused when the parts are not what the family expects of them."""

    def _refuse_layers_without_role(self) -> None:
        known = {path for paths in self.roles.values() for path in paths}
        for part, module in self.modules().items():
            for name, layer in module.named_modules():
                if owns_parameters(layer) and (path := f"{part}.{name}" if name else part) not in known:
                    raise Refused(
                        f"layer {path} ({type(layer).__name__}) of {self.name!r} has no role in the layout of "
                        f"{self.family}; expected a model of that layout"
                    )

    def named_parts(self) -> Mapping[str, nn.Module]:
        """Everything that must be frozen, by name: the parts with roles, then the autoencoder."""
        return {**self.modules(), **({"vae": self.vae} if self.vae is not None else {})}

    def all_parts(self) -> Iterable[nn.Module]:
        """The same without names."""
        return self.named_parts().values()

    def __repr__(self) -> str:
        return f"Base({self.name!r}, {self.family}, {self.prediction_type}, {self.resolution} px, {self.fingerprint})"

    # --- parts --------------------------------------------------------------------------------------------------------

    def modules(self) -> Mapping[str, nn.Module]:
        return {part: getattr(self.pipeline, part) for part in self.parts}

    @property
    def denoiser(self) -> Any:
        return getattr(self.pipeline, self.parts[0])

    @property
    def text_encoder(self) -> Any:
        """The text encoder, or None."""
        return getattr(self.pipeline, "text_encoder", None)

    @property
    def vae(self) -> Any:
        """The autoencoder, or None for a base that denoises pixels."""
        return getattr(self.pipeline, "vae", None)

    @property
    def resolution(self) -> int:
        """Side of the pictures the base was trained on, in pixels."""
        return int(self.denoiser.config.sample_size) * self.downsampling

    @property
    def downsampling(self) -> int:
        """How many times smaller the sides of the latents are than those of the pictures."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def side_step(self) -> int:
        return self.downsampling

    def check_size(self, width: int, height: int) -> None:
        """Raises Refused for a size of pictures, in steps of `side_step`, that it cannot make."""

    def freeze_(self) -> None:
        """No parameter of the base trains; those of adapters stay as they are. All is in evaluation mode."""
        for part in self.all_parts():
            part.eval()
        for parameter in self._own:
            parameter.requires_grad_(False)

    def checkpoint_gradients_(self, on: bool) -> None:
        """Whether the denoiser recomputes activations in the backward pass instead of keeping them.

        Raises:
            Refused: switched on where the denoiser cannot.
        """
        switch = getattr(self.denoiser, f"{'enable' if on else 'disable'}_gradient_checkpointing", None)
        if switch is not None:
            switch()
        elif on:
            raise Refused(
                f"the denoiser of {self.name!r} cannot checkpoint gradients; leave gradient_checkpointing off"
            )

    # --- where its components are -------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def idle_parts(self) -> list[nn.Module]:
        """The components that a step of training need not use: all but the denoiser and those with an adapter."""
        used = {self.parts[0], *(path.split(".")[0] for each in self.attachments for path in each.adapters)}
        busy = {id(part) for name, part in self.modules().items() if name in used}
        return [part for part in self.all_parts() if id(part) not in busy]

    @contextmanager
    def offloaded(self) -> Iterator[None]:
        """Within the block `idle_parts` wait on the CPU until they are used; does nothing where the base is there."""
        waiting = self.idle_parts() if self.device.type != WAITING_ROOM.type else []
        try:
            for part in waiting:
                _put(part, WAITING_ROOM)
            self._waiting = tuple(waiting)
            yield
        finally:
            self._waiting = ()
            for part in waiting:
                _put(part, self.device)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within the block every component is on the base's device; those that waited wait again afterwards."""
        waiting, self._waiting = self._waiting, ()  # a block inside this one finds nothing to do
        try:
            for part in waiting:
                _put(part, self.device)
            yield
        finally:
            for part in waiting:
                _put(part, WAITING_ROOM)
            self._waiting = waiting

    # --- noise --------------------------------------------------------------------------------------------------------

    @property
    def prediction_type(self) -> str:
        """The quantity that the denoiser predicts: "epsilon", "v_prediction", "sample" or "flow".

        Schedulers of flow matching have no such setting, since there is nothing to choose.
        """
        return str(getattr(self.pipeline.scheduler.config, "prediction_type", "flow"))

    @property
    def noise_schedule(self) -> NoiseSchedule:
        """How training mixes data with noise, and what is predicted."""
        return NoiseSchedule(alphas_cumprod=self.alphas_cumprod, prediction_type=self.prediction_type)

    @property
    def alphas_cumprod(self) -> Tensor:
        """(T,) float32 share of signal power at each training step."""
        if self.prediction_type == "flow":
            s = torch.arange(self.num_train_timesteps) / self.num_train_timesteps
            return (1 - s).square() / ((1 - s).square() + s.square())
        return self.pipeline.scheduler.alphas_cumprod.float()

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of training steps."""
        return int(self.pipeline.scheduler.config.num_train_timesteps)

    # --- condition, denoise -------------------------------------------------------------------------------------------

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of N prompts, with gradient where it is enabled; "" is unconditional.

        Raises:
            Refused: a prompt that the family has no condition for.
        """
        raise NotImplementedError

    def changes_condition(self, paths: Iterable[str]) -> bool:
        """Whether layers at these paths take part in `condition`, so that it must be computed anew when they train."""
        return any(not path.startswith(f"{self.parts[0]}.") for path in paths)

    def denoiser_inputs(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> dict[str, Any]:
        """The denoiser's arguments, by keyword."""
        raise NotImplementedError

    def denoise(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        """The denoiser's prediction, (N, C, h, w); a learned variance behind it is left out.

        Args:
            noisy: latents (N, C, h, w); timesteps: (N,) training steps.
            condition: N rows, from `condition`.
        """
        output = self._output(noisy, timesteps, condition)
        return output[:, : noisy.shape[1]] if self.learned_sigma else output

    def denoise_with_variance(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> tuple[Tensor, Tensor]:
        """The prediction and the variance behind it, (N, C, h, w) each.

        Raises:
            Refused: the base learned no variance.
        """
        if not self.learned_sigma:
            raise Refused(f"{self.name!r} predicts no variance; expected a base that does, such as a DiT")
        prediction, variance = self._output(noisy, timesteps, condition).chunk(2, dim=1)
        return prediction, variance

    def _output(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning) -> Tensor:
        inputs = self.denoiser_inputs(noisy.to(self.dtype), timesteps, condition.to(dtype=self.dtype))
        return self.denoiser(**inputs).sample

    def generate(
        self,
        condition: Conditioning,
        *,
        guidance: float,
        steps: int,
        width: int,
        height: int,
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Pictures (N, 3, height, width) in [0, 1], with whatever is attached now.

        Args:
            condition: N rows; with guidance above 1 N unconditional rows besides, `unconditional_first` or last.
            guidance: classifier-free guidance scale, 1 for none.
            steps: denoising steps.
            width, height: in pixels.
            generators: N sources of the initial noise.
        """
        raise NotImplementedError

    @property
    def drawing_fingerprint(self) -> str:
        """Of all that pictures depend on: `fingerprint`, the autoencoder, the scheduler and what the base predicts."""
        scheduler = self.pipeline.scheduler
        config = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
        facts = [self.fingerprint, self.autoencoder_fingerprint, type(scheduler).__name__, config]
        return short_hash(json.dumps(facts, sort_keys=True, default=str).encode())

    # --- encode, decode -----------------------------------------------------------------------------------------------

    def encode_pictures(self, pixels: Tensor) -> Tensor:
        """pixels (N, 3, H, W) in [0, 1] -> latents (N, C, h, w) as the denoiser sees them (the posterior's mode)."""
        return encode_pictures(self, pixels)

    def decode_latents(self, latents: Tensor) -> Tensor:
        """latents (N, C, h, w) -> pixels (N, 3, H, W) in [0, 1]."""
        return decode_latents(self, latents)

    # --- words, control -----------------------------------------------------------------------------------------------

    def check_noun(self, noun: str) -> None:
        """Raises Refused when the base cannot know a class noun."""

    def copy_encoder(self, *, channels: Sequence[int], blocks: int, copy_weights: bool, seed: int) -> nn.Module:
        """A trainable copy of the denoiser's encoder, see `EncoderCopy`; raises Refused where the family has none."""
        raise Refused(f"a ControlNet copies the encoder of a UNet, and {self.name!r} is a {self.family}; use a hint")

    # --- files --------------------------------------------------------------------------------------------------------

    @classmethod
    def open_(cls, folder: Path, dtype: torch.dtype) -> Any:
        """The pipeline of a folder in diffusers' format whose components were found to be there."""
        raise NotImplementedError

    @classmethod
    def open_file(cls, path: Path, configuration: Path, dtype: torch.dtype) -> Any:
        """The pipeline of one checked .safetensors file, of a family that has such."""
        raise NotImplementedError

    def move_(self, device: torch.device, dtype: torch.dtype) -> None:
        """Puts all weights on a device and in a dtype; large pictures go through the autoencoder one at a time."""
        self.pipeline.to(device, dtype)
        if self.resolution >= SLICED and hasattr(self.vae, "enable_slicing"):
            self.vae.enable_slicing()
        self.pipeline.set_progress_bar_config(disable=True)

    def save(self, folder: str | Path) -> Path:
        """Writes the base as it is now (merged attachments included) in diffusers' folder format, whole or not at all.

        Raises:
            Refused: something is attached and not merged, or the folder holds something already.
            Failed: a weight is no finite number, the disk is full or the place cannot be written.
        """
        folder = Path(folder)
        if any(not attachment.is_merged for attachment in self.attachments):
            raise Refused("something is attached and not merged; merge_() or detach() it before saving the base")
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise Refused(f"{folder} exists and is not empty; choose a new folder to save the base in")
        if broken := broken_weight(self.named_parts()):
            raise Failed(f"{broken}; {folder} is not written, load the base again")
        defaults = Defaults(
            guidance=self.default_guidance, steps=self.default_steps, encoder=self.encoder, world=self.world
        )
        temporary = temporary_of(folder)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            with quiet():
                self.save_pipeline(temporary)
            write_defaults(temporary, self.name, defaults)
            os.replace(temporary, folder)
        except BaseException as error:  # an interrupt as well: no temporary folder stays
            shutil.rmtree(temporary, ignore_errors=True)
            if not isinstance(error, Exception):
                raise
            # safetensors, diffusers and tokenizers each say "disk full" in a class of their own
            raise Failed(f"cannot write {folder} ({error}); free some space or choose another place") from error
        return folder

    def save_pipeline(self, folder: Path) -> None:
        """Writes the pipeline into an empty folder."""
        self.pipeline.save_pretrained(folder)


def _put(part: nn.Module, device: torch.device) -> None:
    part.to(device)
