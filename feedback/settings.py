"""Every choice of a build with its default and meaning, by section. They live here and nowhere else.

A setting's `doc` is what `raylign feedback build --help` shows and what the data card repeats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class SplitBy(Enum):
    """Whose rows stay together; see feedback/splits.py."""

    USER = "user"  # the user where one is known, else the conversation, else its first question
    CONVERSATION = "conversation"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """What the log does not say itself."""

    scores: str = field(
        default="",
        metadata={"doc": "what named scores mean, as in {stars: {scale: [1,5], good: high}, toxic: {good: low}}"},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSettings:
    """Preferences for reward models and DPO."""

    from_choices: bool = field(default=True, metadata={"doc": "side-by-side choices become pairs"})
    from_corrections: bool = field(default=True, metadata={"doc": "a correction beats the answer it corrects"})
    from_ratings: bool = field(default=True, metadata={"doc": "the best-rated answer beats lower ones to its prompt"})
    min_rating_gap: float = field(default=0.25, metadata={"doc": "smallest rating difference that makes a pair"})
    from_thumbs: bool = field(
        default=False, metadata={"doc": "a thumbed-up answer beats a thumbed-down one to the same prompt"}
    )
    thumb_weight_cap: float = field(default=0.3, metadata={"doc": "largest weight of a pair made of thumbs alone"})
    in_conversation: bool = field(
        default=False, metadata={"doc": "the answer after 'no, I meant ...' beats the one before it"}
    )
    in_conversation_weight: float = field(default=0.2, metadata={"doc": "weight of such a pair"})
    margin_scale: float = field(default=1.0, metadata={"doc": "margin of a choice of strength 1; unknown strength: 0"})
    correction_margin: float = field(default=1.0, metadata={"doc": "margin of a correction over its original"})
    min_agreement: float = field(
        default=0.5, metadata={"doc": "share of votes the winner must exceed where several people judged two answers"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings:
    """Answers to imitate."""

    from_thumbs_up: bool = field(default=True, metadata={"doc": "thumbed-up answers, after the quality filter"})
    from_corrections: bool = field(default=True, metadata={"doc": "what people wrote instead"})
    in_conversation: bool = field(
        default=True, metadata={"doc": "the accepted answer after a correction, asked in the final words"}
    )
    from_ratings: bool = field(default=True, metadata={"doc": "answers rated at least ratings.good"})
    from_both_good: bool = field(default=False, metadata={"doc": "both answers of a tie that was called good"})
    min_chars: int = field(default=2, metadata={"doc": "shorter answers are dropped"})
    max_chars: int = field(default=20000, metadata={"doc": "longer answers are dropped"})
    min_distinct_words: float = field(
        default=0.1, metadata={"doc": "smallest share of distinct words in an answer of 50 words or more"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KtoSettings:
    """Answers with a verdict."""

    from_thumbs: bool = field(default=True, metadata={"doc": "thumbs up are desirable, thumbs down are not"})
    from_ratings: bool = field(default=True, metadata={"doc": "ratings at or beyond ratings.good and ratings.bad"})
    from_both_bad: bool = field(default=False, metadata={"doc": "both answers of a tie that was called bad"})
    from_corrections: bool = field(default=False, metadata={"doc": "corrections desirable, their originals not"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSettings:
    """Prompts for algorithm=distil, which learns from what a person wrote as the context of a teacher."""

    from_corrections: bool = field(default=True, metadata={"doc": "what people wrote instead"})
    from_comments: bool = field(
        default=False, metadata={"doc": "what people said about an answer that they disliked or rated badly"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingSettings:
    """What a rating, scaled to 0..1, says."""

    good: float = field(default=0.75, metadata={"doc": "from here on an answer is good"})
    bad: float = field(default=0.25, metadata={"doc": "up to here it is bad"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionSettings:
    """Corrections that a model finds in conversations (`raylign feedback corrections`)."""

    min_precision: float = field(
        default=0.9, metadata={"doc": "what the model's precision on labelled turns must have been; 0: anything"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSettings:
    """What is removed."""

    near_duplicates: bool = field(default=True, metadata={"doc": "remove rows that say the same in nearly equal words"})
    near_threshold: float = field(default=0.8, metadata={"doc": "Jaccard similarity of word pairs of two prompts"})
    rows_per_user: int = field(default=200, metadata={"doc": "most rows of one user in a kind; 0: no cap"})
    rows_per_prompt: int = field(default=8, metadata={"doc": "most rows of near-equal prompts in a kind; 0: no cap"})
    refusals: bool = field(default=True, metadata={"doc": "drop refusals from SFT and desirable KTO rows"})
    refusals_in_pairs: bool = field(default=False, metadata={"doc": "drop pairs whose chosen answer is a refusal"})
    trivial_edits: bool = field(default=True, metadata={"doc": "drop corrections that change case or punctuation only"})
    languages: tuple[str, ...] = field(default=(), metadata={"doc": "keep only these, as in [en,de]; empty: all"})
    benchmarks: tuple[str, ...] = field(
        default=(), metadata={"doc": "files whose texts must not occur in the data (.txt, .jsonl)"}
    )
    benchmark_ngram: int = field(default=8, metadata={"doc": "words in a row that count as an overlap"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySettings:
    """What leaves no trace."""

    redact: bool = field(default=True, metadata={"doc": "replace personal data and secrets by typed placeholders"})
    regions: tuple[str, ...] = field(
        default=(), metadata={"doc": "more countries whose phone numbers are looked for, as in [KE,VN]"}
    )
    names_model: str = field(
        default="", metadata={"doc": "folder of a token-classification model for names and addresses; empty: off"}
    )
    names_labels: str = field(
        default="",
        metadata={"doc": "labels that are not known by name, as in {LOC: ADDRESS, LABEL_1: NAME, CITY: none}"},
    )
    user_salt: str = field(default="raylign", metadata={"doc": "hashed with raw user ids; the same for every build"})
    forgotten: str = field(default="", metadata={"doc": "a forgotten.json of another build to honour here"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """Who is held out."""

    by: SplitBy = field(default=SplitBy.USER, metadata={"doc": "whose rows stay together"})
    eval: float = field(default=0.05, metadata={"doc": "share held out for evaluation during training"})
    test: float = field(default=0.05, metadata={"doc": "share held out for the end"})
    near_threshold: float = field(
        default=0.6, metadata={"doc": "as clean.near_threshold, of two long prompts that may not stand in two splits"}
    )
    salt: str = field(default="raylign", metadata={"doc": "another salt draws other splits; keep it between exports"})


class WeightBy(Enum):
    """What votes between two answers weigh."""

    OFF = "off"  # all the same
    ANNOTATOR = "annotator"  # by how often the judge agrees with others; see feedback/trust/noise.py


class BalanceBy(Enum):
    """Whose groups are weighed."""

    OFF = "off"
    PERSONA = "persona"
    LOCALE = "locale"
    TOPIC = "topic"


class AiVotes(Enum):
    """Which judgements of models (`source: ai`) are used."""

    AS_PEOPLE = "as_people"  # all, each judge one annotator more
    WHERE_NONE = "where_none"  # choices between answers that no person has chosen between
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSettings:
    """What the trust statistics change."""

    weights: WeightBy = field(
        default=WeightBy.OFF, metadata={"doc": "annotator: votes weigh by how often their judge agrees with others"}
    )
    ai: AiVotes = field(
        default=AiVotes.AS_PEOPLE,
        metadata={"doc": "as_people, where_none (no person chose) or off: judgements of source ai"},
    )
    ai_weight: float = field(default=1.0, metadata={"doc": "what a choice of source ai counts of a person's"})
    ai_min_agreement: float = field(
        default=0.0,
        metadata={"doc": "share of people's choices that an ai judge surely agrees with (95 %)"},
    )
    balance: BalanceBy = field(
        default=BalanceBy.OFF,
        metadata={"doc": "persona, locale or topic: training rows of its small groups weigh more"},
    )
    balance_power: float = field(
        default=0.6, metadata={"doc": "0: all groups weigh the same; 1: as many rows as there are"}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """All settings of a build."""

    reading: ReadSettings = field(default_factory=ReadSettings)
    pairs: PairSettings = field(default_factory=PairSettings)
    sft: SftSettings = field(default_factory=SftSettings)
    kto: KtoSettings = field(default_factory=KtoSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    ratings: RatingSettings = field(default_factory=RatingSettings)
    corrections: CorrectionSettings = field(default_factory=CorrectionSettings)
    clean: CleanSettings = field(default_factory=CleanSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    trust: TrustSettings = field(default_factory=TrustSettings)
