"""A reference implementation of the disentangling recogniser in NumPy float64, from the papers' formulas; simple rather than fast."""

from __future__ import annotations

import numpy as np

#: Ioffe and Szegedy 2015, Figure 5, copied from the paper independently of the code: 1x1, 3x3 reduce, 3x3, double reduce, double, pool.
TABLE = {
    "3a": (64, 64, 64, 64, 96, 32),
    "3b": (64, 64, 96, 64, 96, 64),
    "3c": (0, 128, 160, 64, 96, None),
    "4a": (224, 64, 96, 96, 128, 128),
    "4b": (192, 96, 128, 96, 128, 128),
    "4c": (160, 128, 160, 128, 160, 128),
    "4d": (96, 128, 192, 160, 192, 128),
    "4e": (0, 128, 192, 192, 256, None),
    "5a": (352, 192, 320, 160, 224, 128),
    "5b": (352, 192, 320, 192, 224, 128),
}


def cost_volume(before, after, window):
    """C_t of section 3.3: cosines `[K, 2D+1, 2D+1, H, W]` of features `[K, C, H, W]`, and which of them are inside the frame."""
    lengths = [np.sqrt((x**2).sum(1) + 1e-6) for x in (before, after)]
    height, width = before.shape[-2:]
    volume = np.zeros((len(before), 2 * window + 1, 2 * window + 1, height, width))
    inside = np.zeros(volume.shape[1:], dtype=bool)
    for di in range(-window, window + 1):
        for dj in range(-window, window + 1):
            for i in range(height):
                for j in range(width):
                    if 0 <= i + di < height and 0 <= j + dj < width:
                        dot = (before[:, :, i, j] * after[:, :, i + di, j + dj]).sum(1)
                        cosine = dot / (lengths[0][:, i, j] * lengths[1][:, i + di, j + dj])
                        volume[:, di + window, dj + window, i, j] = cosine
                        inside[di + window, dj + window, i, j] = True
    return volume, inside


def displacement(before, after, window, temperature):
    """Equations 1 and 2, with both marginals written out: `[K, 2, H, W]`."""
    volume, inside = cost_volume(before, after, window)
    weight = np.exp((volume - volume.max((1, 2), keepdims=True)) / temperature) * inside
    total = weight.sum((1, 2))
    rho_y, rho_x = weight.sum(2) / total[:, None], weight.sum(1) / total[:, None]
    steps = np.arange(-window, window + 1)[:, None, None]
    return np.stack([(rho_y * steps).sum(1), (rho_x * steps).sum(1)], 1)


def warp(features, moved):
    """W(F_t, V_t) of section 3.4: at p, bilinear interpolation of the four cells around p - V(p), those outside the frame zero."""
    out = np.zeros_like(features)
    height, width = features.shape[-2:]
    for k in range(len(features)):
        for i in range(height):
            for j in range(width):
                y, x = i - moved[k, 0, i, j], j - moved[k, 1, i, j]
                top, left = int(np.floor(y)), int(np.floor(x))
                for row in (top, top + 1):
                    for column in (left, left + 1):
                        if 0 <= row < height and 0 <= column < width:
                            out[k, :, i, j] += (1 - abs(y - row)) * (1 - abs(x - column)) * features[k, :, row, column]
    return out


def pooled_in_time(x, frames):
    """The maximum over each pair of neighbouring frames `[K * frames, C, H, W]`; a last one without a neighbour is kept."""
    clips = x.reshape(-1, frames, *x.shape[1:])
    out = [clips[:, t : t + 2].max(1) for t in range(0, frames, 2)]
    return np.stack(out, 1).reshape(-1, *x.shape[1:]), len(out)


def windows(x, stride, margin):
    """The nine values under each 3x3 window that begins in the frame or its margin, NaN outside the frame."""
    rows, columns = (-(-x.shape[2] // stride), -(-x.shape[3] // stride))
    x = np.pad(x, ((0, 0), (0, 0), (margin, 3), (margin, 3)), constant_values=np.nan)
    ends = (stride * (rows - 1) + 1, stride * (columns - 1) + 1)
    return np.stack([x[:, :, i : i + ends[0] : stride, j : j + ends[1] : stride] for i in range(3) for j in range(3)])


def halved(x):
    """Maximum over 3x3, stride 2."""
    return np.nanmax(windows(x, 2, 0), 0)


def body(x, state, prefix, plain, frames=None):
    """BN-Inception from pool1 to 5b, `[K, 64, H, W]` to `[K, D]`; with `frames`, frames are pooled after pool2, 3c and 4e.

    `state` holds float64 arrays, `plain` the shared reference with conv2d and batch_norm.
    """

    def unit(x, name, stride=1):
        weight = state[f"{name}.conv.weight"]
        x = plain.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return np.maximum(plain.batch_norm(x, state, f"{name}.norm"), 0)

    def module(x, place, row):
        one, pooled = row[0], row[5]
        stride = 1 if pooled else 2
        paths, number = [], 0
        if one:
            paths.append(unit(x, f"{place}.paths.0"))
            number = 1
        three, double, last = (f"{place}.paths.{number + index}" for index in range(3))
        paths.append(unit(unit(x, f"{three}.0"), f"{three}.1", stride))
        paths.append(unit(unit(unit(x, f"{double}.0"), f"{double}.1"), f"{double}.2", stride))
        if pooled is None:
            paths.append(halved(x))
        else:
            around = windows(x, 1, 1)
            # The means count the margin as zeros, as Caffe's do; 5b takes the maximum.
            mixed = np.nanmax(around, 0) if place.endswith("3.1") else np.nan_to_num(around).mean(0)
            paths.append(unit(mixed, f"{last}.1"))
        return np.concatenate(paths, 1)

    x = halved(unit(unit(halved(x), f"{prefix}.0.1"), f"{prefix}.0.2"))
    for stage in "345":
        if frames:
            x, frames = pooled_in_time(x, frames)
        for number, name in enumerate(name for name in TABLE if name.startswith(stage)):
            x = module(x, f"{prefix}.{int(stage) - 2}.{number}", TABLE[name])
    return x.mean((2, 3))


def scores(
    clip, state, spec, plain, *, window, temperature, stride, branches=("appearance", "motion", "changes"), changed="warped-features"
):
    """The branches' scores `[branches, B, classes]` of uint8 clips `[B, N, m, H, W, 3]`.

    `changed` is the option `changes_input`.
    """
    frames = (clip.astype(np.float64) / 255 - np.array(spec.mean)) / np.array(spec.std)
    frames = frames.transpose(0, 1, 2, 5, 3, 4).reshape(-1, 3, *clip.shape[3:5])
    m = spec.frames_per_segment

    def first(x, name, stride):
        return np.maximum(
            plain.batch_norm(plain.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=3), state, f"{name}.norm"), 0
        )

    def pairs(x):
        segments = x.reshape(-1, m, *x.shape[1:])
        return [part.reshape(-1, *x.shape[1:]) for part in (segments[:, :-1], segments[:, 1:])]

    def measured():
        before, after = pairs(first(frames, "low", stride))
        return displacement(before, after, window, temperature)

    def moved(like):
        """The displacement maps of conv1's features, in cells of `like`."""
        maps = measured()
        (rows, columns), (height, width) = maps.shape[2:], like.shape[2:]
        return plain.bilinear(maps, height, width) * np.array([height / rows, width / columns])[:, None, None]

    vectors = []
    for name in branches:
        if name == "appearance":
            vectors.append(body(first(frames, "low", 2), state, "appearance.network.stages", plain, frames=m))
            continue
        colours = changed.endswith("rgb")
        if name == "motion":
            seen, step = measured(), 3 - stride
        else:
            before, after = pairs(frames if colours else first(frames, "low", stride))
            seen, step = after - (warp(before, moved(before)) if changed.startswith("warped") else before), 2 if colours else 3 - stride
        x = body(first(seen, f"{name}.network.conv1", step), state, f"{name}.network.body.stages", plain)
        vectors.append(x.reshape(-1, m - 1, x.shape[1]).mean(1))
    out = []
    for name, vector in zip(branches, vectors, strict=True):
        votes = vector @ state[f"{name}.head.pred.weight"].T + state[f"{name}.head.pred.bias"]
        out.append(votes.reshape(len(clip), spec.segments, -1).mean(1))
    return np.stack(out)
