"""Subject fidelity: does the generated subject look like the reference pictures?"""

from torch import Tensor

from .rows import check_rows, unit


def subject_fidelity(generated: Tensor, reference: Tensor) -> Tensor:
    """Mean cosine between each generated picture and all reference pictures; the metric is the mean of the result.

    Ruiz et al., DreamBooth (2023), section 4.2: "the average pairwise cosine similarity between embeddings of
    generated and real images", called CLIP-I with CLIP's features and DINO with ViT-S/16 DINO's.

    Args:
        generated: (N, D) features of generated pictures.
        reference: (M, D) features of the pictures of the subject, same encoder.

    Returns:
        (N,) in [-1, 1]; higher is more alike.

    Raises:
        Refused: not rows of one width, empty, or not finite.
    """
    check_rows(1, generated=generated, reference=reference)
    return unit(generated) @ unit(reference).mean(0)
