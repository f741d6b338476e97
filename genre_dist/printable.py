"""Other people's text (titles, genres, words, names of files and runs) as it is shown: without effect of its own."""

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
    r"""Text in one line without effect on a terminal: line breaks as blanks, what is not printable as `\x1b`.

    Not printable are control characters, marks that turn the direction of writing, and halves of surrogate pairs.
    """
    told = str(text)
    if told.isprintable():
        return told
    in_line = re.sub(r"\s+", lambda run: run[0] if run[0].strip(" ") == "" else " ", told)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in in_line)


def one_line(text: str, most: int) -> str:
    """Text in one line of at most so many letters, what is not printable as blanks: of a damaged file."""
    told = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return told if len(told) <= most else f"{told[:most]}..."


def markdown(text: object) -> str:
    """Text in one line that Markdown shows as it is: no markup, HTML, table or link of its own."""
    escaped = _MARKUP.sub(r"\\\g<0>", printable(text))
    return _LINE_START.sub(r"\1\\\2", escaped)


def terminal(**options: Any) -> "Console":
    """A console that takes no text for markup; what is printed there is to be `printable`."""
    from rich.console import Console

    return Console(markup=False, emoji=False, **options)
