"""The names of all rules, and what each means in a sentence. Nothing is dropped under another name."""

from __future__ import annotations

from enum import Enum


class Stage(Enum):
    """Where in the build a rule works."""

    READING = "reading"
    CLEANING = "cleaning"
    SPLITTING = "splitting"
    SIGNALS = "signals"
    ROWS = "rows"


DROP_RULES: dict[str, tuple[Stage, str]] = {
    "forgotten": (Stage.READING, "A person asked for it to be forgotten."),
    "no_consent": (Stage.CLEANING, "The person did not agree to training."),
    "no_question": (Stage.CLEANING, "The conversation holds no question, or ends with an answer."),
    "empty_answer": (Stage.CLEANING, "An answer is empty."),
    "no_verdict": (Stage.CLEANING, "The event says nothing: no choice, thumb, rating or correction."),
    "second_thought": (
        Stage.CLEANING,
        "The same person judged the same answer otherwise later; the latest word counts.",
    ),
    "duplicate_event": (Stage.CLEANING, "A repeated judgement: same person, same answer, same verdict."),
    "reviewed_wrong": (Stage.CLEANING, "Somebody who looked at it marked it as wrong."),
    "identical_answers": (Stage.CLEANING, "Both answers are the same, so a choice between them teaches nothing."),
    "empty_correction": (Stage.CLEANING, "The correction is empty."),
    "trivial_edit": (Stage.CLEANING, "The correction changes only case, spaces or punctuation."),
    "instruction_not_answer": (Stage.CLEANING, "The correction tells what to do instead of being a better answer."),
    "contaminated": (Stage.CLEANING, "The text shares a run of words with a benchmark."),
    "other_language": (Stage.CLEANING, "The question is in a language that was not asked for."),
    "ai_off": (Stage.CLEANING, "A model judged it, and settings leave models' judgements out."),
    "ai_agrees_too_little": (
        Stage.CLEANING,
        "The model that judged it is not known to agree with people enough.",
    ),
    "people_decided": (Stage.CLEANING, "A model chose between answers that people have chosen between."),
    "split_overlap": (
        Stage.SPLITTING,
        "The same or a nearly equal question belongs to another split, where it came up first.",
    ),
    "skipped_choice": (Stage.SIGNALS, "The person skipped the choice."),
    "tie_both_good": (Stage.SIGNALS, "A tie between good answers prefers neither; kept apart."),
    "tie_both_bad": (Stage.SIGNALS, "A tie between bad answers prefers neither; kept apart."),
    "rating_in_between": (Stage.SIGNALS, "The rating says neither good nor bad, and nothing to compare it with."),
    "signal_off": (Stage.SIGNALS, "Settings make nothing of this kind of event."),
    "no_majority": (Stage.ROWS, "People judged the two answers differently and no side has the votes."),
    "untrusted_judge": (Stage.ROWS, "Those who chose agree with others no more often than coins would."),
    "mixed_verdict": (Stage.ROWS, "As many people liked the answer as disliked it."),
    "contradiction": (Stage.ROWS, "Two sources of equal weight prefer opposite answers."),
    "refusal": (Stage.ROWS, "The answer is a refusal; it would teach the model to refuse."),
    "cut_off": (Stage.ROWS, "The answer was cut at the token limit; it would teach the model to stop mid-sentence."),
    "too_short": (Stage.ROWS, "The answer is too short to imitate."),
    "too_long": (Stage.ROWS, "The answer is too long to imitate."),
    "repetitive": (Stage.ROWS, "The answer repeats itself."),
    "near_duplicate": (Stage.ROWS, "Another row says the same in nearly equal words."),
    "user_cap": (Stage.ROWS, "One person's rows would have too much weight."),
    "prompt_cap": (Stage.ROWS, "One question's rows would have too much weight."),
}
"""Rule -> where it works and why, in the order in which they work."""

MAKING_RULES: dict[str, str] = {
    "choice": "A person preferred one of two answers.",
    "correction": "A person wrote what the answer should have been.",
    "comment": "A person said what is wrong with the answer.",
    "thumb_up": "A person liked the answer.",
    "thumb_down": "A person disliked the answer.",
    "rating_good": "A person rated the answer well.",
    "rating_bad": "A person rated the answer badly.",
    "rating_pair": "One answer to the question was rated clearly better than the other.",
    "thumb_pair": "One answer to the question was liked, the other disliked.",
    "down_vs_correction": "A disliked answer, against what a person wrote for the same question.",
    "in_conversation": "The person corrected the answer in the conversation and accepted the next one.",
    "in_conversation_judged": "The same, where a model, and no rule, told the correction.",
    "both_good": "A tie that was called good.",
    "both_bad": "A tie that was called bad.",
    "majority": "Several people judged the same two answers; the majority decided.",
    "judge_weighted": "Votes count by how often their judge agrees with others, or as a model's.",
    "balanced": "Weighed so that small groups count more.",
    "weight_capped": "The weight was lowered to the cap for thumbs.",
}
"""Rule -> what a row it made means."""
