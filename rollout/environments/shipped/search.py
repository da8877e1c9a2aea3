"""Search over a local folder of text files: the model looks things up, and is paid for naming what was asked."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = regex.compile(rf"[{_UNSPACED}]\p{{M}}*")  # of a script that writes no spaces between words
_WORD = regex.compile(rf"{_LETTER.pattern}|[[\p{{L}}\p{{N}}\p{{M}}_]--[{_UNSPACED}]]+", regex.V1)
_SHOWN, _SNIPPET, _LONGEST = 3, 300, 4000  # hits, characters of a hit, characters of a document that is read
_K1, _B = 1.2, 0.75  # of BM25, as Robertson and Zaragoza (2009) give them


class Index:
    """BM25 over the .txt and .md files of a folder (Robertson and Zaragoza 2009, section 3.4)."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError when the folder holds no text."""
        files = sorted(p for p in folder.rglob("*") if p.suffix in (".txt", ".md") and p.is_file())
        if not files:
            raise ValueError(f"documents={folder}: there is no .txt or .md file in this folder; give one that has them")
        self.texts = {str(p.relative_to(folder)): p.read_text(encoding="utf-8", errors="replace") for p in files}
        self._counts = {name: Counter(_terms(f"{name} {text}")) for name, text in self.texts.items()}
        self._lengths = {name: sum(counts.values()) for name, counts in self._counts.items()}
        self._mean = sum(self._lengths.values()) / len(files)
        self._holding = Counter(word for counts in self._counts.values() for word in counts)

    def best(self, query: str, most: int) -> list[str]:
        """Names of the documents with the highest scores above 0, best first."""
        terms = _terms(query)
        scores = {name: self._score(name, terms) for name in self.texts}
        ranked = sorted((name for name in scores if scores[name] > 0), key=lambda name: (-scores[name], name))
        return ranked[:most]

    def _score(self, name: str, words: list[str]) -> float:
        counts, size = self._counts[name], self._lengths[name] / self._mean
        total = 0.0
        for word in words:
            if word in counts:
                holding = self._holding[word]
                rarity = math.log(1 + (len(self.texts) - holding + 0.5) / (holding + 0.5))
                total += rarity * counts[word] * (_K1 + 1) / (counts[word] + _K1 * (1 - _B + _B * size))
        return total


class Search:
    """Documents of a folder. A row's `ground_truth` is what the final answer has to contain."""

    def __init__(self, documents: str) -> None:
        """`documents`: the folder. Raises ValueError when it holds no text."""
        self._index = _index(str(Path(documents).expanduser().resolve()))
        self._truth = ""

    def reset(self, ground_truth: str | None = None) -> None:
        """Raises ValueError for a row without a ground truth, and for one without words: every answer holds that."""
        if not _words(str(ground_truth or "")):
            raise ValueError(
                f"the row's ground_truth is {ground_truth!r}, and the answer's words are compared with it; give words"
            )
        self._truth = str(ground_truth)

    def search(self, query: str) -> str:
        """Find documents.

        Args:
            query: words to look for
        """
        names = self._index.best(query, _SHOWN)
        if not names:
            return "nothing was found"
        return "\n".join(f"{name}: {_snippet(self._index.texts[name], _terms(query))}" for name in names)

    def read(self, name: str) -> str:
        """Read a document.

        Args:
            name: its name, as search gives it
        """
        if name not in self._index.texts:
            raise ValueError(f"there is no document {name}")
        return self._index.texts[name][:_LONGEST]

    def get_reward(self, answer: str) -> float:
        """1 when the answer contains the row's ground truth, as words."""
        wanted, said = _words(self._truth), _words(answer)
        return float(any(said[i : i + len(wanted)] == wanted for i in range(len(said) - len(wanted) + 1)))


@lru_cache(maxsize=8)  # every episode of a process reads the same folder
def _index(folder: str) -> Index:
    return Index(Path(folder))


def _words(text: str) -> list[str]:
    """Words, and of a script without spaces its letters one by one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def _terms(text: str) -> list[str]:
    """What is looked for: words, and pairs of neighbouring letters where no spaces part words (as Lucene does)."""
    words = _words(text)
    pairs = [a + b for a, b in pairwise(words) if _LETTER.fullmatch(a) and _LETTER.fullmatch(b)]
    return [*words, *pairs]


def _snippet(text: str, terms: list[str]) -> str:
    """Around the first of the longest terms that is there, on one line."""
    lower = text.lower()
    at = next((lower.find(term) for term in sorted(terms, key=len, reverse=True) if term in lower), 0)
    start = max(0, at - _SNIPPET // 3)
    return " ".join(text[start : start + _SNIPPET].split())
