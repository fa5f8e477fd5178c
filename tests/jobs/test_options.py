"""Options mean the same as flags and in a YAML file, flags win, and what is not understood is refused by name."""

import argparse
import ast
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from jobs import export_events, search_events, status, verify
from jobs.options import add_options, make_job
from jobs.parse_documents import main as parse_documents
from pipeline.job import ParseJob

JOBS = Path(__file__).parents[2] / "jobs"


def option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Job:
    source: str = field(metadata={"help": "where from"})
    name: str = option("x", "a name, 100 % free")
    max_count: int = option(3, "a number")
    share: float = option(0.5, "a share")
    keep: bool = option(False, "whether to keep")
    place: str | None = option(None, "somewhere")
    word: tuple[str, ...] = option((), "words")


def job(*argv: str) -> Job:
    parser = argparse.ArgumentParser()
    add_options(parser, Job)
    return make_job(Job, parser.parse_args(argv))


EVERY = Job(source="in", name="n", max_count=5, share=0.25, keep=True, place="p", word=("a", "b"))
FLAGS = ["in", "--name=n", "--max-count=5", "--share=0.25", "--keep", "--place=p", "--word=a", "--word=b"]
YAML = "source: in\nname: n\nmax_count: 5\nshare: 0.25\nkeep: true\nplace: p\nword: [a, b]\n"


def test_flags_and_a_file_say_the_same(tmp_path):
    (tmp_path / "job.yaml").write_text(YAML)
    assert job(*FLAGS) == EVERY
    assert job("--config", str(tmp_path / "job.yaml")) == EVERY


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "job.yaml").write_text(YAML)
    changed = job("elsewhere", "--config", str(tmp_path / "job.yaml"), "--max-count", "7", "--no-keep", "--word", "c")
    assert (changed.source, changed.max_count, changed.keep, changed.word) == ("elsewhere", 7, False, ("c",))
    assert (changed.name, changed.share) == ("n", 0.25)


def test_what_is_not_said_has_its_default():
    assert job("in") == Job(source="in")


def test_a_number_may_stand_for_a_text_and_a_text_for_a_list(tmp_path):
    (tmp_path / "job.yaml").write_text("source: 2024\nname: 2\nword: only\nshare: 1\n")
    assert job("--config", str(tmp_path / "job.yaml")) == Job(source="2024", name="2", word=("only",), share=1.0)


@pytest.mark.parametrize(
    ("yaml", "named"),
    [
        ("source: in\nmax_cuont: 5\n", "max_cuont"),
        ("source: in\nmax_count: many\n", "max_count must be int, not 'many'"),
        ("source: in\nkeep: 3\n", "keep must be bool, not '3'"),
        ("source: in\nmax_count: true\n", "max_count must be int, not 'true'"),
        ("source: in\nname: {a: 1}\n", "name must be str"),
        ("source: in\nname:\n", "name must be str, not None"),
        ("- in\n", "must hold options"),
        ("a: [\n", "cannot be read"),
        ("name: n\n", "SOURCE must be given"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_by_name(tmp_path, yaml, named):
    (tmp_path / "job.yaml").write_text(yaml)
    with pytest.raises(ValueError, match=r"config|SOURCE") as caught:
        job("--config", str(tmp_path / "job.yaml"))
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"nowhere\.yaml cannot be read"):
        job("--config", "nowhere.yaml")


@pytest.mark.parametrize("text", ["0123", "1_000", "2024-01-02", "yes", "1e3", "0x10"])
def test_a_text_in_a_file_stays_as_it_is_written(tmp_path, text):
    (tmp_path / "job.yaml").write_text(f"source: {text}\nword: [{text}, b]\n")
    assert job("--config", str(tmp_path / "job.yaml")) == Job(source=text, word=(text, "b"))


def test_no_command_takes_the_beginning_of_an_option_for_the_option(capsys):
    """`--max-new-token 9` would be taken for --max-new-tokens, and a new option would change what it means."""
    parsers = [
        (path.name, ast.unparse(node.func), [keyword.arg for keyword in node.keywords])
        for path in JOBS.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Parser")
    ]
    assert len(parsers) > 10
    assert all(name == "CommandParser" or "allow_abbrev" in given for _, name, given in parsers), parsers
    with pytest.raises(SystemExit) as ended:
        parse_documents([".", "out", "--max-new-token", "9"])
    assert ended.value.code == 2
    assert "unrecognized arguments: --max-new-token 9; did you mean --max-new-tokens?" in capsys.readouterr().err


def test_an_option_of_a_file_that_is_nearly_right_is_named(tmp_path):
    (tmp_path / "job.yaml").write_text("max_new_token: 9")
    with pytest.raises(ValueError, match=r"unknown options: max_new_token; did you mean max_new_tokens\?\. There are"):
        make_job(ParseJob, argparse.Namespace(config=str(tmp_path / "job.yaml")))


def test_how_to_reach_s3_is_declared_once():
    declaring = {
        path.stem
        for path in JOBS.glob("*.py")
        if any(f'"{flag}"' in path.read_text() for flag in ("--endpoint-url", "--profile", "--region"))
    }
    assert declaring == set()  # jobs.options makes these flags of their names


@pytest.mark.parametrize("command", [export_events, search_events, status, verify])
def test_commands_that_look_at_an_output_take_a_region(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert {"--endpoint-url", "--profile", "--region"} <= set(capsys.readouterr().out.split())
