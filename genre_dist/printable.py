"""Escaping untrusted text (titles, genres, words, names of files and runs) for terminals and Markdown."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_MARKUP = re.compile(
    r"[\\`*\[\]<>&|~$!#]"  # code, emphasis, links, HTML, entities, tables, mathematics, headings
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore that does not stand inside a word
    r"|:(?=//)|@|(?<=www)\.",  # addresses that become links by themselves
    re.IGNORECASE,
)
_LINE_START = re.compile(r"^(\d{1,9})?([-+=.)])")


def printable(text: object) -> str:
    r"""Text in one line that cannot control a terminal: line breaks become blanks, unprintable characters `\x1b`.

    Unprintable are control characters, marks that change the direction of writing, and halves of surrogate pairs.
    """
    result = str(text)
    if result.isprintable():
        return result
    in_line = re.sub(r"\s+", lambda run: run[0] if run[0].strip(" ") == "" else " ", result)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in in_line)


def one_line(text: str, most: int) -> str:
    """Text of a damaged file in one line of at most so many characters, unprintable ones as blanks."""
    result = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return result if len(result) <= most else f"{result[:most]}..."


def markdown(text: object) -> str:
    """Text in one line, escaped for Markdown: it makes no markup, HTML, table or link."""
    escaped = _MARKUP.sub(r"\\\g<0>", printable(text))
    return _LINE_START.sub(r"\1\\\2", escaped)


def terminal(**options: Any) -> "Console":
    """A console without markup; text for it must be `printable`."""
    from rich.console import Console

    return Console(markup=False, emoji=False, **options)
