"""Rendering of templates to HTML files that need no network."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from genre_dist import __version__
from genre_dist.atomic import atomic_file
from genre_dist.printable import printable
from genre_dist.schema import with_article


def write_page(path: Path, template: str, **context: Any) -> None:
    """Render a template and write the page atomically."""
    with atomic_file(path, "w") as file:
        file.write(render(template, **context))


def render(template: str, **context: Any) -> str:
    """A page from a template in templates/, with style and script inlined."""
    environment = Environment(
        loader=PackageLoader("genre_dist.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "abs": abs,
        "picture": picture,
        "breakable": lambda text: Markup("_<wbr>").join(_visible(text).split("_")),
        "points": points,
        "with_article": with_article,
        "percent": lambda value: "\N{EN DASH}" if value is None else f"{100 * value:.1f}",
    }
    parts = {name: Markup((files(__package__) / "templates" / name).read_text()) for name in ("style.css", "script.js")}
    return environment.get_template(template).render(
        style=parts["style.css"], script=parts["script.js"], version=__version__, **context
    )


def _visible(value: Any) -> Any:
    """Text made printable line by line, so that no control character hides or reorders it; Markup unchanged."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(map(printable, value.split("\n")))


def picture(data: bytes, kind: str = "jpeg") -> str:
    """An image as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
