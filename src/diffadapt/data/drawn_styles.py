"""Styles that can be drawn: functions from pictures to pictures, so that any scene exists in any of them.

Sixteen styles with a fixed split. The embedded base is shown the first eight (`SEEN`) under their words ("a halftone
picture of a cat"); the other eight (`HELD_OUT`) never, so that learning a style can be measured against its exact
target. The order and the split are part of the format.

    drawn = draw_in_style("halftone", pictures)  # (N, 3, H, W) in [0, 1] -> the same shape and range

Every function is deterministic: the same picture gives the same drawing.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused

_LUMA = (0.299, 0.587, 0.114)


def draw_in_style(style: str, pictures: Tensor) -> Tensor:
    """Draws pictures in a style.

    Args:
        style: one of `SEEN` or `HELD_OUT`.
        pictures: (N, 3, H, W) in [0, 1].

    Returns:
        (N, 3, H, W) in [0, 1].

    Raises:
        Refused: when the style or the shape is unknown.
    """
    if style not in STYLE_FUNCTIONS:
        raise Refused(f"unknown drawn style {style!r}; known: {', '.join(STYLE_FUNCTIONS)}")
    if pictures.ndim != 4 or pictures.shape[1] != 3:
        raise Refused(f"got pictures of shape {tuple(pictures.shape)}; expected (N, 3, H, W)")
    return STYLE_FUNCTIONS[style](pictures).clamp(0, 1)


# --- the eight that the embedded base is shown -----------------------------------------------------------------------


def halftone(x: Tensor) -> Tensor:
    """Dots on a rotated grid, larger where the picture is darker, in the picture's own colours on paper."""
    u, v = _pixel_grid(x)
    angle, pitch = 0.4636, 4.0  # atan(1/2)
    a, b = u * _cos(angle) + v * _sin(angle), v * _cos(angle) - u * _sin(angle)
    dot = torch.sin(a * torch.pi / pitch) * torch.sin(b * torch.pi / pitch)  # [-1, 1], a checkerboard of dots
    ink = torch.sigmoid((dot.abs() + 0.25 - _smooth(_grey(x), 0.6)) * 12)
    return ink * _smooth(x, 0.6) * 0.85 + (1 - ink) * _colour(x, 0.96, 0.94, 0.88)


def pixel(x: Tensor) -> Tensor:
    """Blocks of four pixels, six levels a channel."""
    coarse = (F.avg_pool2d(x, 4, ceil_mode=True) * 5).round() / 5
    return F.interpolate(coarse, scale_factor=4, mode="nearest")[..., : x.shape[-2], : x.shape[-1]]


def pencil(x: Tensor) -> Tensor:
    """Grey strokes where the picture has edges, faint shading elsewhere, on white."""
    line = (_edges(x) * 3.2).clamp(max=1)
    shade = 0.18 * (1 - _smooth(_grey(x), 1.5))
    return _repeat((1 - 0.85 * line - shade).clamp(0, 1))


def poster(x: Tensor) -> Tensor:
    """Each pixel takes the nearest of six poster colours; edges are printed dark."""
    palette = torch.tensor(
        [
            [0.11, 0.13, 0.24], [0.85, 0.24, 0.20], [0.95, 0.69, 0.26],
            [0.98, 0.93, 0.79], [0.18, 0.53, 0.55], [0.45, 0.30, 0.49],
        ],
        device=x.device, dtype=x.dtype,
    )  # fmt: skip
    distance = (_smooth(x, 0.7).unsqueeze(1) - palette[None, :, :, None, None]).square().sum(2)  # (N, 6, H, W)
    line = (_edges(x) * 2.5).clamp(max=0.8)
    return palette[distance.argmin(1)].permute(0, 3, 1, 2) * (1 - line)


def watercolour(x: Tensor) -> Tensor:
    """Washes that run: flat areas from a mean of the calmest neighbourhood, paler colours, darker rims."""
    wash = _kuwahara(x, 3)
    rim = (_edges(wash) * 1.2).clamp(max=0.35)
    return (0.25 + 0.75 * wash) * (1 - rim)


def thermal(x: Tensor) -> Tensor:
    """Brightness as heat: black, violet, red, orange, yellow, white."""
    return _ramp(
        _grey(x), ((0.02, 0.01, 0.10), (0.35, 0.05, 0.50), (0.80, 0.15, 0.25), (0.98, 0.55, 0.10), (1.0, 0.98, 0.75))
    )


def sepia(x: Tensor) -> Tensor:
    """An old brown print that darkens towards its corners."""
    u, v = _pixel_grid(x)
    h, w = x.shape[-2:]
    away = ((u / w - 0.5) ** 2 + (v / h - 0.5) ** 2) * 2  # 0 in the middle, 1 in the corners
    toned = _ramp(_grey(x), ((0.16, 0.09, 0.05), (0.58, 0.42, 0.27), (0.97, 0.91, 0.78)))
    return toned * (1 - 0.55 * away)


def embossed(x: Tensor) -> Tensor:
    """A grey relief lit from the top left."""
    grey = _smooth(_grey(x), 0.7)
    lit = grey - torch.roll(grey, (1, 1), (-2, -1))
    return _repeat((0.55 + 1.6 * lit).clamp(0, 1))


# --- the eight that it never sees -------------------------------------------------------------------------------------


def chalk(x: Tensor) -> Tensor:
    """Coloured chalk lines and a dusty fill on a blackboard."""
    line = (_edges(x) * 3.5).clamp(max=1)
    dust = 0.5 + 0.5 * torch.sign(_grain(x))
    fill = 0.30 * dust * (x - 0.2).clamp(min=0)
    pale = 0.5 + 0.5 * x
    return _colour(x, 0.09, 0.12, 0.11) * (1 - line) + line * pale + fill


def mosaic(x: Tensor) -> Tensor:
    """Stained glass: cells of one saturated colour, divided by dark lead."""
    cells, lead = _cells(x)
    tint = _mean_per_cell(x, cells)
    vivid = (_grey(tint) + 1.5 * (tint - _grey(tint))).clamp(0, 1)
    return torch.where(lead, torch.full_like(x, 0.08), vivid)


def blueprint(x: Tensor) -> Tensor:
    """White lines and a faint square grid on blue paper."""
    u, v = _pixel_grid(x)
    grid = ((u % 8 < 1) | (v % 8 < 1)).to(x) * 0.14
    line = (_edges(x) * 3.0).clamp(max=1)
    return _colour(x, 0.08, 0.24, 0.52) + torch.maximum(line, grid.expand_as(line)) * 0.85


def neon(x: Tensor) -> Tensor:
    """Glowing outlines in pure colours on near black."""
    line = (_edges(x) * 3.5).clamp(max=1)
    hue = x - x.amin(1, keepdim=True)
    strongest = hue.amax(1, keepdim=True)
    pure = torch.where(strongest > 0.08, hue / (strongest + 1e-6), _colour(x, 0.2, 0.9, 1))
    return _colour(x, 0.03, 0.02, 0.07) + pure * (line + 0.8 * _smooth(line, 2.0))


def crosshatch(x: Tensor) -> Tensor:
    """Black hatching on cream in up to three directions, more where it is darker."""
    u, v = _pixel_grid(x)
    dark = 1 - _smooth(_grey(x), 0.8)
    strokes = torch.zeros_like(dark)
    for threshold, phase in ((0.25, u + v), (0.5, u - v), (0.72, u)):
        strokes = torch.maximum(strokes, ((phase % 4 < 1.5) & (dark > threshold)).to(x))
    strokes = torch.maximum(strokes, ((_edges(x) * 3 - 0.4) * 2).clamp(0, 1))
    return _colour(x, 0.97, 0.95, 0.87) * (1 - strokes) + 0.12 * strokes


def pointillist(x: Tensor) -> Tensor:
    """Round dabs of bright colour, one for each three pixels, on white canvas."""
    u, v = _pixel_grid(x)
    dab = F.interpolate(F.avg_pool2d(x, 3, ceil_mode=True), scale_factor=3, mode="nearest")
    dab = dab[..., : x.shape[-2], : x.shape[-1]]
    vivid = (_grey(dab) + 1.35 * (dab - _grey(dab))).clamp(0, 1)
    inside = (((u % 3) - 1) ** 2 + ((v % 3) - 1) ** 2 < 1.5).to(x)
    return inside * vivid + (1 - inside) * 0.95


def woodcut(x: Tensor) -> Tensor:
    """Black and white only, with carved horizontal grain in the middle tones and cut outlines."""
    u, v = _pixel_grid(x)
    grain = 0.22 * torch.sin(v * 1.9 + 1.6 * torch.sin(u * 0.18))
    local = _smooth(_grey(x), 0.6) - 0.5 * _smooth(_grey(x), 6.0) - 1.2 * _edges(x)
    return _repeat(torch.sigmoid((local + grain - 0.2) * 40))


def phosphor(x: Tensor) -> Tensor:
    """A green screen with dark scan lines."""
    _, v = _pixel_grid(x)
    lines = 0.65 + 0.35 * (v % 3 < 2).to(x)
    return _ramp(_grey(x), ((0.0, 0.06, 0.02), (0.05, 0.55, 0.18), (0.75, 1.0, 0.80))) * lines


SEEN: tuple[str, ...] = ("halftone", "pixel", "pencil", "poster", "watercolour", "thermal", "sepia", "embossed")
HELD_OUT: tuple[str, ...] = (
    "chalk", "mosaic", "blueprint", "neon", "crosshatch", "pointillist", "woodcut", "phosphor",
)  # fmt: skip
STYLE_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        halftone, pixel, pencil, poster, watercolour, thermal, sepia, embossed,
        chalk, mosaic, blueprint, neon, crosshatch, pointillist, woodcut, phosphor,
    )
}  # fmt: skip


# --- what they are made of --------------------------------------------------------------------------------------------


def _cos(angle: float) -> float:
    return float(torch.cos(torch.tensor(angle)))


def _sin(angle: float) -> float:
    return float(torch.sin(torch.tensor(angle)))


def _grey(x: Tensor) -> Tensor:
    """Brightness, (N, 1, H, W) in [0, 1]."""
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def _repeat(grey: Tensor) -> Tensor:
    return grey.expand(-1, 3, -1, -1)


def _colour(x: Tensor, red: float, green: float, blue: float) -> Tensor:
    """One colour everywhere, (1, 3, 1, 1)."""
    return torch.tensor([red, green, blue], device=x.device, dtype=x.dtype)[None, :, None, None]


def _pixel_grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Column and row of each pixel, (1, 1, 1, W) and (1, 1, H, 1)."""
    h, w = x.shape[-2:]
    u = torch.arange(w, device=x.device, dtype=x.dtype)[None, None, None, :]
    v = torch.arange(h, device=x.device, dtype=x.dtype)[None, None, :, None]
    return u, v


def _smooth(x: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of `sigma` pixels, separable, edges repeated."""
    radius = max(1, round(2.5 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-offsets.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None, :], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), kernel[:, :, :, None], groups=x.shape[1])


def _edges(x: Tensor) -> Tensor:
    """Strength of the steepest channel's gradient, (N, 1, H, W), about 1 at a step from 0 to 1."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return (dx.square() + dy.square() + 1e-12).sqrt().amax(1, keepdim=True) * 1.4


def _ramp(grey: Tensor, colours: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Maps [0, 1] onto a line through colours: (N, 1, H, W) -> (N, 3, H, W)."""
    table = torch.tensor(colours, device=grey.device, dtype=grey.dtype)
    place = grey[:, 0] * (len(colours) - 1)
    low = place.floor().clamp(0, len(colours) - 2).long()
    share = (place - low).unsqueeze(-1)
    return (table[low] * (1 - share) + table[low + 1] * share).permute(0, 3, 1, 2)


def _kuwahara(x: Tensor, radius: int) -> Tensor:
    """The mean of that quadrant around a pixel which varies least: smooths areas and keeps edges."""
    size = radius + 1
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    mean = F.avg_pool2d(padded, size, stride=1)  # mean[..., i, j] is of the window that begins at pixel (i, j)
    spread = (F.avg_pool2d(padded.square(), size, stride=1) - mean.square()).sum(1, keepdim=True)
    h, w = x.shape[-2:]
    corners = [(dy, dx) for dy in (0, radius) for dx in (0, radius)]
    means = torch.stack([mean[..., dy : dy + h, dx : dx + w] for dy, dx in corners])
    spreads = torch.stack([spread[..., dy : dy + h, dx : dx + w] for dy, dx in corners])
    calmest = spreads.argmin(0, keepdim=True).expand(-1, -1, x.shape[1], -1, -1)
    return means.gather(0, calmest)[0]


def _grain(x: Tensor) -> Tensor:
    """A fixed rough pattern in [-1, 1], (1, 1, H, W)."""
    u, v = _pixel_grid(x)
    return torch.sin(u * 12.9898 + v * 78.233) * torch.cos(u * 3.7 - v * 5.1)


def _cells(x: Tensor) -> tuple[Tensor, Tensor]:
    """Voronoi cells around a jittered lattice of 6 pixels: cell of each pixel (H, W), and where lead runs (H, W)."""
    h, w = x.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(-1, h // 6 + 2), torch.arange(-1, w // 6 + 2), indexing="ij")
    jitter = torch.sin(rows * 12.9898 + columns * 78.233) * 43758.5453
    jitter_x, jitter_y = (jitter % 1.0) * 4 - 2, ((jitter * 1.7) % 1.0) * 4 - 2
    centre_x, centre_y = (columns * 6 + 3 + jitter_x).flatten(), (rows * 6 + 3 + jitter_y).flatten()
    v, u = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    distance = ((u[..., None] - centre_x).square() + (v[..., None] - centre_y).square()).sqrt()  # (H, W, cells)
    nearest = distance.topk(2, largest=False)
    lead = (nearest.values[..., 1] - nearest.values[..., 0]) < 0.9
    return nearest.indices[..., 0].to(x.device), lead.to(x.device)


def _mean_per_cell(x: Tensor, cells: Tensor) -> Tensor:
    """Every pixel replaced by the mean of its cell."""
    flat, index = x.flatten(2), cells.flatten()
    count = torch.bincount(index).clamp(min=1).to(x)
    sums = torch.zeros(*flat.shape[:2], len(count), device=x.device, dtype=x.dtype).index_add_(2, index, flat)
    return (sums / count)[:, :, index].view_as(x)
