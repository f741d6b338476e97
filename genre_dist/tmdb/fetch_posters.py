"""The posters: downloaded several at a time, checked, written atomically; the journal has the result of each."""

import io
from array import array
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 (Pillow loads WebP only when asked)

from genre_dist.catalogue.catalogue import poster_file, write_poster
from genre_dist.tmdb.fetch_state import FetchContext
from genre_dist.tmdb.web import FetchError, TransientError, Web

FORMATS = ("JPEG", "PNG", "WEBP")
LARGEST_BYTES = 64 << 20
MOST_REDIRECTS = 5


def fetch_posters(context: FetchContext) -> None:
    """Fetch the missing posters of the catalogue's films. Raises OSError when the disk is full."""
    options, state, tally = context.options, context.state, context.tally
    wanted = array("q", _wanted(context))
    tally.start("posters", len(wanted))

    def fetch(item: tuple[int, str]) -> tuple[int, str]:
        body = download_poster(context.web, options.image_url, options.size, item[1])
        return write_poster(options.out, item[0], body)

    items = ((film, state.film(film)["poster_path"] or "") for film in wanted)
    for (film, path), answer in context.answers(fetch, items, context.stopping, in_order=False):
        if isinstance(answer, FetchError):
            status, size, sha256 = f"failed: {answer}", 0, ""
            tally.failed(answer)
        else:
            status, (size, sha256) = "ok", answer
            tally.succeeded()
        state.record({"poster": film, "path": path, "status": status, "bytes": size, "sha256": sha256})


def _wanted(context: FetchContext) -> Iterator[int]:
    """Films without their poster, ascending: never tried, replaced at TMDB, lost, or failed and to be retried."""
    for film in context.state.films:
        path = context.state.film(film)["poster_path"]
        if not path:
            continue
        tried = context.state.poster(film, path)
        if tried is None:
            yield film
        elif tried["status"] == "ok":
            # A power cut may have lost the file, or its end, but not the journal's line.
            file = poster_file(context.options.out, film)
            if not file.is_file() or file.stat().st_size != tried["bytes"]:
                yield film
        elif context.options.retry_failed:
            yield film


def download_poster(web: Web, image_url: str, size: str, path: str) -> bytes:
    """A poster's bytes. Raises FetchError if the download fails, StoppedError if the fetch stops."""
    url = f"{image_url.rstrip('/')}/{size}/{path.lstrip('/')}"

    def once() -> bytes:
        body = web.body(url, LARGEST_BYTES, MOST_REDIRECTS)
        check_image(body)
        return body

    return web.retried(once)


def check_image(body: bytes) -> None:
    """Raise TransientError unless the header is that of an accepted image format; pixels are not decoded."""
    if not body:
        raise TransientError("empty")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS):
            pass
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        page = body[:200].lstrip()[:1] == b"<"
        raise TransientError("HTML instead of an image" if page else f"no {', '.join(FORMATS)} image") from None
