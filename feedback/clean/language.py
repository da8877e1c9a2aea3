"""Which language a text is in, by its script and its commonest small words. Light, and silent when unsure."""

from __future__ import annotations

import polars as pl
from raylign.feedback.filtering import Filtered, apply_rules
from raylign.feedback.turns import user_text

_SCRIPTS = {
    "ja": r"[\u3040-\u30ff]",
    "zh": r"[\u4e00-\u9fff]",
    "ko": r"[\uac00-\ud7af]",
    "ru": r"[\u0400-\u04ff]",
    "ar": r"[\u0600-\u06ff]",
    "he": r"[\u0590-\u05ff]",
    "el": r"[\u0370-\u03ff]",
    "hi": r"[\u0900-\u097f]",
    "th": r"[\u0e00-\u0e7f]",
}
_WORDS = {
    "en": "the and is are was what how you to of in for with this that do does can i my it why which write me please",
    "de": "der die das und ist sind war was wie du zu von mit ein eine nicht ich mein kann wir auf im warum bitte den",
    "fr": "le la les et est sont quel comment vous de du des un une pas je mon pour dans qui que avec pourquoi est-ce",
    "es": "el la los las y es son qu\u00e9 c\u00f3mo de un una no mi para en que con por se como cu\u00e1l porque",
    "it": "il lo la gli e \u00e8 sono che come di un una non mio per con del della perch\u00e9 quale cosa nel",
    "pt": "o a os as e \u00e9 s\u00e3o que como de um uma n\u00e3o meu para em com por se do da qual porque voc\u00ea",
    "nl": "de het een en is zijn wat hoe je van met niet ik mijn voor in op dat waarom kan die naar",
    "pl": "i jest s\u0105 co jak w na z do nie to si\u0119 czy dla mi mo\u017cna dlaczego kt\u00f3ry o od",
}
LANGUAGES = (*_WORDS, *_SCRIPTS)


def language(text: pl.Expr) -> pl.Expr:
    """A code of LANGUAGES, or null where the text is short or like several."""
    letters = text.str.count_matches(r"\p{L}")
    script = [
        pl.when((letters >= 4) & (text.str.count_matches(signs) * 10 >= letters * 3)).then(pl.lit(code))
        for code, signs in _SCRIPTS.items()
    ]
    words = text.str.to_lowercase().str.extract_all(r"[\p{L}'\u2019-]+")
    scores = {code: words.list.eval(pl.element().is_in(common.split())).list.sum() for code, common in _WORDS.items()}
    best = pl.max_horizontal(*scores.values())
    winners = pl.sum_horizontal(*((score == best).cast(pl.Int32) for score in scores.values()))
    clear = (best >= 2) & (winners == 1)
    latin = [pl.when(clear & (score == best)).then(pl.lit(code)) for code, score in scores.items()]
    return pl.coalesce(*script, *latin)


def drop_other_languages(work: pl.DataFrame, languages: tuple[str, ...]) -> Filtered:
    """Keep questions in these languages and those of which the language is not clear."""
    asked = language(user_text(pl.col("prompt")))
    return apply_rules(work, {"other_language": asked.is_not_null() & ~asked.is_in(list(languages))})
