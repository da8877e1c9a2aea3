"""A table of feedback by request id, and the log of the requests (OpenAI chat completions or responses, or Anthropic
messages, as request and response JSON).

The table: `request_id` and any of `rating`/`thumb`/`feedback`/`score`, `correction`, `comment`, `reason`, `user_id`,
`created_at`, `choice_index` (which of several choices; from 0). JSON lines or CSV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from raylign.data.types import FinishReason, Message
from raylign.feedback.events import Event, EventKind
from raylign.feedback.importers.calls import with_tools
from raylign.feedback.importers.containers import Columns, Row
from raylign.feedback.importers.format import Companion, Context, Format, each
from raylign.feedback.importers.outcome import RowProblem
from raylign.feedback.importers.responses_api import answered, asked, is_response
from raylign.feedback.importers.score_table import LoggedValue, Verdict
from raylign.feedback.importers.turns import turns_of, unpacked
from raylign.feedback.importers.values import content_id, finish_of, number_of, seconds_between, time_of
from raylign.feedback.turns import said

_REQUEST = ("request_id", "completion_id", "response_id")
_JUDGED = ("rating", "thumb", "thumbs", "feedback", "score", "label", "vote")
_CORRECTED = ("correction", "corrected", "corrected_text", "edited", "expected")
_TIME = ("created_at", "time", "timestamp", "created", "ts")
_USER = ("user_id", "user", "end_user")


def recognises(columns: Columns) -> bool:
    """A request's id, and something said about it."""
    return any(name in columns for name in _REQUEST) and any(name in columns for name in (*_JUDGED, *_CORRECTED))


def _read(row: Row, columns: Columns, context: Context) -> list[Event]:
    request_id = _first(columns, _REQUEST)
    logged = context.look_up(request_id, "request")
    request = _object(logged.get("request"), logged)
    response = _object(logged.get("response"), logged)
    told, corrected = _logged_value(columns), _first(columns, _CORRECTED)
    if told is None and corrected is None:
        raise RowProblem("holds no judgement")
    verdict = context.scores.judge(told) if told is not None and corrected is None else Verdict()
    judged = None if told is None else told.value
    prompt, answer, finished = _exchange(request, response, columns.get("choice_index"), context)
    asked, created = time_of(_first(logged, _TIME)), time_of(_first(columns, _TIME))
    user = _first(request, _USER) or _first(logged, _USER)
    judge = _first(columns, _USER)
    own_id = columns.get("feedback_id") or columns.get("id")
    model = _text(response.get("model")) or _text(request.get("model"))
    return [
        Event(
            event_id=f"openai_log:{own_id}"
            if own_id
            else content_id("openai_log", f"{request_id}", f"{judged}", f"{corrected}", f"{created}"),
            kind=EventKind.CORRECTION if corrected is not None else verdict.kind,
            source=context.source,
            source_row=row.line,
            prompt=prompt,
            response_a=answer,
            finish_reason_a=finished,
            conversation_id=_text(_first(logged, ("conversation_id", "session_id"))),
            user_hash=context.hashed(judge if user is None else user),
            annotator_hash=context.hashed(judge) if user is not None and judge not in (None, user) else None,
            time=created,
            seconds_taken=seconds_between(asked, created),
            model_a=model,
            thumb=verdict.thumb,
            rating=verdict.rating,
            score=told.name if told is not None and corrected is None else None,
            corrected=_text(corrected),
            reasons=(reason,) if (reason := _text(_first(columns, ("reason", "category")))) else (),
            comment=_text(columns.get("comment")),
        )
    ]


def _logged_value(columns: Columns) -> LoggedValue | None:
    """The judgement, by the name of its column."""
    name = next((name for name in _JUDGED if columns.get(name) not in (None, "")), None)
    return None if name is None else LoggedValue(name, columns[name])


def _scores(columns: Columns, context: Context) -> Iterable[LoggedValue]:
    told = _logged_value(columns)
    return [] if told is None else [told]


def _exchange(
    request: Columns, response: Columns, index: object, context: Context
) -> tuple[tuple[Message, ...], str, FinishReason | None]:
    """What was asked, what was answered, and why the answer ended: of chat completions or of responses."""
    turns, answer, finished = _said(request, response, index, context)
    return with_tools(turns, unpacked(request.get("tools") or request.get("functions")), "tools"), answer, finished


def _said(
    request: Columns, response: Columns, index: object, context: Context
) -> tuple[tuple[Message, ...], str, FinishReason | None]:
    if is_response(response) and "choices" not in response:

        def earlier(key: str) -> tuple[Columns, Columns]:
            """An exchange that this one goes on from."""
            logged = context.look_up(key, "the earlier response")
            return _object(logged.get("request"), logged), _object(logged.get("response"), logged)

        answer, finished = answered(response)
        return asked(request, response, earlier), said(answer), finished
    prompt = turns_of(unpacked(request.get("messages")), "messages")
    system = unpacked(request.get("system"))  # Anthropic's requests have it beside the messages
    if system:
        prompt = (*turns_of([{"role": "system", "content": system}], "system"), *prompt)
    if isinstance(response.get("content"), list) and "choices" not in response:
        (answer,) = turns_of([{"role": "assistant", "content": response["content"]}], "content")
        return prompt, said(answer), finish_of(response.get("stop_reason"))
    choice = _answer(response, index)
    (answer,) = turns_of([choice.get("message")], "choices")
    return prompt, said(answer), finish_of(choice.get("finish_reason"))


def _answer(response: Columns, index: object) -> Columns:
    choices = unpacked(response.get("choices"))
    if not isinstance(choices, list) or not choices:
        raise RowProblem("the logged response has no `choices`")
    place = 0 if index in (None, "") else int(number_of(index, "choice_index"))
    if not 0 <= place < len(choices) or not isinstance(answer := choices[place], Mapping):
        raise RowProblem(f"`choice_index` is {place}, and the response has {len(choices)} choices")
    return answer


def _object(value: object, otherwise: Columns) -> Columns:
    """The part of a logged row, which may be JSON as text, or be spread over the row itself."""
    value = unpacked(value)
    return value if isinstance(value, Mapping) else otherwise


def _first(columns: Columns, names: Iterable[str]) -> object:
    return next((columns[name] for name in names if columns.get(name) not in (None, "")), None)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _entries(logged: Columns) -> Iterable[tuple[object, Columns]]:
    response = _object(logged.get("response"), logged)
    return [(key, logged) for key in (_first(logged, _REQUEST), logged.get("id"), response.get("id"))]


FORMAT = Format(
    name="openai_log",
    title="a feedback table by request id, with the request log (OpenAI's or Anthropic's)",
    recognises=recognises,
    parse=each(_read),
    companion=Companion("the request log (request_id, messages, choices)", _entries),
    ids_from_content=True,
    scores=_scores,
)
