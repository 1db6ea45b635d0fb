"""Random numbers that are a pure function of their place: no state, no order."""

import numpy as np


def random_bits(seed: int, stream: int, n: int, *counter: int) -> np.ndarray:
    """Return n counter-based random words: the same for the same arguments, on any machine.

    Only Philox's raw output is used, which NumPy keeps stable; its distributions may change between versions.

    Args:
        seed: 0 <= seed < 2**64.
        stream: number of the independent stream, 0 <= stream < 2**64.
        n: how many words.
        counter: up to three numbers >= 0 that say which block of the stream.

    Returns:
        uint64 array (n,).
    """
    words = (0, *counter, *[0] * (3 - len(counter)))  # the first word counts the words that are drawn
    bits = np.random.Philox(
        key=np.array([seed, stream], dtype=np.uint64), counter=np.array(words, dtype=np.uint64)
    ).random_raw(n)
    return np.asarray(bits, dtype=np.uint64)
