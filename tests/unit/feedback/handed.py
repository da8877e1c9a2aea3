"""Logs in the shapes of the handed cases, and what was built of them: answers that begin with GOOD are right ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.cli import app, run_command

Json = dict[str, object]
NOON = "2026-03-01T12:00:00Z"


def question(n: int) -> str:
    return f"Question {n}: how do I reset the filter of pump number {7 * n} in building {n}?"


def good(n: int) -> str:
    return f"GOOD answer {n}: hold the button for ten seconds, then rinse the mesh of pump {7 * n}."


def bad(n: int) -> str:
    return f"BAD answer {n}: throw the pump {7 * n} away and buy a new one."


def turns(*texts: str) -> list[Json]:
    """User and assistant in turn."""
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(texts)]


@dataclass(frozen=True)
class Made:
    """What the command left."""

    folder: Path
    code: int

    @property
    def figures(self) -> Json:
        return json.loads((self.folder / "build.json").read_text())

    def rows(self, kind: str) -> list[Json]:
        files = sorted((self.folder / kind).glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def counts(self) -> tuple[int, int, int]:
        """Rows of SFT, pairs and KTO; none of them may take a wrong answer for a right one."""
        for row in self.rows("sft"):
            assert not row["messages"][-1]["content"].startswith("BAD")  # type: ignore[index]
        for row in self.rows("pairs"):
            assert not row["chosen"][-1]["content"].startswith("BAD")  # type: ignore[index]
            assert not row["rejected"][-1]["content"].startswith("GOOD")  # type: ignore[index]
        for row in self.rows("kto"):
            assert not row["completion"][-1]["content"].startswith("BAD" if row["label"] else "GOOD")  # type: ignore[index]
        sft, pairs, kto = (len(self.rows(kind)) for kind in ("sft", "pairs", "kto"))
        return sft, pairs, kto

    def reasons(self) -> str:
        """Why rows were quarantined."""
        return (self.folder / "quarantine.jsonl").read_text()


def write(path: Path, rows: Sequence[object]) -> Path:
    """JSON lines, or one JSON list where the name says so."""
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else text, encoding="utf-8")
    return path


def built(log: Path, *arguments: str, companion: Path | None = None) -> Made:
    """`raylign feedback build` of a log."""
    out = log.parent / f"{log.name}.built"
    given = ["--companion", str(companion)] if companion else []
    code = run_command(lambda: app(["feedback", "build", str(log), "--out", str(out), *given, *arguments]))
    return Made(out, code)


def langfuse(folder: Path, scores: Sequence[Json], answers: Sequence[str]) -> tuple[Path, Path]:
    """Scores on traces t1, t2, ..., and the traces."""
    traces = [
        {"id": f"t{n}", "timestamp": NOON, "name": "chat", "input": {"messages": turns(question(n))},
         "output": {"role": "assistant", "content": answer}, "sessionId": f"s{n}", "userId": f"user{n}@example.org",
         "metadata": {}, "observations": [], "scores": []}
        for n, answer in enumerate(answers, start=1)
    ]  # fmt: skip
    rows = [
        {"id": f"sc{n}", "projectId": "p1", "stringValue": None, "dataType": "NUMERIC", "source": "API",
         "traceId": f"t{n}", "observationId": None, "comment": None, "timestamp": NOON, **score}
        for n, score in enumerate(scores, start=1)
    ]  # fmt: skip
    return write(folder / "scores.jsonl", rows), write(folder / "traces.jsonl", traces)


def langsmith(folder: Path, feedback: Sequence[Json], runs: Sequence[Json]) -> tuple[Path, Path]:
    """Feedback on runs r1, r2, ..., and the runs: `inputs` and `outputs`."""
    told = [
        {"id": f"r{n}", "name": "Chat", "run_type": "chain", "start_time": NOON, "end_time": NOON, "trace_id": f"r{n}",
         "parent_run_id": None, "session_id": "p", "extra": {"metadata": {"user_id": f"cust{n}"}}, **run}
        for n, run in enumerate(runs, start=1)
    ]  # fmt: skip
    rows = [
        {"id": f"f{n}", "created_at": NOON, "run_id": f"r{n}", "trace_id": f"r{n}", "key": "user_score", "score": None,
         "value": None, "comment": None, "correction": None, "session_id": "p", "feedback_group_id": None,
         "comparative_experiment_id": None, "extra": None, "feedback_source": {"type": "api", "user_id": None}, **one}
        for n, one in enumerate(feedback, start=1)
    ]  # fmt: skip
    return write(folder / "feedback.jsonl", rows), write(folder / "runs.jsonl", told)


def run_of(n: int, answer: str, **inputs: object) -> Json:
    """A run of a chain."""
    return {"inputs": inputs or {"question": question(n)}, "outputs": {"answer": answer}}


def open_webui(n: int, answer: str, **of_question: object) -> Json:
    """A liked answer with its chat."""
    messages = {
        "m1": {"id": "m1", "parentId": None, "childrenIds": ["m2"], "role": "user", "content": question(n)}
        | of_question,
        "m2": {"id": "m2", "parentId": "m1", "childrenIds": [], "role": "assistant", "content": answer, "done": True},
    }
    chat = {"id": f"c{n}", "chat": {"history": {"messages": messages, "currentId": "m2"}}}
    return {
        "id": f"fb{n}", "user_id": f"u{n}", "type": "rating", "data": {"rating": 1, "model_id": "llama"},
        "meta": {"model_id": "llama", "message_id": "m2", "chat_id": f"c{n}"}, "snapshot": {"chat": chat},
        "created_at": 1772366460, "updated_at": 1772366470,
    }  # fmt: skip
