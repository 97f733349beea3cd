"""Text alignment: does the picture show what the prompt says?"""

from torch import Tensor

from .rows import check_paired, unit


def text_alignment(pictures: Tensor, texts: Tensor) -> Tensor:
    """Cosine between each picture and its own prompt; the metric is the mean of the result.

    CLIP-T of Ruiz et al., DreamBooth (2023), section 4.2; the cosine inside CLIPScore (Hessel et al., 2021, eq. 1)
    without its factor 2.5 and its cut at zero. Prompts are given without the subject's token.

    Args:
        pictures: (N, D) features of pictures in the joint space.
        texts: (N, D) features of the prompt of each, same encoder.

    Returns:
        (N,) in [-1, 1]; higher is better. Only figures of one encoder compare.

    Raises:
        Refused: not paired rows of one width, empty, or not finite.
    """
    check_paired(pictures=pictures, texts=texts)
    return (unit(pictures) * unit(texts)).sum(1)
