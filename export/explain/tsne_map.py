"""Map videos to the plane by their features with t-SNE, as in STM's Fig. 7, and measure how well classes separate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: Fewest videos of a map: fewer leave t-SNE no neighbourhoods.
MIN_VIDEOS = 10
#: Components that PCA keeps before t-SNE: the rest is mostly noise, and distances are computed faster.
_COMPONENTS = 50
#: Nearest videos in `same_class_share`.
NEIGHBOURS = 10


def sample_evenly(labels: NDArray[np.int64], *, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Choose videos at random, equally many of each class as far as there are.

    Args:
        labels: `[V]`, classes.
        most: Videos to choose, at most.
        seed: Seed of the choice.

    Returns:
        Their indices, ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    # Number the videos of each class at random; take all those numbered 0, then 1, and so on.
    numbers = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        numbers[members] = np.arange(len(members))
    return np.sort(order[np.argsort(numbers[order], kind="stable")][:most])


def place_in_plane(features: NDArray[np.floating], *, seed: int = 0) -> NDArray[np.float64]:
    """Map features to the plane by t-SNE (van der Maaten and Hinton, 2008); deterministic.

    Args:
        features: `[V, D]`, V at least `MIN_VIDEOS`.
        seed: Seed of t-SNE.

    Returns:
        `[V, 2]`, centred, from -1 to 1.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    values = np.asarray(features, np.float64)
    varied = float(values.std(0).max()) > 0
    # Sums over several threads differ in their last digits from run to run, which t-SNE amplifies.
    with threadpool_limits(1):
        if varied and values.shape[1] > _COMPONENTS < len(values):
            values = PCA(_COMPONENTS, svd_solver="full").fit_transform(values)
        # Initialisation by the main components keeps more of the global structure.
        init = "pca" if varied and values.shape[1] > 1 else "random"
        perplexity = min(30.0, (len(values) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init=init, random_state=seed, n_jobs=1).fit_transform(values)
    places = np.asarray(places, np.float64) - (places.max(0) + places.min(0)) / 2
    return places / max(float(np.abs(places).max()), 1e-12)


def same_class_share(features: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the share of each video's `NEIGHBOURS` nearest others that are of its class, averaged over all videos.

    Distances are those of the features, not of the map. Features without information about the class give `chance_share`.

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


def chance_share(labels: NDArray[np.int64]) -> float:
    """Return what `same_class_share` is on average for features without information about the class."""
    counts = np.unique(labels, return_counts=True)[1]
    return float((counts * (counts - 1)).sum() / max(1, len(labels) * (len(labels) - 1)))
