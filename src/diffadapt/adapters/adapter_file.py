"""Adapter files: reading one, and putting it on the base that it was trained on."""

from pathlib import Path

from torch import Tensor

from ..config import build
from ..errors import Refused
from ..files import load_tensors, parse_json
from ..network import Network
from ..shapes import ADAPTER_CLASSES, ADAPTER_HEADER, ADAPTER_ROLES, ADAPTER_TOKENS, hold
from .adapter import Method
from .attach import FORMAT_VERSION, Attachment, attach, package_version
from .methods import METHODS
from .same_base import refuse_another_base


def read_adapter(path: str | Path) -> tuple[Method, list[str], dict[str, str], dict[str, Tensor], dict[str, str]]:
    """Reads an adapter file without a base.

    Returns:
        method, roles, tokens, tensors, the whole header

    Raises:
        Refused: it is not an adapter of ours, of a newer format, or of an unknown method.
    """
    tensors, header = load_tensors(path)
    if header.get("format") != "diffadapt":
        raise Refused(
            f"{path} is a safetensors file but not an adapter of diffadapt (its format is {header.get('format')!r})"
        )
    hold(header, ADAPTER_HEADER, f"{path}: its header")
    if not header["format_version"].isdecimal() or int(header["format_version"]) > FORMAT_VERSION:
        raise Refused(
            f"{path} has format version {header['format_version']}, this diffadapt {package_version()} reads up to "
            f"{FORMAT_VERSION}; update diffadapt"
        )
    if header.get("method") not in METHODS:
        raise Refused(f"{path} was made with method {header.get('method')!r}; known: {', '.join(METHODS)}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise Refused(f"{path}: {name} holds {tensor.dtype} and no numbers of an adapter; save or train it again")
    try:
        config = parse_json(header["config"], dict, f"{path}: config")
        method = build(METHODS[header["method"]], config, name="config")
        roles = parse_json(header["roles"], ADAPTER_ROLES, f"{path}: roles")
        return method, roles, parse_json(header["tokens"], ADAPTER_TOKENS, f"{path}: tokens"), tensors, header
    except Refused as error:
        raise Refused(f"{path} has a header that cannot be read ({error}); save or train the adapter again") from error


def load_adapter(base: Network, path: str | Path, *, any_base: bool = False) -> Attachment:
    """Loads an adapter file onto the base that it was trained on.

    Args:
        base: a loaded base.
        path: a file that `Attachment.save` wrote.
        any_base: also accept another base whose layers have the same shapes (a fine-tuned sibling).

    Raises:
        Refused: another base, a shape that does not fit, a newer format; says what to do.
    """
    method, roles, tokens, tensors, header = read_adapter(path)
    if not any_base:
        refuse_another_base(base, path, header)
    vectors = method.vectors_per_word()
    first_vectors = dict(list(tokens.items())[::vectors])  # "<t>", "<t>_1", ... stand one behind the other
    classes = parse_json(header.get("classes", "[]"), ADAPTER_CLASSES, f"{path}: classes")
    attachment = attach(base, method, roles, tokens=first_vectors, classes=classes)
    try:
        if attachment.shared:
            attachment.shared.check(header)
        attachment.load_state_dict(tensors)
    except Refused as error:
        attachment.detach()
        raise Refused(f"{path} does not fit base {base.name!r}: {error}") from error
    return attachment


def copy_values(attachment: Attachment, path: str | Path) -> None:
    """Copies a file's values into an attachment of the same method, so that training goes on from them.

    What the file lacks keeps its own start: with `rescale="after"`, OFT takes the rotations of a file without gains.

    Args:
        attachment: of the method that made the file.
        path: an adapter file of the same base.

    Raises:
        Refused: another method, another base, values that the attachment has no place for, or that mean something else
            under its settings.
    """
    method, _, _, tensors, header = read_adapter(path)
    if method.name != attachment.method.name:
        own = attachment.method.name
        raise Refused(f"{path} was made with method {method.name!r}; training with {own!r} cannot go on from it")
    refuse_another_base(attachment.base, path, header)
    for layer in attachment.layers:
        of_file, of_training = method.meaning(layer), attachment.method.meaning(layer)
        for setting, value in of_file.items():
            if value != (own := of_training[setting]):
                raise Refused(
                    f"{path} was trained with {setting} = {value} at {layer}, this training has {own}; expected the "
                    "same, for the values mean something else under another"
                )
    classes = parse_json(header.get("classes", "[]"), ADAPTER_CLASSES, f"{path}: classes")
    if classes and tuple(classes) != attachment.classes:
        raise Refused(
            f"{path} holds the classes {', '.join(classes)}, this training has "
            f"{', '.join(attachment.classes) or 'none'}; expected the same in the same order"
        )
    try:
        if attachment.shared:
            attachment.shared.check(header)
        attachment.load_state_dict({**attachment.state_dict(), **tensors})
    except Refused as error:
        raise Refused(f"{path} does not fit what is to be trained: {error}") from error
