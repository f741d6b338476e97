"""The posters: downloaded several at a time, checked, kept whole; the journal says what became of each."""

import io
from array import array
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError, WebPImagePlugin  # noqa: F401 (Pillow loads WebP only when asked)

from genre_dist.acquire.catalogue import poster_file, write_poster
from genre_dist.acquire.fetch_state import State, Work
from genre_dist.acquire.web import FetchError, StoppedError, TransientError, Web, outcomes

FORMATS = ("JPEG", "PNG", "WEBP")
LARGEST_BYTES = 64 << 20
MOST_REDIRECTS = 5


def fetch_posters(work: Work) -> None:
    """Fetch the posters of the catalogue's films that are not there yet. Raises OSError when the disk is full."""
    wanted = array("q", wanted_posters(work.state, work))
    work.tally.start("posters", len(wanted))

    def fetch(item: tuple[int, str]) -> tuple[int, str]:
        return fetch_poster(work, *item)

    for (film, path), future in outcomes(work.pool, fetch, _paths(work, wanted), 2 * work.options.concurrency, False):
        try:
            size, sha256 = future.result()
        except StoppedError:
            continue
        except FetchError as failure:
            status, size, sha256 = f"failed: {failure}", 0, ""
            work.tally.failed(failure)
        else:
            status = "ok"
            work.tally.succeeded()
        work.state.record({"poster": film, "path": path, "status": status, "bytes": size, "sha256": sha256})


def _paths(work: Work, films: "array[int]") -> Iterator[tuple[int, str]]:
    for film in films:
        if work.stopping():
            return
        yield film, work.state.film(film)["poster_path"] or ""


def wanted_posters(state: State, work: Work) -> Iterator[int]:
    """Films whose poster is not there, ascending: never tried, replaced at TMDB, lost, or failed and to be retried."""
    for film in state.films:
        path = state.film(film)["poster_path"]
        if not path:
            continue
        tried = state.poster(film, path)
        if tried is None:
            yield film
        elif tried["status"] == "ok":
            # A power cut may have cost the file, or its end, but not the line.
            file = poster_file(work.options.out, film)
            if not file.is_file() or file.stat().st_size != tried["bytes"]:
                yield film
        elif work.options.retry_failed:
            yield film


def fetch_poster(work: Work, film: int, path: str) -> tuple[int, str]:
    """Fetch one poster into the catalogue, in any thread; its size in bytes and its SHA-256.

    Raises FetchError if it cannot be had, StoppedError, or OSError when the disk is full.
    """
    body = download_poster(work.web, work.options.image_url, work.options.size, path)
    return write_poster(work.options.out, film, io.BytesIO(body))


def download_poster(web: Web, image_url: str, size: str, path: str) -> bytes:
    """A poster's file. Raises FetchError if it cannot be had, or StoppedError."""
    url = f"{image_url.rstrip('/')}/{size}/{path.lstrip('/')}"

    def once() -> bytes:
        body = web.body(url, LARGEST_BYTES, MOST_REDIRECTS)
        check_image(body)
        return body

    return web.patiently(once)


def check_image(body: bytes) -> None:
    """Raise TransientError unless the header is that of an image a poster may be; pixels are not decoded."""
    if not body:
        raise TransientError("empty")
    try:
        with Image.open(io.BytesIO(body), formats=FORMATS):
            pass
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        page = body[:200].lstrip()[:1] == b"<"
        raise TransientError("HTML instead of an image" if page else f"no {', '.join(FORMATS)} image") from None
