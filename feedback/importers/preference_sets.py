"""Public preference sets of one row a judgement: SHP, AlpacaFarm, WildFeedback, OpenAI's summaries, and TRL's own rows.

Which of the shapes were checked against what is in docs/feedback-formats.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raylign.data.types import Message
from raylign.feedback.events import Choice, Event, EventKind
from raylign.feedback.importers.calls import with_tools
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Context, Format, each_whole
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.pairs import question_in
from raylign.feedback.importers.turns import split_answer, turns_of, unpacked
from raylign.feedback.importers.values import TIE, content_id, number_of
from raylign.feedback.turns import said

_ASKED = ("prompt", "question", "instruction", "query")
_SUMMARISE = "Summarize this post:\n\n"


def _is_shp(columns: Columns) -> bool:
    return {"history", "human_ref_A", "human_ref_B", "labels"} <= set(columns)


def _shp(row: Row, columns: Columns, context: Context) -> list[Event]:
    """Reddit's votes: `labels` is 1 where comment A has the better score, 0 where B has."""
    choice = _by_number(columns.get("labels"), "labels", {1: Choice.A, 0: Choice.B})
    domain = columns.get("domain")
    return [
        _pair(
            row,
            context,
            prompt=turns_of(columns.get("history"), "history"),
            answers=(_text(columns, "human_ref_A"), _text(columns, "human_ref_B")),
            choice=choice,
            about=_About(topic=domain.rpartition("_")[0] or domain if isinstance(domain, str) else None),
        )
    ]


def _is_alpaca_farm(columns: Columns) -> bool:
    return {"instruction", "output_1", "output_2", "preference"} <= set(columns)


def _alpaca_farm(row: Row, columns: Columns, context: Context) -> list[Event]:
    """`preference` is 1 or 2; the model saw the input below the instruction."""
    given = columns.get("input")
    question = _text(columns, "instruction") + (f"\n\n{given}" if isinstance(given, str) and given else "")
    choice = _by_number(columns.get("preference"), "preference", {1: Choice.A, 2: Choice.B})
    answers = (_text(columns, "output_1"), _text(columns, "output_2"))
    return [_pair(row, context, prompt=(Message("user", question),), answers=answers, choice=choice)]


def _is_summaries(columns: Columns) -> bool:
    return {"info", "summaries", "choice"} <= set(columns)


def _summaries(row: Row, columns: Columns, context: Context) -> list[Event]:
    """`choice` is the place, from 0, of the better of two summaries of a post or article."""
    info, given = unpacked(columns.get("info")), unpacked(columns.get("summaries"))
    if not isinstance(info, Mapping):
        raise RowProblem("`info` is no object")
    if isinstance(given, Mapping):  # as parquet keeps a sequence of objects
        given = [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    if not isinstance(given, list) or len(given) != 2 or not all(isinstance(one, Mapping) for one in given):
        raise RowProblem("`summaries` does not hold two summaries")
    post = info.get("post") or info.get("article")
    if not isinstance(post, str) or not post.strip():
        raise RowProblem("`info` holds neither a post nor an article")
    title = info.get("title")
    question = _SUMMARISE + (f"{title}\n\n" if isinstance(title, str) and title else "") + post
    models = [one.get("policy") if isinstance(one.get("policy"), str) else None for one in given]
    return [
        _pair(
            row,
            context,
            prompt=(Message("user", question),),
            answers=(_text(given[0], "text"), _text(given[1], "text")),
            choice=_by_number(columns.get("choice"), "choice", {0: Choice.A, 1: Choice.B}),
            about=_About((models[0], models[1]), judge=columns.get("worker"), topic=info.get("subreddit")),
        )
    ]


def _is_trl_preference(columns: Columns) -> bool:
    """With the prompt beside, or inside both conversations; strings alone without a prompt are HH-RLHF's."""
    if not {"chosen", "rejected"} <= set(columns):
        return False
    one = unpacked(columns.get("chosen"))
    return any(name in columns for name in _ASKED) or (isinstance(one, list) and bool(one))


def preference_event(row: Row, columns: Columns, context: Context) -> list[Event]:
    """TRL's preference type, also as WildFeedback has it (a message a side)."""
    (first, chosen), (second, rejected) = (_side(columns, name) for name in ("chosen", "rejected"))
    if first != second:
        raise RowProblem("`chosen` and `rejected` answer different prompts")
    first = with_tools(first, unpacked(columns.get("tools")), "tools")
    return [
        _pair(
            row,
            context,
            prompt=first,
            answers=(chosen, rejected),
            choice=Choice.A,
            about=_About(conversation=columns.get("conversation_hash"), user=columns.get("user_id")),
        )
    ]


def _side(columns: Columns, name: str) -> tuple[tuple[Message, ...], str]:
    """The prompt and the answer of one side, which may hold both."""
    given = unpacked(columns.get(name))
    asked = question_in(columns) if any(columns.get(key) for key in _ASKED) else ()
    if isinstance(given, str):
        if not asked:
            raise RowProblem("no `prompt`")
        return asked, given
    answer_turns = turns_of(given, name)
    if len(answer_turns) == 1:
        answer_turns = (*asked, *answer_turns)
    return split_answer(answer_turns, name)


def _is_trl_kto(columns: Columns) -> bool:
    return {"prompt", "completion", "label"} <= set(columns)


def kto_event(row: Row, columns: Columns, context: Context) -> list[Event]:
    """TRL's unpaired preference type: true is a good completion."""
    label = columns.get("label")
    if not isinstance(label, bool):
        label = {"true": True, "false": False}.get(f"{label}".lower())
    if label is None:
        raise RowProblem(f"`label` is `{str(columns.get('label'))[:40]}`; expected true or false")
    prompt, answer = turns_of(unpacked(columns.get("prompt")), "prompt"), unpacked(columns.get("completion"))
    if isinstance(answer, str):
        text = answer
    else:
        used, text = split_answer((*prompt, *turns_of(answer, "completion")), "completion")
        prompt = used
    prompt = with_tools(prompt, unpacked(columns.get("tools")), "tools")
    return [
        Event(
            event_id=content_id(context.source, *map(said, prompt), text, f"{label}"),
            kind=EventKind.THUMB,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=text,
            turn=sum(turn.role == "assistant" for turn in prompt),
            thumb=1 if label else -1,
        )
    ]


@dataclass(frozen=True, slots=True)
class _About:
    """What a set says beside a judgement; what is no text counts as not said."""

    models: tuple[str | None, str | None] = (None, None)
    judge: object = None
    user: object = None
    conversation: object = None
    topic: object = None


def _pair(
    row: Row,
    context: Context,
    prompt: tuple[Message, ...],
    answers: tuple[str, str],
    choice: Choice,
    about: _About = _About(),
) -> Event:
    return Event(
        event_id=content_id(context.source, *map(said, prompt), *answers, f"{about.judge}"),
        kind=EventKind.SIDE_BY_SIDE,
        source=context.source,
        source_row=row.line,
        prompt=prompt,
        response_a=answers[0],
        response_b=answers[1],
        conversation_id=about.conversation if isinstance(about.conversation, str) else None,
        turn=sum(turn.role == "assistant" for turn in prompt),
        user_hash=context.hashed(about.user),
        annotator_hash=context.hashed(about.judge),
        model_a=about.models[0],
        model_b=about.models[1],
        choice=choice,
        reasons=TIE if choice is Choice.SKIPPED else (),
        topic=about.topic if isinstance(about.topic, str) else None,
    )


def _by_number(value: object, name: str, meant: Mapping[int, Choice]) -> Choice:
    number = int(value) if isinstance(value, str) and value.strip().isdigit() else value
    choice = meant.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    if choice is None:
        raise RowProblem(f"unknown choice: `{name}` is `{str(value)[:40]}`; expected {' or '.join(map(str, meant))}")
    return choice


def _text(columns: Mapping[str, object], name: str) -> str:
    value = columns.get(name)
    if not isinstance(value, str):
        raise RowProblem(f"`{name}` holds no text")
    return value


def _is_webgpt(columns: Columns) -> bool:
    return {"question", "answer_0", "answer_1", "score_0", "score_1"} <= set(columns)


def _webgpt(row: Row, columns: Columns, context: Context) -> list[Event]:
    """WebGPT's comparisons: the answer with the higher score; what the models had looked up is not in their prompt."""
    question = unpacked(columns.get("question"))
    text = question.get("full_text") if isinstance(question, Mapping) else question
    first, second = (number_of(columns.get(name), name) for name in ("score_0", "score_1"))
    choice = Choice.SKIPPED if first == second else Choice.A if first > second else Choice.B
    answers = (_text(columns, "answer_0"), _text(columns, "answer_1"))
    return [_pair(row, context, prompt=turns_of(text, "question"), answers=answers, choice=choice)]


def _is_safe_rlhf(columns: Columns) -> bool:
    return {"prompt", "response_0", "response_1", "better_response_id"} <= set(columns)


def _safe_rlhf(row: Row, columns: Columns, context: Context) -> list[Event]:
    """PKU-SafeRLHF: `better_response_id` 0 or 1 is which one helps more; which one is safer is another question."""
    choice = _by_number(columns.get("better_response_id"), "better_response_id", {0: Choice.A, 1: Choice.B})
    answers = (_text(columns, "response_0"), _text(columns, "response_1"))
    return [_pair(row, context, prompt=turns_of(columns.get("prompt"), "prompt"), answers=answers, choice=choice)]


def _is_edit(columns: Columns) -> bool:
    return {"context", "original_response", "edited_response"} <= set(columns)


def _edit(row: Row, columns: Columns, context: Context) -> list[Event]:
    """HelpSteer3's edits: what a person made of an answer after reading feedback on it."""
    prompt, original = turns_of(unpacked(columns.get("context")), "context"), _text(columns, "original_response")
    corrected = _text(columns, "edited_response")
    comment = unpacked(columns.get("feedback"))
    domain = columns.get("domain")
    return [
        Event(
            event_id=content_id(context.source, *(turn.content for turn in prompt), original, corrected),
            kind=EventKind.CORRECTION,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=original,
            turn=sum(turn.role == "assistant" for turn in prompt),
            corrected=corrected,
            comment="\n".join(f"{part}" for part in comment) if isinstance(comment, list) else None,
            topic=domain if isinstance(domain, str) else None,
        )
    ]


def _format(name: str, title: str, recognises: Callable[[Columns], bool], read: Callable[..., list[Event]]) -> Format:
    return Format(name=name, title=title, recognises=recognises, parse=each_whole(read), ids_from_content=True)


SHP = _format("shp", "Stanford Human Preferences (SHP, SHP-2)", _is_shp, _shp)
ALPACA_FARM = _format("alpaca_farm", "AlpacaFarm preferences", _is_alpaca_farm, _alpaca_farm)
SUMMARIES = _format("summarize_from_feedback", "OpenAI's summarize comparisons", _is_summaries, _summaries)
WEBGPT = _format("webgpt", "WebGPT comparisons", _is_webgpt, _webgpt)
SAFE_RLHF = _format("safe_rlhf", "PKU-SafeRLHF preferences", _is_safe_rlhf, _safe_rlhf)
HELPSTEER3_EDIT = _format("helpsteer3_edit", "HelpSteer3 edits", _is_edit, _edit)
TRL_PREFERENCE = _format("trl_preference", "TRL preference rows, WildFeedback", _is_trl_preference, preference_event)
TRL_KTO = _format("trl_kto", "TRL unpaired preference rows", _is_trl_kto, kto_event)
