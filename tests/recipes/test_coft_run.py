"""A short training whose COFT radius binds: other bytes than OFT's, the same from one seed, and inside the ball."""

import math

import torch

from diffadapt.adapters import OFT
from diffadapt.data.concept import load_concept
from diffadapt.files import load_tensors
from diffadapt.recipes.subject import SubjectConfig, train_subject

RADIUS = 0.5  # degrees
SHORT = SubjectConfig(
    steps=3, batch_size=1, warmup=0, learning_rate=0.01, prior_weight=0, checkpoint_every=0, sample_every=0,
    evaluation_prompts=0, train_token=True, roles=("cross_attention.*",),
)  # fmt: skip


def test_coft_trains_to_other_bytes_than_oft_and_to_its_own_again(base, photos, tmp_path):
    concept = load_concept(photos, "cat")

    def trained(name: str, **constraint) -> dict[str, torch.Tensor]:
        method = OFT(block_size=4, **constraint)
        run = train_subject(base, concept, method=method, config=SHORT, out=tmp_path / name / "run", quiet=True)
        return load_tensors(run.adapter)[0]

    coft = {"constraint": "angle", "radius": RADIUS}
    free, first, second = trained("oft"), trained("coft", **coft), trained("again", **coft)
    assert free.keys() == first.keys() == second.keys()
    turned = [name for name in free if name.endswith(".q")]
    assert turned and all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], free[name]) for name in turned)
    bound = math.tan(math.radians(RADIUS) / 2)

    def largest(tensors: dict[str, torch.Tensor]) -> float:
        """Spectral norm of the skew-symmetric Q of the block that turns most, from its upper triangle."""
        found = []
        row, column = torch.triu_indices(4, 4, 1)
        for name in turned:
            q = torch.zeros(len(tensors[name]), 4, 4)
            q[:, row, column] = tensors[name]
            found.append(float(torch.linalg.matrix_norm((q - q.mT).double(), ord=2).max()))
        return max(found)

    assert largest(free) > 2 * bound and largest(first) <= bound * (1 + 1e-5)
    assert largest(first) > bound * 0.99  # the radius binds
