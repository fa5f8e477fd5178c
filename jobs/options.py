"""A job's dataclass as flags and YAML keys, so that each option is named, explained and given its default once."""

import argparse
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml

from pipeline.books import Books
from pipeline.store import Store, StoreOptions, absolute

Job = TypeVar("Job")
_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_METAVARS = {str: "TEXT", int: "N", float: "NUMBER"}


class CommandParser(argparse.ArgumentParser):
    """Takes options by their whole names only, and says which one was meant where a name is nearly right."""

    def __init__(self, **how: Any) -> None:
        super().__init__(allow_abbrev=False, **how)

    def error(self, message: str) -> NoReturn:
        unknown = re.findall(r"--[\w-]+", message) if message.startswith("unrecognized arguments") else ()
        super().error(message + "".join(did_you_mean(name, self._option_string_actions) for name in unknown))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean X?`, or nothing where nothing is alike."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def add_options(parser: argparse.ArgumentParser, job: type[Any], *, without: Collection[str] = ()) -> None:
    """A positional argument for each field without a default, a flag for each other, and --config.

    Names in `without` are left out. The help is that of the field's metadata. What is not given leaves no trace, so
    that a file can say it.
    """
    kinds = typing.get_type_hints(job)
    for field in (field for field in dataclasses.fields(job) if field.name not in without):
        kind, text = kinds[field.name], field.metadata["help"].replace("%", "%%")
        how: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text}
        if field.default is dataclasses.MISSING:
            parser.add_argument(field.name, nargs="?", metavar=field.name.upper(), **how)
        elif kind is bool:
            parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, **how)
        else:
            how["help"] += f" (default: {field.default})" if field.default not in (None, "", (), 0) else ""
            how["action"] = "append" if _is_list(kind) else "store"
            parser.add_argument(_flag(field.name), type=_scalar(kind), metavar=_METAVARS[_scalar(kind)], **how)
    if "config" not in without:
        parser.add_argument(
            "--config", metavar="FILE", help="YAML file with any of these, such as max_new_tokens: 2048"
        )


def make_job(job: type[Job], flags: argparse.Namespace) -> Job:
    """The job that the flags and the file of --config describe; flags win.

    Raises ValueError for an unknown or missing option, a value of the wrong type, and whatever the job itself refuses.
    """
    fields = dataclasses.fields(typing.cast(Any, job))
    names = [field.name for field in fields]
    config = getattr(flags, "config", None)
    values = {} if config is None else _read_yaml(Path(config), typing.get_type_hints(job))
    values |= {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(flags).items() if name in names
    }
    missing = [
        field.name.upper() for field in fields if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be given: see --help")
    return job(**values)


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """The flags that say how to reach S3, for commands that look at an output and are no job."""
    for name, text in (
        ("endpoint-url", "S3 endpoint, when it is not AWS's"),
        ("profile", "profile of the AWS configuration"),
        ("region", "AWS region"),
    ):
        parser.add_argument(f"--{name}", metavar="TEXT", help=text)


def store_options(flags: argparse.Namespace) -> StoreOptions:
    return StoreOptions(endpoint_url=flags.endpoint_url, profile=flags.profile, region=flags.region)


def job_books(flags: argparse.Namespace) -> Books:
    """The books of the job whose output the flags name. Raises ValueError where that cannot be a place."""
    return Books(Store(store_options(flags)), absolute(flags.output))


class _AsWritten(yaml.SafeLoader):
    """Values are the texts that they are written as, or None: the option says which is a number, so that
    `password: 0123` stays one."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the class it belongs to has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_yaml(path: Path, kinds: dict[str, Any]) -> dict[str, Any]:
    try:
        content = _AsWritten(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"config {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"config {path} must hold options such as max_new_tokens: 2048")
    unknown = sorted(str(name) for name in content if name not in kinds)
    if unknown:
        named = ", ".join(unknown) + did_you_mean(unknown[0], kinds)
        raise ValueError(f"config {path} has unknown options: {named}. There are {', '.join(sorted(kinds))}")
    return {name: _converted(f"config {path}: {name}", value, kinds[name]) for name, value in content.items()}


def _converted(name: str, value: Any, kind: Any) -> Any:
    if _is_list(kind):
        return tuple(str(item) for item in (value if isinstance(value, list) else [value]))
    wanted = _scalar(kind)
    try:
        if not isinstance(value, str):
            raise ValueError(value)
        return _TRUTHS[value.lower()] if wanted is bool else wanted(value)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name} must be {wanted.__name__}, not {value!r}") from error


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _is_list(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _scalar(kind: Any) -> Any:
    """str of `str`, `str | None` and `tuple[str, ...]`; other types themselves."""
    if _is_list(kind) or isinstance(kind, types.UnionType):
        return typing.get_args(kind)[0]
    return kind
