"""Files in, rows out: every form gives the same rows; what cannot be used is set aside or refused with its reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raylign.conf.errors import DataError
from raylign.conf.schema import DataConfig, Overlong
from raylign.data.loading import RawRow, item_text, read_rows
from raylign.data.preferences import PairExample, load_pairs, pair_batch
from raylign.data.prompts import load_prompts
from raylign.data.quarantine import BadRow
from raylign.data.tokenize import EncodedAnswer, EncodedText, load_tokenizer
from raylign.data.types import Message, Prompt
from transformers import PreTrainedTokenizerBase

ROWS = [{"prompt": f"What is {i} + 1?", "ground_truth": str(i + 1)} for i in range(5)]


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model_dir))


def jsonl(path: Path, rows: list[object]) -> str:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n", encoding="utf-8"
    )
    return str(path)


def columns(name: str) -> list[dict[str, object]]:
    rows = list(read_rows(name))
    assert all(isinstance(row, RawRow) for row in rows)
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    return [dict(row.columns) for row in rows if isinstance(row, RawRow)]


def test_every_form_gives_the_same_rows(tmp_path: Path):
    import datasets

    jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl(folder / "1.jsonl", ROWS[:2])
    pq.write_table(pa.Table.from_pylist(ROWS[2:]), folder / "2.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.jsonl", "b.json", "c.parquet", "folder", "saved"):
        assert columns(str(tmp_path / name)) == ROWS, name


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("gone.jsonl", None, "no such file or folder"),
        ("x.tab", "a,b", "expected a file ending in"),
        ("x.csv", "a,b,a\n1,2,3", "names the column 'a' twice"),
        ("x.csv", "", "first line is empty"),
        ("x.json", "{", "not JSON"),
        ("x.json", "{}", "must hold a list"),
        ("x.parquet", "no parquet", "not a parquet file"),
    ],
)
def test_unreadable_files_are_refused(name: str, content: str | None, reason: str, tmp_path: Path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=reason):
        list(read_rows(str(tmp_path / name)))


def test_a_folder_without_data_and_a_name_that_is_nothing_are_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no"):
        list(read_rows(str(tmp_path)))
    with pytest.raises(DataError, match="could not be loaded"):
        list(read_rows("nobody/has-this-data-set"))


def test_a_broken_line_is_a_bad_row_and_the_rest_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n\n{"prompt": \n[1]\n"text"\n{"prompt": "\xff"}\n\xef\xbb\xbf{"prompt": "b"}\n')
    read = list(read_rows(str(path)))
    assert [type(row) for row in read] == [RawRow, BadRow, BadRow, BadRow, BadRow, RawRow]
    assert [row.source for row in read] == [f"a.jsonl:{n}" for n in (1, 3, 4, 5, 6, 7)]  # the blank line is no row


def test_bad_rows_are_set_aside_with_number_and_reason(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    bad: list[object] = [
        "{broken",
        {"prompt": " "},
        {"question": "x" * 900},
        {"prompt": [{"role": "usr", "content": "x"}]},
    ]
    name = jsonl(tmp_path / "a.jsonl", [*ROWS, *bad])
    file = tmp_path / "out" / "quarantine.jsonl"
    loaded = load_prompts(name, DataConfig(max_bad_fraction=0.5), tokenizer, quarantine=file)
    assert len(loaded.prompts) == 5
    assert (loaded.report.total, loaded.report.kept, loaded.report.bad) == (9, 5, 4)
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["row"] for row in kept] == [6, 7, 8, 9]
    assert [row["reason"] for row in kept] == [
        "not a JSON object in UTF-8",
        "`prompt` is empty",
        "no column `prompt` or `messages`; the row has question",
        "a turn of `prompt` has role 'usr'; expected one of system, user, assistant, tool, developer",
    ]
    assert len(kept[2]["content"]) == 500


def test_too_many_bad_rows_refuse_the_run_with_counts_and_examples(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    name = jsonl(tmp_path / "a.jsonl", [*ROWS, {"prompt": ""}, {"prompt": ""}])
    with pytest.raises(DataError) as caught:
        load_prompts(name, DataConfig(max_bad_fraction=0.28), tokenizer)
    assert "2 of 7 rows cannot be used, more than data.max_bad_fraction=0.28" in caught.value.problems[0]
    assert caught.value.problems[1:] == ("a.jsonl:6: `prompt` is empty", "a.jsonl:7: `prompt` is empty")
    load_prompts(name, DataConfig(max_bad_fraction=0.29), tokenizer)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_empty_data_are_refused(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match="there are no rows"):
        load_prompts(str(tmp_path / "a.jsonl"), DataConfig(), tokenizer)


def test_overlong_prompts_by_policy(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    name = jsonl(tmp_path / "a.jsonl", [{"prompt": "short"}, {"prompt": "long " * 60}])
    whole = load_prompts(name, DataConfig(), tokenizer).prompts
    limit = DataConfig(max_prompt_tokens=len(whole[0].token_ids), overlong=Overlong.drop)
    dropped = load_prompts(name, limit, tokenizer)
    assert dropped.prompts == whole[:1]
    assert (dropped.report.overlong, dropped.report.dropped, dropped.report.bad) == (1, 1, 0)
    limit.overlong = Overlong.truncate_left
    cut = load_prompts(name, limit, tokenizer)
    assert cut.prompts[1].token_ids == whole[1].token_ids[-limit.max_prompt_tokens :]
    assert (cut.report.overlong, cut.report.dropped) == (1, 0)
    limit.overlong = Overlong.error
    with pytest.raises(DataError, match=r"1 of 2 rows are longer than data.max_prompt_tokens allows"):
        load_prompts(name, limit, tokenizer)
    limit.overlong, limit.max_prompt_tokens = Overlong.drop, 2
    with pytest.raises(DataError, match="no usable row is left of 2"):
        load_prompts(name, limit, tokenizer)


def test_prompt_ids_are_given_or_stable_and_always_unique(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    rows: list[object] = [{"id": 7, "prompt": "a"}, {"id": "7", "prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}]
    name = jsonl(tmp_path / "a.jsonl", rows)
    ids = [p.prompt_id for p in load_prompts(name, DataConfig(), tokenizer).prompts]
    assert ids[:2] == ["7", "7-2"]
    assert len(set(ids)) == 4
    assert ids[2].rsplit("-", 1)[0] == ids[3].rsplit("-", 1)[0]  # the same question
    assert ids == [p.prompt_id for p in load_prompts(name, DataConfig(), tokenizer).prompts]


def test_the_digest_follows_what_training_sees(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    name = jsonl(tmp_path / "a.jsonl", ROWS)
    first = load_prompts(name, DataConfig(), tokenizer).digest
    jsonl(tmp_path / "a.jsonl", [dict(row, note="ignored") for row in ROWS])
    assert load_prompts(name, DataConfig(), tokenizer).digest == first
    jsonl(tmp_path / "a.jsonl", [*ROWS[:4], dict(ROWS[4], ground_truth="7")])
    assert load_prompts(name, DataConfig(), tokenizer).digest != first
    jsonl(tmp_path / "a.jsonl", ROWS[::-1])
    assert load_prompts(name, DataConfig(), tokenizer).digest != first


def test_an_item_as_text_is_what_asdict_gives():
    answer = EncodedAnswer((1, 2, 3), 1, ((0, 1),))
    items = [
        PairExample(answer, answer, 0.5, 1.0),
        EncodedText((5, 6), (0.0, 1 / 3)),
        Prompt("id", (Message("user", "é\ud800"),), (1,), ground_truth=None),
    ]
    for item in items:
        assert item_text(item) == json.dumps(asdict(item))


@pytest.mark.slow
def test_rows_are_unpickled_without_transformers():
    """The feeder holds rows and makes no tokens: importing transformers would double its start."""
    asked = "import sys, raylign.data.row_feed; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", asked], check=False, timeout=120).returncode == 0


def test_the_answer_of_a_row_is_no_part_of_its_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    user, reply = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "SECRET"}
    name = jsonl(tmp_path / "a.jsonl", [{"messages": [user, reply]}, {"prompt": "a?", "completion": "SECRET"}])
    first, second = load_prompts(name, DataConfig(), tokenizer).prompts
    assert first.token_ids == second.token_ids
    assert "SECRET" not in tokenizer.decode(first.token_ids)


def test_pairs_become_alternating_rows_with_masks_margin_and_weight(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    rows: list[object] = [
        {"prompt": "q", "chosen": "good", "rejected": "bad one", "margin": 2, "weight": 0.5},
        {"prompt": "r", "chosen": "yes", "rejected": "no"},
    ]
    pairs = load_pairs(jsonl(tmp_path / "a.jsonl", rows), DataConfig(), tokenizer).pairs
    batch = pair_batch(pairs)
    starts = batch.tokens.cu_seqlens.tolist()
    texts = [
        tokenizer.decode(batch.tokens.input_ids[a:b][batch.tokens.response_mask[a:b]]) for a, b in pairwise(starts)
    ]
    assert texts == ["good<|im_end|>", "bad one<|im_end|>", "yes<|im_end|>", "no<|im_end|>"]
    assert batch.margin.tolist() == [2.0, 0.0]
    assert batch.weight.tolist() == [0.5, 1.0]
    both = [len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in pairs]
    prompts = [p.chosen.prompt_tokens for p in pairs]  # computed once for both sides
    assert batch.tokens.lengths.view(-1, 2).sum(1).tolist() == both
    assert [unit.tokens for unit in batch.units()] == [n - p for n, p in zip(both, prompts, strict=True)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "no column `rejected`"),
        ({"chosen": "a", "rejected": "b"}, "no column `prompt`"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "`rejected` is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": [{"role": "assistant", "content": "b"}]}, "both be text or both"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "x"}, "`margin` is 'x'"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0},
            "`weight` is 0; expected a finite number above 0",
        ),
        ({"prompt": "q", "chosen": "\ud83d", "rejected": "b"}, "`chosen` is not valid Unicode"),
        (
            {"chosen": [{"role": "user", "content": "a"}], "rejected": [{"role": "user", "content": "b"}]},
            "not two ends of one conversation",
        ),
    ],
)
def test_pairs_that_teach_nothing_or_are_malformed_are_bad_rows(
    row: dict[str, object], reason: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
):
    good = {"prompt": "q", "chosen": "a", "rejected": "b"}
    name = jsonl(tmp_path / "a.jsonl", [good, row])
    report = load_pairs(name, DataConfig(max_bad_fraction=0.5), tokenizer).report
    assert (report.kept, report.bad) == (1, 1)
    assert reason in report.examples[0].reason


def test_whole_conversations_are_split_where_they_part(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    turns = [{"role": "user", "content": "q"}]
    sides = {
        side: [*turns, {"role": "assistant", "content": text}] for side, text in (("chosen", "a"), ("rejected", "b"))
    }
    implicit = load_pairs(jsonl(tmp_path / "a.jsonl", [sides]), DataConfig(), tokenizer)
    explicit = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert implicit.pairs == load_pairs(jsonl(tmp_path / "b.jsonl", list(explicit)), DataConfig(), tokenizer).pairs


def test_a_cut_pair_keeps_both_answers_whole_behind_the_same_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    rows: list[object] = [{"prompt": "many words here " * 9, "chosen": "yes", "rejected": "no no no no"}]
    name = jsonl(tmp_path / "a.jsonl", rows)
    whole = load_pairs(name, DataConfig(), tokenizer).pairs[0]
    length = len(whole.rejected.token_ids) - 5
    config = DataConfig(max_length=length, overlong=Overlong.truncate_left, max_overlong_fraction=1.0)
    cut = load_pairs(name, config, tokenizer).pairs[0]
    assert cut.rejected.token_ids == whole.rejected.token_ids[5:]
    assert cut.chosen.token_ids == whole.chosen.token_ids[5:]
    assert sum(cut.rejected.mask) == sum(whole.rejected.mask)
    config.max_length = sum(whole.rejected.mask)  # not one prompt token would be left
    with pytest.raises(DataError, match="no usable row"):
        load_pairs(name, config, tokenizer)
