"""Loading a base by name, folder, file or hub id."""

import os
from pathlib import Path

import torch

from ..errors import Refused
from ..files import at_home, is_there
from .base import Base
from .defaults import Defaults, read_defaults
from .dit import DiT
from .hub import fetch_pipeline, looks_like_hub_id
from .local_folder import INDEX, PICKLES, check_class, check_components
from .quiet import quiet
from .single_file import check_file, configuration_of
from .stable_diffusion import StableDiffusion
from .stable_diffusion_3 import StableDiffusion3
from .stable_diffusion_xl import StableDiffusionXL

EMBEDDED = Path(__file__).parent / "embedded"
SHIPPED = {"embedded": EMBEDDED, "embedded-dit": Path(__file__).parent / "embedded_dit"}  # name -> folder
FAMILIES: dict[str, type[Base]] = {
    "StableDiffusionPipeline": StableDiffusion, "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3, "DiTPipeline": DiT,
}  # fmt: skip
DTYPES = {
    "float32": torch.float32, "fp32": torch.float32, "float16": torch.float16, "fp16": torch.float16,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
}  # fmt: skip


def load_base(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    config: str | os.PathLike[str] | None = None,
    prediction_type: str | None = None,
) -> Base:
    """Loads a pretrained model, frozen, without a word on the terminal (downloads show their progress).

    Args:
        name: "embedded", "embedded-dit" (class-conditional), a folder in diffusers format, a .safetensors checkpoint,
            or a hub id "owner/name".
        device: where to put it; None means the GPU if there is one, else the CPU.
        dtype: "float32", "float16" or "bfloat16"; None means float32. On the CPU always float32, whatever is on disk.
        config: for a .safetensors file: a diffusers folder of the same version whose configuration and tokenizer it
            takes; None looks in the local cache, then on the hub.
        prediction_type: "epsilon" or "v_prediction"; None believes the scheduler's configuration. Files of Stable
            Diffusion 2.x do not say which they are.

    Raises:
        Refused: there is no such base, it is of a kind not supported, a file of it is missing or broken, or device and
            dtype do not go together.
    """
    name = os.fspath(name)
    place, precision = _place(device, dtype)
    # float16 and float32 give one fingerprint; bfloat16 is too coarse for that, so it is cast afterwards.
    loaded = torch.float32 if precision == torch.bfloat16 else precision
    with quiet():
        base = _open(name, loaded, config, prediction_type)
        asked = {"base_config": os.fspath(config) if config else "", "prediction_type": prediction_type or ""}
        base.given = {key: value for key, value in asked.items() if value}
        if loaded != precision:
            _ = base.fingerprint
        base.move_(place, precision)
    return base


def _open(name: str, dtype: torch.dtype, config: str | os.PathLike[str] | None, prediction_type: str | None) -> Base:
    path = at_home(name) if is_there(name) else Path(name)
    if config is not None and (name in SHIPPED or (is_there(name) and path.is_dir())):
        raise Refused(f"config goes with a single .safetensors file; base {name!r} brings its own")
    if name in SHIPPED:
        path = SHIPPED[name]
        if not (path / INDEX).is_file():
            raise Refused(f"the base {name} is missing in this installation ({path}); install diffadapt again")
    elif is_there(path) and path.is_file():
        kind = check_file(path)
        folder = configuration_of(path, kind) if config is None else at_home(config)
        family = _family(folder)
        if family.family != kind:
            raise Refused(f"{name} is a {kind}, and {folder} is the configuration of a {family.family}; give its own")
        check_components(folder, family.components, {})
        pipeline = family.open_file(path, folder, dtype)
        return family(pipeline, name=name, defaults=Defaults(), prediction_type=prediction_type)
    elif not is_there(path):
        if config is not None:
            raise Refused(f"there is no file at {name!r}; config goes with a single .safetensors file")
        path = _download(name)
    family = _family(path)
    check_components(path, family.components, family.weights)
    pipeline = family.open_(path, dtype)
    base = family(pipeline, name=name, defaults=read_defaults(path), prediction_type=prediction_type)
    base.folder = path
    return base


def _download(name: str) -> Path:
    if Path(name).suffix.lower() in PICKLES:
        raise Refused(f"{name} is not there, and a pickle would be refused: expected a .safetensors file")
    if not looks_like_hub_id(name) or name.endswith(".safetensors"):
        raise Refused(
            f'no base {name!r}: expected "embedded", "embedded-dit", a folder in diffusers format, a .safetensors '
            'file, or a hub id "owner/name"'
        )
    return fetch_pipeline(name, FAMILIES)


def _family(folder: Path) -> type[Base]:
    if not (folder / INDEX).is_file():
        raise Refused(f"{folder} holds no {INDEX}; expected a folder as diffusers' save_pretrained writes it")
    return FAMILIES[check_class(folder / INDEX, FAMILIES)]


def _place(device: str | torch.device | None, dtype: str | torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    cuda = torch.cuda.is_available()
    try:
        # accelerate launch tells each process which GPU is its own
        own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu"
        place = torch.device(own if device is None else device)
    except RuntimeError as error:
        raise Refused(f"unknown device {device!r}; expected cpu, cuda or cuda:N") from error
    if place.type == "cuda" and not (cuda and (place.index or 0) < torch.cuda.device_count()):
        raise Refused(f"got device {str(place)!r}, but torch sees {torch.cuda.device_count()} GPUs; use cpu")
    precision = DTYPES.get(dtype) if isinstance(dtype, str) else dtype or torch.float32
    if precision not in DTYPES.values():
        raise Refused(f"unknown dtype {dtype!r}; expected float32, float16 or bfloat16")
    if place.type == "cpu" and precision != torch.float32:
        raise Refused(f"got dtype {dtype} for the CPU, which computes in float32 only; leave it out or use a GPU")
    assert precision is not None
    return place, precision
