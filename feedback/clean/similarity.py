"""Near-duplicate texts: MinHash over word pairs (rensa), candidates from bands, components of what is close enough.

Deterministic for a given set of texts. About 10 us a text on one core.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from raylign.feedback.filtering import of_each_row
from raylign.feedback.working import normalised
from rensa import RMinHash
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_PERMUTATIONS = 96
_ROWS_PER_BAND = 3  # 32 bands: a pair at similarity 0.6 is missed 4 times in 10,000, at 0.5 once in 70
LONG = 24  # word pairs: two texts of this length that share three fifths of them tell the same story
_CHUNK = 50_000  # pairs compared at a time
_SIGNED = 5_000  # texts signed at a time


def clusters(texts: pl.Series, threshold: float) -> np.ndarray:
    """[len(texts)] int64: the position of the first text of each one's cluster.

    Texts are near when their sets of word pairs have a Jaccard similarity of `threshold` or more to another of the
    cluster; case and punctuation do not count.
    """
    return clusters_and_stories(texts, threshold, threshold)[0]


def clusters_and_stories(texts: pl.Series, threshold: float, of_long: float) -> tuple[np.ndarray, np.ndarray]:
    """`clusters`, and the same where two texts of LONG word pairs or more are near from `of_long` on already."""
    words = pl.DataFrame({"plain": of_each_row(pl.DataFrame({"text": texts}), normalised(pl.col("text")))})
    unique = words.select("plain").unique(maintain_order=True).with_row_index("id")
    ids = words.join(unique, on="plain", how="left", maintain_order="left")["id"].to_numpy().astype(np.int64)
    plain = unique["plain"]
    pairs = _candidates(_band_keys(plain))
    chunks = [_similarity(plain, pairs[i : i + _CHUNK]) for i in range(0, len(pairs), _CHUNK)]
    alike, size = (np.concatenate([np.empty(0), *part]) for part in (list(zip(*chunks, strict=True)) or [[], []]))
    close = alike >= threshold
    told_again = close | ((alike >= of_long) & (size >= LONG))
    return _firsts(pairs[close], ids, len(plain)), _firsts(pairs[told_again], ids, len(plain))


def _firsts(pairs: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """Components of `pairs` among `count` different texts, as positions of first texts."""
    a, b = pairs.T
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1].astype(np.int64)
    first = np.full(len(ids), len(ids), dtype=np.int64)
    np.minimum.at(first, labels[ids], np.arange(len(ids)))
    return first[labels[ids]]


def word_runs(texts: pl.Series, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of `size` words, and for each the position of its text: two uint64/int64 arrays [runs].

    A text shorter than `size` words has none.
    """
    words = pl.DataFrame({"word": texts.str.split(" ")}).with_row_index("row").explode("word")
    hashes = words["word"].hash(seed=17).to_numpy()
    rows = words["row"].to_numpy().astype(np.int64)
    if len(hashes) < size:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    runs = len(hashes) - size + 1
    mixed = np.zeros(runs, np.uint64)
    for k in range(size):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[k : k + runs]
        mixed ^= mixed >> np.uint64(29)
    within = rows[:runs] == rows[size - 1 :]
    return mixed[within], rows[:runs][within]


def _band_keys(texts: pl.Series) -> np.ndarray:
    """[32, texts] uint64: each band of a text's MinHash signature as one number.

    Signatures come out of rensa as lists of Python's numbers, fifteen times the size of the keys that stay.
    """
    bands = np.zeros((_PERMUTATIONS // _ROWS_PER_BAND, len(texts)), np.uint64)
    for start in range(0, len(texts), _SIGNED):
        padded = _padded(texts.slice(start, _SIGNED))
        hashes, rows = word_runs(padded, 2)
        offsets = np.searchsorted(rows, np.arange(len(padded) + 1)).astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, _PERMUTATIONS, 1)
        signatures = np.asarray(matrix.to_rows(), dtype=np.uint32)
        for column, signed in enumerate(signatures.T):
            keys = bands[column // _ROWS_PER_BAND, start : start + len(padded)]
            np.multiply(keys ^ signed, np.uint64(0x9E3779B97F4A7C15), out=keys)
            keys ^= keys >> np.uint64(29)
    return bands


def _candidates(bands: np.ndarray) -> np.ndarray:
    """[pairs, 2] positions of texts that have a band's key in common.

    Each text is paired with the first of its bucket and with the one before it: linear, whatever the bucket's size.
    """
    count = bands.shape[1]
    if not count:
        return np.empty((0, 2), np.int64)
    found = [np.empty(0, np.int64)]
    for keys in bands:
        order = np.argsort(keys, kind="stable")
        same = keys[order[1:]] == keys[order[:-1]]
        later = order[1:][same]
        opens = np.concatenate([[True], ~same])
        first = order[np.maximum.accumulate(np.where(opens, np.arange(count), 0))][1:][same]
        found += [first * count + later, order[:-1][same] * count + later]
    pairs = np.unique(np.concatenate(found))
    return np.stack([pairs // count, pairs % count], axis=1)


def _similarity(texts: pl.Series, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[pairs] float64 each: the exact Jaccard similarity of two texts' word pairs, and the size of the smaller set."""
    rows, at = np.unique(pairs, return_inverse=True)
    hashes, owner = word_runs(_padded(texts.gather(rows)), 2)
    runs = pl.DataFrame({"row": owner, "hash": hashes}).unique()
    sizes = np.bincount(runs["row"].to_numpy(), minlength=len(rows))
    a, b = at.reshape(pairs.shape).T
    asked = pl.DataFrame({"row": a, "other": b}).with_row_index("pair")
    shared = asked.join(runs, on="row").join(runs, left_on=["other", "hash"], right_on=["row", "hash"], how="semi")
    common = np.bincount(shared["pair"].to_numpy(), minlength=len(pairs))
    return common / (sizes[a] + sizes[b] - common), np.minimum(sizes[a], sizes[b])


def _padded(texts: pl.Series) -> pl.Series:
    """With a sign at each end, so that a text of one word has word pairs too."""
    return "^ " + texts + " $"
