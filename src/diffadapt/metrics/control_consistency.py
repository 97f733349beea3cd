"""Control consistency: read the signal back from generated pictures and compare it with the one they were given."""

from torch import Tensor

from ..controls import find_signal
from ..controls.depth_order import LAYERS, layers_in, shade_layers
from ..controls.landmarks import draw_landmarks, landmarks_in, landmarks_of
from ..controls.segmentation import CLASSES, colour_labels, labels_in
from ..controls.signal import check_pictures
from ..errors import Refused
from .edge_agreement import edge_agreement
from .landmark_error import landmark_error
from .reader import Reader
from .segmentation_scores import confusion_matrix, pixel_accuracy


def read_signal(name: str, pictures: Tensor, reader: Reader | None = None) -> Tensor:
    """Extract a signal from pictures: from their pixels if they determine it, otherwise with the reader.

    Args:
        name: of `SIGNALS`.
        pictures: (N, 3, H, W) in [0, 1]; of the embedded world if the reader is needed.
        reader: needed for "segmentation", "landmarks" and "depth_order".

    Returns:
        (N, 3, H, W) in [0, 1].

    Raises:
        Refused: unknown signal, missing reader, wrong shape or range of pictures, or OpenCV is missing.
    """
    signal = find_signal(name)
    if signal.extract is not None:
        return signal.extract(pictures)
    if reader is None:
        raise Refused(
            f"{name} does not follow from pixels alone; pass reader=load_reader() for pictures of the embedded base"
        )
    reading = reader.read(pictures)
    if name == "segmentation":
        return colour_labels(reading.labels)
    if name == "depth_order":
        return shade_layers(reading.layers)
    return draw_landmarks(landmarks_of(reading.layers), *pictures.shape[2:])


def control_consistency(name: str, wanted: Tensor, pictures: Tensor, reader: Reader | None = None) -> dict[str, Tensor]:
    """Agreement of pictures with the control signals they were generated from, per picture.

    Qiu et al., OFT (2023), section 5.2: the same detector on the wanted and on the generated picture. Edges
    are compared as bool maps (line art is thresholded at 0.5).

    Args:
        name: of `SIGNALS`.
        wanted: (N, 3, H, W) in [0, 1], the control signals.
        pictures: (N, 3, H, W) in [0, 1], generated from them.
        reader: as in `read_signal`.

    Returns:
        "canny", "line_art": "iou" and "f1", (N,), see `edge_agreement`.
        "segmentation", "depth_order": "aacc" (N,), see `pixel_accuracy`, and "confusion" (N, C, C), whose sum
        `segmentation_scores` turns into mIoU, mAcc and aAcc of the whole set.
        "landmarks": "error" (N,) in pixels, NaN if none was found, and "detected" (N,); see
        `landmark_error`.

    Raises:
        Refused: as `read_signal`, or signals and pictures that do not fit each other.
    """
    check_pictures("wanted", wanted)
    if wanted.shape != pictures.shape:
        raise Refused(f"wanted signals are {tuple(wanted.shape)}, pictures {tuple(pictures.shape)}; expected the same")
    found = read_signal(name, pictures, reader)
    if name in ("canny", "line_art"):
        return edge_agreement(wanted[:, 0] > 0.5, found[:, 0] > 0.5)
    if name == "landmarks":
        return landmark_error(landmarks_in(wanted), landmarks_in(found))
    numbers, classes = (labels_in, CLASSES) if name == "segmentation" else (layers_in, LAYERS)
    confusion = confusion_matrix(numbers(wanted), numbers(found), len(classes))
    return {"aacc": pixel_accuracy(confusion), "confusion": confusion}
