"""CIDEr-D (Vedantam, Zitnick and Parikh 2015, arXiv:1411.5726): agreement of an answer with its references."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

N = 4  # longest n-gram
SIGMA = 6.0  # width of the Gaussian penalty on a difference in length
SCALE = 10.0


def cider(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[float]:
    """CIDEr-D of each candidate, 0 to 10.

    TF-IDF vectors of n-grams for n = 1 to 4, document frequencies from the references of the whole set; per n the mean
    over references of the clipped cosine times exp(-(length difference)^2 / (2 sigma^2)); the mean over n times 10.
    An answer of one word has no longer n-grams, so that the most it can get is 2.5. Published tables show the mean
    over the set times 100.

    Args:
        candidates: one list of words per item.
        references: the lists of words of each item's references, at least one each.
    """
    documents = [[_ngrams(words) for words in counted] for counted in references]
    frequency = Counter(gram for counted in documents for gram in {gram for counts in counted for gram in counts})
    total = math.log(max(len(documents), 1))
    weight = {gram: total - math.log(number) for gram, number in frequency.items()}
    scores = []
    for words, counted, texts in zip(candidates, documents, references, strict=True):
        candidate = _vectors(_ngrams(words), weight, total)
        against = [_similarity(candidate, _vectors(counts, weight, total), len(words) - len(text))
                   for counts, text in zip(counted, texts, strict=True)]
        scores.append(SCALE * sum(against) / len(against))
    return scores


def _ngrams(words: Sequence[str]) -> Counter:
    return Counter(tuple(words[start:start + n]) for n in range(1, N + 1) for start in range(len(words) - n + 1))


def _vectors(counts: Counter, weight: dict, unseen: float) -> list[dict]:
    """TF-IDF weights by n; an n-gram of no reference weighs as one that occurs once."""
    vectors: list[dict] = [{} for _ in range(N)]
    for gram, number in counts.items():
        vectors[len(gram) - 1][gram] = number * weight.get(gram, unseen)
    return vectors


def _similarity(candidate: list[dict], reference: list[dict], difference: int) -> float:
    total = 0.0
    for one, other in zip(candidate, reference, strict=True):
        norms = math.sqrt(sum(v * v for v in one.values())) * math.sqrt(sum(v * v for v in other.values()))
        shared = sum(min(one[gram], value) * value for gram, value in other.items() if gram in one)
        total += shared / norms if norms else 0.0
    return total / N * math.exp(-difference**2 / (2 * SIGMA**2))
