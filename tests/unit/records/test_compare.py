"""The comparison of runs: figures in the right column, only settings that differ, no conclusion beyond the data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from raylign.conf.errors import UserError
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.records.metrics_log import MetricsLog
from raylign.records.redaction import Redactor
from raylign.records.report.compare import write_comparison
from raylign.records.run_folder import RunFolder
from raylign.records.summary import RunSummary

from tests.unit.records.test_report import Page


def make_run(root: Path, name: str, *, lr: float, won: tuple[float, float, float], gold: str = "taste") -> Path:
    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), name=name)
    config.policy.optim.lr = lr
    config.policy.model = str(root / "base")
    config.evaluation.gold = gold
    config.critic.optim.lr = lr  # no critic ran, so this is no difference
    config.reward.clip = 1e4 * lr
    with RunFolder.open(root, name, resume=False) as folder:
        folder.write_config(config, [], Redactor())
        log = MetricsLog(folder.metrics, keep_to_step=-1)
        for step in range(1, 6):
            log.append(step, {"reward/mean": lr * step * 1e4, "policy/kl": 0.1 * step, "time/step": 2.0})
        log.close()
        share, low, high = won
        folder.write_summary(
            RunSummary(
                algorithm="ppo", policy_start="base", steps=5, seconds_total=9.0, kl_final=0.5 + lr,
                preference_vs_start=share, preference_low=low, preference_high=high, preference_comparisons=64,
            )
        )  # fmt: skip
    return root / name


def compare(folders: list[Path], to: Path) -> tuple[str, Page]:
    html = write_comparison(folders, to).read_text(encoding="utf-8")
    page = Page(html)
    return re.sub(r"\s+", " ", page.text), page


def test_figures_settings_and_curves_stand_in_the_order_given(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a", lr=1e-4, won=(0.55, 0.43, 0.66))
    b = make_run(tmp_path, "b-run", lr=2e-4, won=(0.84, 0.73, 0.91))
    text, page = compare([b, a], tmp_path / "out.html")
    assert "b-run is preferred most to its start model, beyond its interval." in text
    assert re.search(r"Preferred to its start share\s*84 %\s*73 % to 91 % \(64 prompts\)\s*55 %", text)
    assert re.search(r"policy.optim.lr\s+0.0002\s+0.0001", text)
    assert "critic.optim.lr" not in text and re.search(r"reward.clip\s+2.0\s+1.0", text)
    assert "algorithm.name" not in text and str(tmp_path) not in text, "only what differs, and no path of this machine"
    assert page.open == [] and page.tags.count("svg") == 2
    assert not [n for n, _ in page.attributes if n in {"src", "href"} or n.startswith("on")]


@pytest.mark.parametrize(
    ("second", "gold", "sentence"),
    [
        ((0.78, 0.66, 0.86), "taste", "these prompts do not decide which is better"),
        ((0.55, 0.43, 0.66), "other", "judged by different rules"),
    ],
)
def test_no_winner_where_the_data_names_none(
    tmp_path: Path, second: tuple[float, float, float], gold: str, sentence: str
) -> None:
    runs = [
        make_run(tmp_path, "a", lr=1e-4, won=(0.84, 0.73, 0.91)),
        make_run(tmp_path, "b", lr=1e-4, won=second, gold=gold),
    ]
    text, _ = compare(runs, tmp_path / "out.html")
    assert sentence in text and "is preferred most" not in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", lr=1e-4, won=(0.5, 0.4, 0.6))
    with pytest.raises(UserError, match="named twice"):
        write_comparison([run, tmp_path / "." / "a"], tmp_path / "x.html")
    with pytest.raises(UserError, match="2 to 8 runs"):
        write_comparison([run] * 9, tmp_path / "x.html")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no steps"):
        write_comparison([run, tmp_path / "empty"], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
