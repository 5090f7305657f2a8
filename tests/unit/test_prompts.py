"""Prompt files: where they are split, which endings are read, and what is said about what is left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sdpo.errors import UserError
from sdpo.prompts import Prompt, load_prompts, named_sets

INSIDE = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # where str.splitlines cuts besides at \n and \r


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_bytes(text.encode())
    return str(folder / name)


def texts(source: str) -> list[str]:
    return [prompt.text for prompt in load_prompts(source)]


@pytest.mark.parametrize("sign", INSIDE, ids=lambda sign: f"U+{ord(sign):04X}")
def test_lines_end_at_newlines_alone(tmp_path: Path, sign: str) -> None:
    prompts = [f"a red fox{sign}by a lake", "a dog"]
    records = [json.dumps({"prompt": prompt, "n": i}, ensure_ascii=False) for i, prompt in enumerate(prompts)]
    plain = sign >= " " or sign == "\x85"  # JSON has no other control characters in strings
    for end in ("\n", "\r\n"):
        assert texts(written(tmp_path, "a.txt", end.join(prompts) + end)) == prompts
        assert texts(written(tmp_path, "a.csv", end.join(["prompt", *prompts]) + end)) == prompts
        if plain:
            assert texts(written(tmp_path, "a.jsonl", end.join(records))) == prompts
            assert texts(written(tmp_path, "a.json", f"[{','.join(records)}]")) == prompts


def test_comments_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, "a.txt", "# of animals\ncat\n\n  #2 pencil\ndog # not a comment\n")
    assert texts(file) == ["cat", "dog # not a comment"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert file in record.getMessage() and "2 of its lines begin with #" in record.getMessage()
    caplog.clear()
    for name in named_sets():
        load_prompts(name)
    load_prompts(written(tmp_path, "b.txt", "cat\n"))
    assert texts(written(tmp_path, "c.jsonl", '"#1 cat"\n')) == ["#1 cat"]
    assert not caplog.records


def test_another_process_of_a_launch_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    load_prompts(written(tmp_path, "a.txt", "# a\ncat\n"))
    assert not caplog.records


def test_a_file_of_lines_that_end_at_carriage_returns_alone_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert texts(written(tmp_path, "a.txt", "cat\rdog\r")) == ["cat\rdog"]
    assert r"1 of its prompts have \r inside" in caplog.text


def test_json_and_csv_are_read(tmp_path: Path) -> None:
    both = [Prompt("a cat", {"kind": "pet", "n": "1"}), Prompt('a "dog",\nasleep', {"kind": "", "n": "2"})]
    records = [{"prompt": p.text, **p.metadata} for p in both]
    for name in ("a.json", "A.JSON", "a.Json"):
        assert load_prompts(written(tmp_path, name, json.dumps(records, indent=1))) == both
    table = 'kind,prompt,n\npet,a cat,1\n,"a ""dog"",\nasleep",2\n'
    for name in ("a.csv", "a.CSV"):
        assert load_prompts(written(tmp_path, name, "\ufeff" + table)) == both
    assert load_prompts(written(tmp_path, "words.json", '["a cat", "a dog"]')) == [Prompt("a cat"), Prompt("a dog")]
    assert texts(written(tmp_path, "a.JSONL", '{"prompt": "a cat"}\n')) == ["a cat"]
    assert texts(written(tmp_path, "a.TXT", "a cat\n")) == ["a cat"]


@pytest.mark.parametrize("name", ["a.tsv", "a.yaml", "a.parquet", "a.md", "a.txt.gz", "a", ".txt"])
def test_other_endings_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"\.txt, \.jsonl, \.json or \.csv"):
        load_prompts(written(tmp_path, name, "a cat\n"))


def test_byte_order_marks_are_no_part_of_prompts(tmp_path: Path) -> None:
    mark = "\ufeff"
    assert texts(written(tmp_path, "a.txt", f"{mark}cat\n{mark}# joined files\n{mark}dog\n")) == ["cat", "dog"]
    assert texts(written(tmp_path, "a.jsonl", f'{mark}"cat"\n{mark}"dog"\n')) == ["cat", "dog"]
    assert texts(written(tmp_path, "a.json", f'{mark}["cat"]')) == ["cat"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"cat\ndog\0\n", "a.txt:2: the prompt contains a null character"),
        ("a.txt", "cat\n".encode("utf-16-le"), "UTF-16"),
        ("a.txt", "cat\n".encode("utf-16"), "cannot be read as UTF-8"),
        ("a.csv", "cat,prompt\n1,caf\xe9\n".encode("latin-1"), "cannot be read as UTF-8"),
        ("a.json", b'["\\ud800"]', "prompt 1: the prompt contains a lone surrogate"),
        ("a.jsonl", b'"cat"\n{"prompt": "a\\u0000b"}\n', "a.jsonl:2: the prompt contains a null"),
        ("a.json", b'{"prompt": "cat"}\n', "expected a list"),
        ("a.json", b'{"prompt": "cat"}\n{"prompt": "dog"}\n', "A .jsonl file has one object a line"),
        ("a.json", b'["cat", 5]', "prompt 2: expected a string"),
        ("a.json", b"[", "not a JSON object"),
        ("a.json", b"[" * 100_000, "not a JSON object"),
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"prompt\n", "is empty"),
        ("a.csv", b"\nprompt\ncat\n", "it has nothing"),
        ("a.csv", b"Prompt,n\ncat,1\n", "it has Prompt, n"),
        ("a.csv", b"prompt;n\ncat;1\n", "it has prompt;n"),
        ("a.csv", b"prompt,n,n\ncat,1,2\n", "name each column once"),
        ("a.csv", b"prompt,n\ncat\n", "a.csv:2: the row has not one cell"),
        ("a.csv", b"prompt\na cat, a dog\n", "a.csv:2: the row has not one cell"),
        ("a.csv", b"n,prompt\n1,\n", "a.csv:2: the prompt is empty"),
        ("a.csv", b'prompt\n"a cat\n', "cannot be read as a CSV file"),
        ("a.csv", b"prompt\n" + b"x" * 200_000 + b"\n", "cannot be read as a CSV file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        load_prompts(str(tmp_path / name))
    assert words in str(refused.value)
