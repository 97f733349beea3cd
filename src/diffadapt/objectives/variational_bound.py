"""The loss of a learned variance: what the extra channels of a denoiser such as DiT's are trained on.

    log sigma^2 = v log beta_t + (1 - v) log beta~_t,   v = (output + 1) / 2
    L_vb = KL( q(x_{t-1} | x_t, x_0) || N(mu, sigma^2) )  in bits a number, the mean without gradient

(Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15 and section 3.1.) A base whose output has twice the channels of its
latents predicts the noise in the first half and v in the second; its loss is the squared error plus L_vb, on rows of
target and memory alike. At t = 0, where the posterior's variance is 0, that of t = 1 stands in for it and the KL is
taken there too; the published code has the likelihood of 8-bit pixels instead, which latents are not.
"""

import math

import torch
from torch import Tensor

from ..errors import Refused


def variational_bound(
    alphas_cumprod: Tensor, latents: Tensor, noisy: Tensor, timesteps: Tensor, noise: Tensor, variance: Tensor
) -> Tensor:
    """L_vb of each row.

    Args:
        alphas_cumprod: (T,) share of signal power at each training step, T >= 2.
        latents, noisy: (N, C, h, w) x_0 and x_t.
        timesteps: (N,) in 0..T-1.
        noise: (N, C, h, w) the predicted noise; no gradient flows through it.
        variance: (N, C, h, w) the output's second half, v in [-1, 1] where the variance lies between its bounds.

    Returns:
        (N,) float32

    Raises:
        Refused: an output without channels for the variance.
    """
    if variance.shape != latents.shape:
        raise Refused(f"expected variance channels {tuple(latents.shape)}, got {tuple(variance.shape)}")
    a = alphas_cumprod.cpu().double()  # tables on the CPU, since not every GPU has float64
    before = torch.cat([a.new_ones(1), a[:-1]])
    beta = 1 - a / before
    tilde = beta * (1 - before) / (1 - a)  # variance of the posterior
    tilde[0] = tilde[1]
    of_data = beta * before.sqrt() / (1 - a)

    def at(table: Tensor) -> Tensor:
        return table.float().to(latents.device)[timesteps][:, None, None, None]

    x_0 = (noisy - at((1 - a).sqrt()) * noise.detach()) / at(a.sqrt())
    apart = at(of_data) * (x_0 - latents)  # of the two means; their shares of x_t are the same
    v = (variance.float() + 1) / 2
    log_variance = v * at(beta.log()) + (1 - v) * at(tilde.log())
    log_ratio = log_variance - at(tilde.log())
    kl = 0.5 * (log_ratio - 1 + (-log_ratio).exp() + apart.square() * (-log_variance).exp())
    return kl.mean((1, 2, 3)) / math.log(2)
