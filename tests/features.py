"""Features in .npy files, for tests of `cka`."""

import numpy as np


def save(path, array, version=None):
    """Save an array as .npy, in a folder that is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)
    return path


def random_features(samples, width, seed=0, mean=3.0):
    """Features that are correlated, and not centred."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(samples, width)) @ random.normal(size=(width, width))
    return mixed + mean * random.normal(size=width)


def cka_by_definition(first, second):
    """‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features, in float64."""
    x, y = (one.astype(np.float64) - one.astype(np.float64).mean(0) for one in (first, second))
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
