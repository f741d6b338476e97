"""Rendering of templates: to HTML files that need no network, and to Markdown."""

import base64
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from genre_dist import __version__
from genre_dist.atomic import atomic_file
from genre_dist.printable import markdown, printable
from genre_dist.schema import with_article


def write_page(path: Path, template: str, **context: Any) -> None:
    """Render a template and write the page atomically."""
    with atomic_file(path, "w") as file:
        file.write(render(template, **context))


def render(template: str, **context: Any) -> str:
    """A page from a template in templates/, with style and script inlined."""
    environment = _environment(autoescape=True, finalize=_visible)
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


def render_markdown(template: str, **context: Any) -> str:
    """A Markdown file from a template in templates/; text is escaped, unless it is `safe` or in the filter `code`."""
    environment = _environment(autoescape=False, finalize=_escaped)
    environment.filters |= {
        "code": lambda text: Markup("`{}`".format(printable(text).replace("`", "'"))),
        "count": lambda value: Markup(f"{value:,}"),
        "figure": figure,
        "interval": lambda one: figure(None if one is None else one.value) + _ends(one),
    }
    return environment.get_template(template).render(**context)


def figure(value: float | None) -> Markup:
    """A figure with three digits behind the point, a dash without one."""
    return Markup("\N{EN DASH}" if value is None else f"{value:.3f}")


def _ends(interval: Any) -> Markup:
    return Markup("" if interval is None else f" ({interval.low:.3f} to {interval.high:.3f})")


def _escaped(value: Any) -> Any:
    return markdown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _environment(**options: Any) -> Environment:
    loader = PackageLoader("genre_dist.pages")
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **options)


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
