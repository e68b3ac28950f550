"""Values as JSON files hold them: read, checked, and told of in one sentence where they are wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class Part(BaseModel):
    """A frozen group of a file's values: unknown keys are ignored; wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False, protected_namespaces=())


AnyPart = TypeVar("AnyPart", bound=Part)
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
KINDS = {type(None): "null", bool: "true or false", list: "a list", str: "a text"}  # of JSON; the rest are numbers


def printable(name: object) -> str:
    """A name as one line of a message or a log can hold it: controls and what is no valid Unicode are escaped."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(name))


def shown(path: str | Path, parts: int = 1) -> str:
    """The last parts of a path, printable."""
    return printable("/".join(Path(path).parts[-parts:]))


def read_json(path: Path, expected: str = "a folder in the official layout", parts: int = 2) -> dict[str, Any]:
    """The object in a JSON file; raises FileNotFoundError or ValueError with one sentence that names the file.

    The name has the last `parts` of the path.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{shown(path.parent, parts - 1)} has no {path.name}: expected {expected}.")
    return parse_json(read_text(path, parts), shown(path, parts))


def read_text(path: Path, parts: int = 2) -> str:
    """The text in a file; raises ValueError with one sentence that names it when it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors of Windows' begin it with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path, parts)} is not UTF-8 ({error}): copy it again.") from error


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file; raises ValueError as `read_json` does."""
    return read_json(path) if path.is_file() else {}


def parse_json(text: str, where: str) -> dict[str, Any]:
    """The object in a JSON text; raises ValueError with one sentence that says `where` it stood."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid JSON ({error}): copy it again.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds {KINDS.get(type(values), 'a number')}, expected an object: copy it again.")
    return values


def validated(kind: type[AnyPart], values: Mapping[str, Any], source: str) -> AnyPart:
    """The values of a JSON file as a Part; raises ValueError with one sentence: key, source, found and expected."""
    try:
        return kind.model_validate(frozen(values))
    except RecursionError:
        raise ValueError(f"{source} is nested too deeply: correct the file") from None
    except ValidationError as wrong:
        first = wrong.errors()[0]
        if first["type"] == "missing" and isinstance(first["loc"][-1], str):
            raise ValueError(f"{source} lacks {'.'.join(map(str, first['loc']))}: correct the file") from None
        key = str(first["loc"][0]) if first["loc"] else ""
        where, found = f"{key} in {source}" if key else source, short(values.get(key, first["input"]))
        raise ValueError(f"{where} is {found}, expected {expected(first)}: correct the file") from None


def expected(wrong: Mapping[str, Any]) -> str:
    """What pydantic would have taken, without the words that it says before it."""
    if wrong["type"] == "missing":
        return "one value more"
    return re.sub(r"^(Value error, |(Input|String|Tuple) should (be|have) )", "", wrong["msg"])


def short(value: object) -> str:
    """A value for a message; a preview, for one, is a page of numbers."""
    found = repr(value)
    return found if len(found) <= 100 else f"{found[:97]}..."


def frozen(value: Any) -> Any:
    """Parsed JSON or YAML with its lists as tuples, its keys as texts."""
    if isinstance(value, Mapping):
        return {str(key): frozen(part) for key, part in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list) else value
