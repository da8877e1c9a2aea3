"""The report: right about the run, safe against what a model may say, self-contained, honest about what is missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from raylign.conf.errors import UserError
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.pages.numbers import aligned, percent, short, tick_labels, ticks
from raylign.pages.svg import Band, line_chart
from raylign.records.metrics_log import MetricHistory, MetricRow, MetricsLog
from raylign.records.redaction import Redactor
from raylign.records.report import write_report
from raylign.records.report.facts import read_answers
from raylign.records.report.panels import time_panel
from raylign.records.run_folder import RunFolder
from raylign.records.summary import RunSummary

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} \u202etxet \u2028 </style></main>"
PLAIN = [
    (
        "Why is the sky blue?",
        "Great question! There are many reasons, and before I answer",
        "Air scatters blue light most.",
    ),
    (
        "What is tea?",
        "Tea is, as you may know, a beverage that is really very popular",
        "An infusion of leaves in hot water.",
    ),
    (
        "How do I boil an egg?",
        "Sure! I'd be happy to help you with that. First of all, you",
        "Seven minutes in boiling water.",
    ),
]


def ppo_metrics(step: int, num_steps: int, rng: np.random.Generator) -> dict[str, float]:
    """A step of a run that learns: what the online loop logs, with believable shapes and noise."""
    done = step / num_steps
    rise = 1 - math.exp(-3 * done)
    noise = rng.normal(0, 1, 12)
    generation, scoring, updates = 2.6 + 0.2 * noise[0], 1.4 + 0.1 * noise[1], 4.8 + 0.3 * noise[2]
    return {
        "reward/mean": -0.4 + 1.9 * rise + 0.12 * noise[3],
        "reward/std": 0.8 - 0.2 * rise,
        "reward/taste": -1.26 + 1.5 * rise + 0.1 * noise[4],
        "reward/failed": float(step == 7),
        "policy/kl": 0.0 if step == 1 else 3.1 * rise + 0.15 * abs(noise[5]),
        "policy/approx_kl": 0.004 + 0.002 * abs(noise[6]),
        "policy/entropy": 2.1 - 0.5 * rise + 0.04 * noise[7],
        "policy/loss": 0.01 * noise[8],
        "policy/clip_fraction": 0.09 + 0.02 * noise[9],
        "policy/grad_norm": 1.4 + 0.4 * abs(noise[10]),
        "critic/explained_variance": 0.75 * rise - 0.1 * (step < 4) + 0.04 * noise[11],
        "critic/loss": 0.9 * (1 - 0.8 * rise),
        "rollout/response_length": 52 - 24 * rise + noise[0],
        "rollout/truncated_ratio": 0.42 - 0.38 * rise,
        "rollout/logprob_gap": 3e-6 + 2e-6 * abs(noise[1]),
        "rollout/logprob_gap_max": 3e-5 + 2e-5 * abs(noise[1]),
        "rollout/workers": 2.0,
        "sync/seconds": 1.1,
        "sync/bytes": 538e6,
        "sync/verified": 2.0,
        "sync/canary_gap": 4e-5,
        "time/generation": generation,
        "time/scoring": scoring,
        "time/reward": scoring,
        "time/advantages": 0.1,
        "time/updates": updates,
        "time/sync": 1.1,
        "time/step": generation + scoring + updates + 1.6,
        "ledger/trained": 32.0 * step,
        "data/masks_checked": 32.0 * step,
    }


def make_run(root: Path, *, num_steps: int = 40, answers: int = 12, summary: Mapping[str, float] | None = None) -> Path:
    """A run folder such as a finished PPO demo leaves; everything by the product's own writers."""
    rng = np.random.default_rng(0)
    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), name="demo", num_steps=num_steps)
    config.policy.model = "models/SmolLM2-135M-Instruct"
    config.evaluation.gold = "taste"
    with RunFolder.open(root, "demo", resume=False) as folder:
        folder.write_config(
            config, ["+experiment=demo", "rollout.temperature=0.7", f"data.train={HOSTILE}"], Redactor()
        )
        folder.write_manifest(["raylign", "train"], {}, Redactor())
        log = MetricsLog(folder.metrics, keep_to_step=-1)
        log.append(0, {"eval/held_out/reward": -0.3, "eval/held_out/taste": -1.2, "eval/held_out/fluency": -1.31})
        for step in range(1, num_steps + 1):
            log.append(step, ppo_metrics(step, num_steps, rng))
        log.append(num_steps, {"eval/held_out/reward": 1.4, "eval/held_out/taste": 0.21, "eval/held_out/fluency": -1.4})
        log.close()
        texts = [PLAIN[i % len(PLAIN)] for i in range(answers - 1)]
        texts.insert(1, (HOSTILE, HOSTILE, "x" * 400 + HOSTILE))
        rows = [
            {
                "prompt": prompt,
                "before": before,
                "after": after,
                "gold_before": -1.2 + 0.1 * i,
                "gold_after": -1.2 + 0.3 * i,
                "reward_before": -0.2,
                "reward_after": 1.1,
                "fluency_before": -1.3,
                "fluency_after": None if i == 2 else -1.4,
            }
            for i, (prompt, before, after) in enumerate(texts)
        ]
        folder.answers.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        (folder.export / "step-9").mkdir()
        (folder.export / f"step-{num_steps}").mkdir()
        figures: dict[str, float] = {
            "preference_vs_start": 0.84,
            "preference_low": 0.73,
            "preference_high": 0.91,
            "gold_score_before": -1.2,
            "gold_score_after": 0.21,
            "reward_before": -0.3,
            "reward_after": 1.4,
            "kl_final": 3.2,
            "fluency_before": -1.31,
            "fluency_after": -1.4,
        } | dict(summary or {})
        folder.write_summary(
            RunSummary(
                algorithm="ppo",
                policy_start="SmolLM2-135M-Instruct",
                steps=num_steps,
                seconds_total=412.0,
                preference_comparisons=64,
                extra={"answer_tokens_after": 28.0},
                **figures,
            )
        )
    return root / "demo"


class Page(HTMLParser):
    """What a browser would see: tags, attributes and visible text, with unclosed tags counted."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()
        self.text += " " if tag in {"td", "th", "p", "h1"} else ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def report(folder: Path) -> tuple[str, Page]:
    html = write_report(folder).read_text(encoding="utf-8")
    return html, Page(html)


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    html, page = report(make_run(tmp_path))
    assert page.open == []
    assert not {"script", "img", "iframe", "object", "form", "base", "link"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("style") == 1 and page.tags.count("main") == 1
    assert page.text.count("<script>alert(1)</script>") >= 4, "prompt, both answers and an override, as text"
    assert "{{ 7*7 }}" in page.text, "a model's text is not a template"
    assert len(html) < 400_000


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    html, page = report(make_run(tmp_path))
    assert not re.findall(r"(?:https?:)?//[a-z]", html), "no address at all, not even of a namespace"
    assert not re.search(r"@import|url\s*\(|@font-face", html)
    assert not [n for n, _ in page.attributes if n in {"src", "href", "ping", "srcset", "xlink:href", "action", "data"}]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_figures_and_curves_are_those_of_the_run(tmp_path: Path) -> None:
    _, page = report(make_run(tmp_path))
    text = re.sub(r"\s+", " ", page.text)
    assert "The score taste prefers the new answers 84 % of the time." in text
    assert "95 % interval 73 % to 91 % over 64 held-out prompts; too few prompts to rely on" in text
    assert "The language was kept" in text and "no sign of a gamed reward" in text
    assert "Gold score (the score taste) score \u22121.20 0.21 +1.41" in text
    assert "80 times in 40 publications" in text
    assert "KL before the first update 0 nats a sequence" in text
    assert "Rewards that failed 1 " in text
    assert "Steps without numbers none" in text
    assert "Samples trained 1,280" in text
    assert f"num_steps=80 name=demo run_root={tmp_path}" in text
    assert "export/step-40" in text and "export/step-9'" not in text
    for heading in (
        "Reward",
        "Gold score",
        "KL to the reference",
        "Entropy",
        "Response length",
        "Truncated",
        "Clipped share",
    ):
        assert f"{heading}" in text
    assert page.tags.count("svg") >= 14
    assert "The first 10 of 12 held-out prompts" in text


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"preference_vs_start": 0.3, "preference_low": 0.2, "preference_high": 0.43}, "The new answers are worse"),
        ({"preference_vs_start": 0.55, "preference_low": 0.42, "preference_high": 0.66}, "No clear difference yet"),
        (
            {"preference_vs_start": 0.3, "preference_low": 0.2, "preference_high": 0.43},
            "Do not use this model",
        ),
        ({"fluency_after": -1.62}, "The language has suffered"),
        ({"fluency_after": -1.60}, "The language was kept"),
        ({"gold_score_after": -1.3}, "the score taste does not. Raise the KL coefficient"),
        ({"gold_score_after": math.nan}, "prefers the new answers 84"),
    ],
)
def test_verdict_says_what_speaks_against_a_run(tmp_path: Path, figures: dict[str, float], sentence: str) -> None:
    _, page = report(make_run(tmp_path, num_steps=3, summary=figures))
    assert sentence in page.text


def test_a_live_run_without_summary_answers_or_manifest_has_a_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, num_steps=5)
    for name in ("summary.json", "manifest.json", "eval/answers.jsonl", "resolved.yaml", "overrides.yaml"):
        (folder / name).unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    _, page = report(folder)
    assert "This run has not finished: 5 steps so far." in page.text
    assert "1 unreadable lines" in page.text


def test_a_gap_that_was_never_measured_is_no_passed_check(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "engine", resume=False) as folder:
        log = MetricsLog(folder.metrics, keep_to_step=-1)
        for step in (1, 2):
            log.append(step, {"reward/mean": 1.0, "rollout/logprob_gap": 0.0, "rollout/logprob_gap_max": 0.0})
        log.close()
    _, page = report(folder.path)
    assert re.search(r"·Engine against trainer, largest\s+not recorded", page.text)


def test_an_offline_run_shows_its_own_curves(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "rm", resume=False) as folder:
        log = MetricsLog(folder.metrics, keep_to_step=-1)
        for step in range(1, 5):
            log.append(step, {"train/loss": 1 / step, "train/accuracy": 0.4, "time/update": 1.0, "time/step": 1.1})
        log.close()
    _, page = report(folder.path)
    assert "Loss" in page.text and "Accuracy" in page.text and "Ends outside the usual range." in page.text
    assert "KL to the reference" not in page.text
    assert "Weights verified" not in page.text and "not recorded" not in page.text, "there is no engine to compare with"
    assert "Steps without numbers" in page.text


def test_a_folder_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("metrics.jsonl")):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_answers_may_hold_any_line_separator(tmp_path: Path) -> None:
    pair = dict.fromkeys(
        ("gold_before", "gold_after", "reward_before", "reward_after", "fluency_before", "fluency_after")
    )
    row = {"prompt": "a\u2028b\x85c", "before": "", "after": "\x1c", **pair}
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (answer,) = read_answers(path)
    assert answer.prompt == "a\u2028b\x85c"


def test_missing_numbers_break_the_line_and_are_marked() -> None:
    points = [(1, 1.0), (2, 2.0), (3, None), (4, 3.0), (5, 4.0), (6, None)]
    svg = str(line_chart(points, label="x", band=None))
    assert svg.count("<polyline") == 2 and svg.count('class="missing"') == 2
    assert "nan" not in svg and "None" not in svg
    assert "no finite value" in str(line_chart([(1, None)], label="x", band=None))


def test_constant_and_single_point_curves_have_an_axis() -> None:
    for points in ([(3, 0.0)], [(1, 5.0), (2, 5.0)], [(1, -1e-9), (2, 1e12)]):
        svg = str(line_chart(points, label="x", band=Band(0.0, None)))
        assert "nan" not in svg and "inf" not in svg and svg.count("<text") >= 3


def test_a_long_run_stays_small_and_keeps_its_extremes() -> None:
    points: list[tuple[int, float | None]] = [(n, 0.0) for n in range(100_000)]
    points[50_000] = (50_000, 9.0)
    svg = str(line_chart(points, label="x", band=None))
    assert len(svg) < 40_000 and 'class="envelope"' in svg
    heights = {float(y) for _, y in re.findall(r"([\d.]+),([\d.]+)", svg.split('class="envelope"')[1].split("/>")[0])}
    assert max(heights) - min(heights) > 50, "the spike is seen in the envelope"


def test_labels_of_the_step_axis_never_overlap() -> None:
    ranges = [(1, last) for last in (1, 2, 7, 13, 40, 99, 1000, 123_456)]
    for first, last in [*ranges, (1_000_001, 1_000_009), (10**9, 10**9 + 9)]:
        svg = str(line_chart([(first, 0.0), (last, 1.0)], label="x", band=None))
        places = [
            (float(x), len(text) * 6.4 / 2)
            for x, text in re.findall(r'class="tick" x="([\d.]+)" y="15[\d.]+" text-anchor="middle">([^<]+)<', svg)
        ]
        assert places
        for (x1, half1), (x2, half2) in pairwise(places):
            assert x1 + half1 <= x2 - half2
        assert all(x - half >= 0 and x + half <= 340 for x, half in places)


def test_numbers_for_people() -> None:
    assert [short(v) for v in (0, 1.4, -1.2, 0.000042, 12.345, 999.4, 1234.0, 53_800.0, 538e6, None, math.nan)] == [
        "0", "1.4", "\u22121.2", "4.2e\u22125", "12.3", "999", "1,234", "53.8k", "538M", "\u2013", "\u2013",
    ]  # fmt: skip
    assert aligned((-0.3, 1.4, 1.7)) == ["\u22120.30", "1.40", "1.70"] and aligned((0.0, None, 52.34)) == [
        "0.0",
        "\u2013",
        "52.3",
    ]
    assert percent(0.835) == "84\u00a0%"


def test_ticks_are_round_inside_and_distinct() -> None:
    for low, high in (
        (0, 1),
        (-1.3, 1.9),
        (3e-5, 7e-5),
        (0, 538e6),
        (51.2, 51.9),
        (-7, -6.5),
        (3.9e-5, 4.1e-5),
        (10_000, 10_050),
        (1e12, 1e12 + 1),
    ):
        values = ticks(low, high, 4)
        assert 2 <= len(values) <= 4 and all(low - 1e-12 <= v <= high + 1e-12 for v in values)
        assert len(set(tick_labels(values))) == len(values), (low, high, tick_labels(values))


def test_a_checkpoint_that_was_passed_over_is_in_the_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with RunFolder.open(tmp_path, folder.name, resume=True) as again:
        sentence = "skipped step-000008: policy/rank-0.safetensors has changed (its sha256 is not the manifest's)"
        again.write_manifest(["raylign", "train"], {}, Redactor(), resumed_step=6, skipped=(sentence,))
    _, page = report(folder)
    assert "was skipped: step-000008: policy" in page.text and "the run resumed from step 6" in page.text
    assert "Time since the last start" in page.text


def test_warnings_are_counted_at_the_top_and_no_tick_stands_beside_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path, num_steps=40)
    html, page = report(folder)
    assert "One thing speaks against this run." in page.text
    remarks = html.partition('<ul class="remarks">')[2].partition("</ul>")[0]
    assert 'class="good"' not in remarks and remarks.index('class="warning"') < remarks.index('class="plain"')
    assert "not as it should be: rewards that failed 1" in page.text


def test_alerts_of_the_run_are_told_and_come_first(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    line = {"kind": "NOT_FINITE", "step": 9, "text": "policy/loss is NaN <b>", "serious": True}
    (folder / "alerts.jsonl").write_text(json.dumps(line) + "\n")
    _, page = report(folder)
    assert "Alert at step 9, a number is not finite: policy/loss is NaN <b>" in page.text
    assert page.text.index("A number is not finite (step 9)") > page.text.index("What to do next")


@pytest.mark.parametrize(("text", "linked"), [("https://wandb.example/r/1", True), ("javascript:alert(1)", False)])
def test_only_web_addresses_become_links(tmp_path: Path, text: str, linked: bool) -> None:
    folder = make_run(tmp_path)
    (folder / "wandb_address").write_text(text + "\n")
    _, page = report(folder)
    assert [value for name, value in page.attributes if name == "href"] == ([text] if linked else [])


def test_a_chain_is_linked_by_relative_addresses(tmp_path: Path) -> None:
    folder, before = make_run(tmp_path), tmp_path / "sft"
    before.mkdir()
    (before / "report.html").write_text("")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["starts"][-1]["came_from"] = {"policy": str(before), "reward": str(tmp_path / "gone")}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    html, page = report(folder)
    assert [value for name, value in page.attributes if name == "href"] == ["../sft/report.html"]
    assert "gone" in page.text and str(tmp_path / "gone") not in html


@pytest.mark.parametrize(
    ("right", "rows", "headline", "worth"),
    [
        (0.56, 25, "Near chance: agrees with the recorded choice in 56 % of 25 held-out pairs.", "too few rows"),
        (0.56, 4000, "Agrees with the recorded choice in 56 % of 4,000 held-out pairs.", "interval 54 % to 58 %."),
        (0.30, 200, "Worse than chance: agrees", "interval 24 % to 37 %."),
    ],
)
def test_a_share_says_what_it_is_worth(tmp_path: Path, right: float, rows: int, headline: str, worth: str) -> None:
    with RunFolder.open(tmp_path, "rm", resume=False) as folder:
        log = MetricsLog(folder.metrics, keep_to_step=-1)
        log.append(1, {"train/loss": 0.5})
        log.close()
        extra = {"eval_held_out_accuracy": right, "eval_held_out_rows": float(rows)}
        folder.write_summary(RunSummary(algorithm="rm", policy_start="m", steps=1, seconds_total=1.0, extra=extra))
    _, page = report(folder.path)
    text = re.sub(r"\s+", " ", page.text)
    assert headline in text and worth in text


@pytest.mark.parametrize(
    ("generated", "waited", "parts"),
    [
        (5.0, 7.5, {"generation": "5", "rewards and reference": "2.5", "updates": "6", "other": "0.5"}),
        (9.0, 0.5, {"generation": "0.5", "updates": "6", "other": "0.5"}),  # most of it ran during the step before
    ],
)
def test_a_steps_time_is_what_it_waited_for(generated: float, waited: float, parts: dict[str, str]) -> None:
    times = {"generation": generated, "rollout_wait": waited, "updates": 6.0, "step": waited + 6.5}
    panel = time_panel(MetricHistory((MetricRow(1, {f"time/{k}": v for k, v in times.items()}),), 0))
    assert panel is not None and {part.name: part.seconds for part in panel.parts} == parts
