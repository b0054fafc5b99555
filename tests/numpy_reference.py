"""Reference implementation of the models in NumPy float64, from the papers' formulas, simple rather than fast."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class PaCase(NamedTuple):
    """Frames `[S, m, 3, H, W]` and a weight `[8, 3, 7, 7]`, both float64, on which implementations of the PA op often differ."""

    name: str
    frames: np.ndarray
    weight: np.ndarray
    eps: float
    #: Whether the frames are integers from 0 to 255, which can be cast to uint8.
    pixels: bool


def pa_cases():
    """Return the cases for every implementation of the PA op. All values fit float16; cast the inputs first and compare with those."""
    random = np.random.default_rng(7)

    def weight(size=0.1):
        return random.standard_normal((8, 3, 7, 7)) * size

    def pixels(*shape):
        return random.integers(0, 256, shape).astype(np.float64)

    one = np.full((1, 2, 3, 13, 9), 100.0)
    one[0, 1, 1, 6, 4] = 101.0
    still = np.repeat(random.standard_normal((1, 1, 3, 10, 12)), 3, axis=1)
    return [
        PaCase("random", random.standard_normal((2, 3, 3, 12, 18)), weight(), 0.01, pixels=False),
        PaCase("constant in time", still, weight(), 1e-6, pixels=False),
        PaCase("one pixel changes by one", one, weight(), 1e-3, pixels=True),
        PaCase("one pixel large", pixels(2, 3, 3, 1, 1), weight(), 1e-3, pixels=True),
        PaCase("odd sides", pixels(1, 3, 3, 7, 11), weight(), 1e-3, pixels=True),
        PaCase("one row, wider than a tile", pixels(1, 2, 3, 1, 67), weight(), 1e-3, pixels=True),
        PaCase("more than one tile, ragged", pixels(1, 2, 3, 21, 37), weight(), 1e-3, pixels=True),
        # The scale of the normalisation folded into the filters: values below float16's smallest normal number, 6.1e-5.
        PaCase("pixels with scaled filters", pixels(1, 2, 3, 9, 14), weight(2e-5), 1e-12, pixels=True),
        PaCase("large magnitude", random.standard_normal((1, 3, 3, 9, 8)) * 2e3, weight(), 1e-3, pixels=False),
    ]


def conv2d(x, weight, *, stride=1, padding=0, bias=None):
    """Convolve `[K, C, H, W]` with `[O, C, k, k]`, one filter tap at a time."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = weight.shape[-1]
    rows = (x.shape[2] - size) // stride + 1
    columns = (x.shape[3] - size) // stride + 1
    out = np.zeros((x.shape[0], weight.shape[0], rows, columns))
    for i in range(size):
        for j in range(size):
            window = x[:, :, i : i + stride * (rows - 1) + 1 : stride, j : j + stride * (columns - 1) + 1 : stride]
            out += np.einsum("kchw,oc->kohw", window, weight[:, :, i, j])
    return out if bias is None else out + bias[None, :, None, None]


def persistence(frames, weight, bias, eps, *, eps_inside=False):
    """PA as in the paper: convolve every frame (with bias), subtract, square, sum, take the root. Frames are `[..., m, C, H, W]`."""
    lead, frames = frames.shape[:-4], frames.reshape(-1, *frames.shape[-4:]).astype(np.float64)
    stacks, m = frames.shape[:2]
    features = conv2d(frames.reshape(-1, *frames.shape[2:]), weight, padding=weight.shape[-1] // 2, bias=bias)
    features = features.reshape(stacks, m, *features.shape[1:])
    maps = []
    for i in range(m - 1):
        if eps_inside:
            change = features[:, i] - features[:, i + 1] + eps
            maps.append(np.sqrt((change**2).sum(1)))
        else:
            change = features[:, i + 1] - features[:, i]
            maps.append(np.sqrt((change**2).sum(1) + eps))
    maps = np.stack(maps, 1)
    return maps.reshape(*lead, *maps.shape[1:])


def shift(x, segments, divisor=8):
    """Temporal shift, with the indices of the official description."""
    clips = x.reshape(-1, segments, *x.shape[1:])
    fold = x.shape[1] // divisor
    out = clips.copy()
    for t in range(segments):
        out[:, t, :fold] = clips[:, t + 1, :fold] if t + 1 < segments else 0
        out[:, t, fold : 2 * fold] = clips[:, t - 1, fold : 2 * fold] if t > 0 else 0
    return out.reshape(x.shape)


def causal_shift(x, segments, divisor=8):
    """Online temporal shift: the first channels come from the previous segment."""
    clips = x.reshape(-1, segments, *x.shape[1:])
    fold = x.shape[1] // divisor
    out = clips.copy()
    for t in range(segments):
        out[:, t, :fold] = clips[:, t - 1, :fold] if t > 0 else 0
    return out.reshape(x.shape)


def pooled_at(features, scale):
    """Maxima over features at distance `scale` (PAN, Eq. 11): `[B, N, D]` to `[B, scale, D]`."""
    return np.stack([features[:, start::scale].max(1) for start in range(scale)], 1)


def average_head(features, weight, bias):
    """TSN's consensus: the mean of the segments' logits."""
    return np.mean([features[:, n] @ weight.T + bias for n in range(features.shape[1])], axis=0)


def timescale_head(features, weight, bias, scales):
    """PAN's VIP, or one timescale: a separate classifier for the mean vector of each timescale, and the mean of their scores."""
    length = features.shape[2]
    scores = []
    for number, scale in enumerate(scales):
        classifier = weight[:, number * length : (number + 1) * length]
        scores.append(pooled_at(features, scale).mean(1) @ classifier.T + bias)
    return np.mean(scores, axis=0)


def vap(features, first, second, weight, bias):
    """VAP (PAN, Eq. 11 to 15); returns scores, timescale weights and pooled vectors."""
    n = features.shape[1]
    pooled = []
    scale = 1
    while scale < n:
        for start in range(scale):
            pooled.append(np.max([features[:, start + scale * q] for q in range(n // scale)], axis=0))
        scale *= 2
    v = np.stack(pooled, 1)
    z = v.mean(2)
    hidden = np.maximum(z @ first.T, 0)
    logits = hidden @ second.T
    w = np.exp(logits - logits.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    aggregate = np.einsum("bt,btd->bd", w, v)
    return aggregate @ weight.T + bias, w, v


def batch_norm(x, state, name):
    """Evaluation-mode batch norm with the weights of a state dictionary."""
    scale = state[f"{name}.weight"] / np.sqrt(state[f"{name}.running_var"] + 1e-5)
    return x * scale[:, None, None] + (state[f"{name}.bias"] - state[f"{name}.running_mean"] * scale)[:, None, None]


def max_pool(x):
    """3x3, stride 2, padding 1."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    rows, columns = (x.shape[2] - 3) // 2 + 1, (x.shape[3] - 3) // 2 + 1
    windows = [x[:, :, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


def resnet18(x, state, segments, *, shifted):
    """ResNet-18 features `[K, D]` of frames `[K, C, H, W]`; `state` holds the backbone's float64 arrays."""
    x = max_pool(np.maximum(batch_norm(conv2d(x, state["conv1.weight"], stride=2, padding=3), state, "bn1"), 0))
    for layer in range(1, 5):
        for block in range(2):
            name = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            conv1 = f"{name}.conv1.net.weight" if shifted else f"{name}.conv1.weight"
            y = shift(x, segments) if shifted else x
            y = np.maximum(batch_norm(conv2d(y, state[conv1], stride=stride, padding=1), state, f"{name}.bn1"), 0)
            y = batch_norm(conv2d(y, state[f"{name}.conv2.weight"], padding=1), state, f"{name}.bn2")
            if f"{name}.downsample.0.weight" in state:
                x = batch_norm(conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride), state, f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x.mean((2, 3))


def pan_lite_r18(clip, state, spec):
    """Scores of PAN-Lite over ResNet-18 for uint8 clips `[B, N, m, H, W, 3]`, normalising every frame as the papers do."""
    frames = (clip.astype(np.float64) / 255 - np.array(spec.mean)) / np.array(spec.std)
    frames = frames.transpose(0, 1, 2, 5, 3, 4)
    stacks = frames.reshape(-1, *frames.shape[2:])
    maps = persistence(stacks, state["persistence.weight"], state["persistence.bias"], 1e-12)
    seen = np.concatenate([stacks[:, 0], maps], 1)
    backbone = {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
    features = resnet18(seen, backbone, spec.segments, shifted=True).reshape(clip.shape[0], spec.segments, -1)
    head = [state[f"head.{name}"] for name in ("TES.0.weight", "TES.2.weight", "pred.weight", "pred.bias")]
    return vap(features, *head)[0]


def channelwise_temporal(x, weight, segments):
    """STM's Eq. 1: `G[c, t] = sum over i = -1, 0, 1 of K[c, i] F[c, t + i]`; `x` is `[B * N, C, H, W]`, `weight` `[3, C]`."""
    clips = x.reshape(-1, segments, *x.shape[1:])
    out = np.zeros_like(clips)
    for t in range(segments):
        for i in (-1, 0, 1):
            if 0 <= t + i < segments:
                out[:, t] += weight[i + 1][:, None, None] * clips[:, t + i]
    return out.reshape(x.shape)


def channelwise_motion(x, reduce, move, restore, *, segments, stride=1):
    """STM's CMM: 1x1, Eq. 2 (`H[c, t, h, w] = F[c, t, h, w] - sum over i, j of K[c, i, j] F[c, t+1, h+i, w+j]`), zero at the end, 1x1.

    An ordinary `move`, `[c, c', 3, 3]`, sums over the channels c' as well (Table 10).
    """
    x = conv2d(x, reduce)
    clips = x.reshape(-1, segments, *x.shape[1:])
    rows, columns = x.shape[2:]
    out = np.zeros_like(clips)
    for t in range(segments - 1):
        following = np.pad(clips[:, t + 1], ((0, 0), (0, 0), (1, 1), (1, 1)))
        out[:, t] = clips[:, t]
        for i in (-1, 0, 1):
            for j in (-1, 0, 1):
                window = following[:, :, 1 + i : 1 + i + rows, 1 + j : 1 + j + columns]
                if move.shape[1] == 1:
                    out[:, t] -= move[:, 0, i + 1, j + 1][:, None, None] * window
                else:
                    out[:, t] -= np.einsum("kchw,oc->kohw", window, move[:, :, i + 1, j + 1])
    return conv2d(out.reshape(x.shape), restore, stride=stride)


def ordinary_temporal(x, weight, segments):
    """CSTM's temporal convolution over all channels (Table 10): `weight` `[C, 3C, 1, 1]`, the previous segment's channels first."""
    clips = x.reshape(-1, segments, *x.shape[1:])
    channels = x.shape[1]
    out = np.zeros_like(clips)
    for t in range(segments):
        for i in (-1, 0, 1):
            if 0 <= t + i < segments:
                kernel = weight[:, (i + 1) * channels : (i + 2) * channels, 0, 0]
                out[:, t] += np.einsum("kchw,oc->kohw", clips[:, t + i], kernel)
    return out.reshape(x.shape)


def spatiotemporal_motion(x, state, name, segments, stride=1):
    """CSTM + CMM with the weights of a state dictionary; either part may be missing (Tables 6 and 10)."""
    temporal, spatial = x, state[f"{name}.spatial.weight"]
    if f"{name}.temporal.weight" in state:
        temporal = channelwise_temporal(x, state[f"{name}.temporal.weight"], segments)
    if f"{name}.temporal.mix.weight" in state:
        temporal = ordinary_temporal(x, state[f"{name}.temporal.mix.weight"], segments)
    if spatial.shape[1] == 1:  # depthwise
        each = [conv2d(temporal[:, c : c + 1], spatial[c : c + 1], stride=stride, padding=1) for c in range(x.shape[1])]
        appearance = np.concatenate(each, 1)
    else:
        appearance = conv2d(temporal, spatial, stride=stride, padding=1)
    if f"{name}.motion.reduce.weight" not in state:
        return appearance
    reduce, move, restore = (state[f"{name}.motion.{part}.weight"] for part in ("reduce", "move", "restore"))
    return appearance + channelwise_motion(x, reduce, move, restore, segments=segments, stride=stride)


def stm_block(x, state, segments, *, stride):
    """STM's Fig. 3 as a bottleneck: 1x1, CSTM + CMM, 1x1, the shortcut; each but the last followed by batch norm and ReLU."""
    y = np.maximum(batch_norm(conv2d(x, state["conv1.weight"]), state, "bn1"), 0)
    y = np.maximum(batch_norm(spatiotemporal_motion(y, state, "conv2", segments, stride), state, "bn2"), 0)
    y = batch_norm(conv2d(y, state["conv3.weight"]), state, "bn3")
    if "downsample.0.weight" in state:
        x = batch_norm(conv2d(x, state["downsample.0.weight"], stride=stride), state, "downsample.1")
    return np.maximum(x + y, 0)


def stm_basic_block(x, state, segments, *, stride):
    """STM's block in ResNet-18 and -34: 3x3, CSTM + CMM, the shortcut."""
    y = np.maximum(batch_norm(conv2d(x, state["conv1.weight"], stride=stride, padding=1), state, "bn1"), 0)
    y = batch_norm(spatiotemporal_motion(y, state, "conv2", segments), state, "bn2")
    if "downsample.0.weight" in state:
        x = batch_norm(conv2d(x, state["downsample.0.weight"], stride=stride), state, "downsample.1")
    return np.maximum(x + y, 0)


def cross_entropy(scores, labels):
    """Mean over the batch of -log softmax at the label."""
    shifted = scores - scores.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -np.mean([logs[n, label] for n, label in enumerate(labels)])


def twins_correlation(a, b):
    """STM's Eq. 8, element by element: two `[B, classes]` to `[classes, classes]`."""
    matrix = np.zeros((a.shape[1], b.shape[1]))
    for i in range(a.shape[1]):
        for j in range(b.shape[1]):
            matrix[i, j] = sum(a[n, i] * b[n, j] for n in range(len(a)))
            matrix[i, j] /= np.sqrt(sum(a[:, i] ** 2)) * np.sqrt(sum(b[:, j] ** 2))
    return matrix


def twins_loss(a, b, labels_a, labels_b, *, weight, beta):
    """STM's Eq. 9 and 10."""
    matrix = twins_correlation(a, b)
    same = sum((1 - matrix[i, i]) ** 2 for i in range(len(matrix)))
    others = sum(matrix[i, j] ** 2 for i in range(len(matrix)) for j in range(len(matrix)) if i != j)
    return (cross_entropy(a, labels_a) + cross_entropy(b, labels_b)) / 2 + weight * (same + beta * others)


def gelu(x):
    """GELU: x times the normal distribution function of x."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def bilinear(x, height, width):
    """Upsample `[K, C, h, w]` bilinearly with half-pixel centres, repeating the edge."""

    def weights(size, old):
        position = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
        low = np.minimum(position.astype(int), old - 1)
        table = np.zeros((size, old))
        np.add.at(table, (np.arange(size), low), 1 - (position - low))
        np.add.at(table, (np.arange(size), np.minimum(low + 1, old - 1)), position - low)
        return table

    return np.einsum("yi,kcij,xj->kcyx", weights(height, x.shape[2]), x, weights(width, x.shape[3]))


def temporal_projection(x, state, subspace, *, stride=8):
    """PWTP's residual (Dynamic Appearance, Eq. 1 to 5) of frames `[K, T, 3, H, W]`, with the matrix inverse of Eq. 1."""
    stacks, frames, _, height, width = x.shape
    weight = state["describe.weight"]
    described = conv2d(x.reshape(-1, *x.shape[2:]), weight, stride=stride, padding=weight.shape[-1] // 2, bias=state["describe.bias"])
    described = described.reshape(stacks, frames, *described.shape[1:])
    u = np.stack([(described[:, i] * described[:, j]).mean(1) for i in range(frames) for j in range(i + 1, frames)], 1)

    def connected(y, name):
        return np.einsum("kihw,oi->kohw", y, state[f"{name}.weight"][:, :, 0, 0]) + state[f"{name}.bias"][:, None, None]

    hidden = gelu(connected(u, "mlp.0"))
    layer = 2
    while f"mlp.{layer}.norm.weight" in state:
        inner = gelu(connected(batch_norm(hidden, state, f"mlp.{layer}.norm"), f"mlp.{layer}.reduce"))
        hidden = hidden + gelu(connected(inner, f"mlp.{layer}.restore"))
        layer += 1
    spanning = bilinear(connected(hidden, f"mlp.{layer}"), height, width).reshape(stacks, frames, subspace, height, width)
    a = spanning.transpose(0, 3, 4, 1, 2)
    pixels = x.transpose(0, 3, 4, 1, 2)
    static = a @ np.linalg.inv(a.swapaxes(-1, -2) @ a) @ a.swapaxes(-1, -2) @ pixels
    return (pixels - static).transpose(0, 3, 4, 1, 2)
