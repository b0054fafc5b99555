"""A map of videos in the plane: those whose features are alike lie side by side (t-SNE, as in STM's Fig. 7)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Fewest videos that a map is drawn of: t-SNE asks each for its neighbours.
LEAST_VIDEOS = 10
#: Components that features are reduced to first: most of what is left out is noise, and distances are computed the faster.
_COMPONENTS = 50
#: Nearest videos that are asked for their class.
NEIGHBOURS = 10


def sample_evenly(labels: NDArray[np.int64], *, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose at most `most` videos, as many of each class as there are, or as the others leave to it.

    Args:
        labels: `[V]`, classes.
        most: Videos to choose, at most.
        seed: Which of a class; the same seed, the same videos.

    Returns:
        Their places, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # Each video's turn within its class: all first ones, then all second ones, until there are enough.
    turns = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        turns[own] = np.arange(len(own))
    chosen = order[np.argsort(turns[order], kind="stable")][:most]
    return np.sort(chosen)


def place_in_plane(features: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float64]:
    """Place videos in the plane by t-SNE (van der Maaten and Hinton, 2008); the same features give the same places.

    Args:
        features: `[V, D]`, V at least `LEAST_VIDEOS`.
        seed: Seed of what t-SNE draws.

    Returns:
        `[V, 2]`, within a square around 0 with sides of 2.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    values = np.asarray(features, np.float64)
    spread = float(values.std(0).max())
    # Sums of several threads differ in their last digits from run to run, and t-SNE in the end in its picture.
    with threadpool_limits(1):
        if spread > 0 and values.shape[1] > _COMPONENTS < len(values):
            values = PCA(_COMPONENTS, svd_solver="full").fit_transform(values)
        # From the main components, where there are any: so the picture keeps more of how groups lie to each other.
        start = "pca" if spread > 0 and values.shape[1] > 1 else "random"
        perplexity = min(30.0, (len(values) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init=start, random_state=seed, n_jobs=1).fit_transform(values)
    places = np.asarray(places, np.float64) - (places.max(0) + places.min(0)) / 2
    return places / max(float(np.abs(places).max()), 1e-12)


def same_class_share(features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the share of each video's nearest `NEIGHBOURS` others that are of its class, over all videos.

    By the features themselves, not by the map: what the picture shows, as a number. Classes without a pattern have their share of all
    videos.

    Args:
        features: `[V, D]`, V at least 2.
        labels: `[V]`.
    """
    values = np.asarray(features, np.float64)
    squares = np.square(values).sum(1)
    distances = squares[:, None] + squares - 2 * values @ values.T
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, : min(NEIGHBOURS, len(values) - 1)]
    return float((labels[nearest] == labels[:, None]).mean())
