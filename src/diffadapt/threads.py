"""How long OpenMP's threads spin while they wait for each other."""

import os

# At 31 ns a spin (AMD EPYC) 93 us. In a training step of the embedded base, 91 % of the pauses between parallel regions
# are shorter: through those a thread stays awake, as on a quiet machine it should.
SPINS = 3000


def bound_spinning() -> None:
    """Let a waiting thread sleep after 3,000 spins, unless the user set GOMP_SPINCOUNT or OMP_WAIT_POLICY.

    GNU's OpenMP spins 300,000 times (9 ms) in each of the 5,000 parallel regions of a training step. Where other
    programs hold the cores, that time is taken from the very thread that is waited for, and a step takes fifty times
    as long. OpenMP reads the setting when torch is imported: later calls change nothing.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
