"""HTTP as fetch speaks it: deadlines, pauses, packed answers, redirections, and nothing that the server says told."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from acquire_server import KEY, TOKEN, Handle, serve
from fetch_checks import asked_for, rule

from genre_dist.tmdb import deadline, web
from genre_dist.tmdb.api import Tmdb
from genre_dist.tmdb.fetch_posters import download_poster
from genre_dist.tmdb.web import FetchError, StoppedError, UnreachableError, Web

FILM = "/3/movie/10$"


@pytest.fixture(scope="module")
def shared() -> Iterator[Handle]:
    with serve(films=30, poster_share=1.0) as server:
        yield server


@pytest.fixture
def server(shared: Handle, monkeypatch: pytest.MonkeyPatch) -> Handle:
    """A well-behaved server; one attempt a request."""
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    shared.control(set={"rules": []}, forget=True)
    return shared


def misbehave(server: Handle, path: str, do: str, **more: object) -> None:
    server.control(set={"rules": [rule(path, do, 10**6, **more)]})


def film(server: Handle, shared_web: Web | None = None, key: str = KEY) -> Callable[[], object]:
    """A request for one film."""
    tmdb = Tmdb(shared_web or Web(rate=0, concurrency=4), key, server.url)
    return lambda: tmdb.movie(10)


def poster(server: Handle) -> bytes:
    return download_poster(Web(rate=0, concurrency=4), f"{server.url}/t/p", "w342", "/poster-10.jpg")


# ---- deadlines ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dribble", "dribble-head"])
def test_an_answer_that_drips_ends_at_its_deadline(server: Handle, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "ANSWER_SECONDS", 0.4)
    misbehave(server, "10", kind)
    for request in (film(server), lambda: poster(server)):
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="timeout"):
            request()
        assert 0.3 < time.monotonic() - began < 10


@pytest.mark.slow
def test_an_answer_that_brings_much_may_take_longer(server: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr(deadline, "SLOWEST_BYTES", 1)
    misbehave(server, FILM, "dribble", drops=30)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="connection cut"):
        film(server)()
    assert time.monotonic() - began > 1  # so it was read until the server gave up


@pytest.mark.parametrize("kind", ["dribble", "dribble-head", "slow"])
def test_stopping_ends_requests_that_are_under_way(server: Handle, kind: str) -> None:
    misbehave(server, FILM, kind, seconds=30)
    shared_web = Web(rate=0, concurrency=4)
    ends: list[Exception] = []

    def ask() -> None:
        try:
            film(server, shared_web)()
        except StoppedError as error:
            ends.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while sum(asked_for(server, "movie").values()) < 3:
        time.sleep(0.01)
    shared_web.stop("enough")
    for thread in threads:
        thread.join(timeout=10)
    assert [str(end) for end in ends] == ["enough"] * 3


# ---- pauses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["429", "429-date"])
def test_a_pause_beyond_the_bound_ends_everything_and_says_when_to_come_back(server: Handle, kind: str) -> None:
    shared_web = Web(rate=0, concurrency=4)
    misbehave(server, FILM, kind, seconds=86_400)
    with pytest.raises(FetchError, match="429"):
        film(server, shared_web)()
    tomorrow = time.strftime("%Y-%m-%d %H:", time.localtime(time.time() + 86_400 - 1))
    with pytest.raises(StoppedError, match=rf"^the server asks to wait 86,\d+ s \(429\), until {tomorrow}"):
        film(server, shared_web)()


def test_a_pause_of_more_than_ten_seconds_is_told_once(server: Handle, capfd: pytest.CaptureFixture[str]) -> None:
    shared_web = Web(rate=0, concurrency=4)
    misbehave(server, FILM, "429", seconds=60)
    server.control(set={"delay": 0.3})  # so that all are asking before the first answer comes
    try:
        with ThreadPoolExecutor(4) as pool:
            failures = [future.exception() for future in [pool.submit(film(server, shared_web)) for _ in range(4)]]
    finally:
        server.control(set={"delay": 0.0})
    assert [str(failure) for failure in failures] == ["429"] * 4
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("the server asks to wait 60 s (429), until ")


@pytest.mark.parametrize("header", [8, "soon", -5, "", "\x1b[31m"])
def test_short_pauses_and_those_that_say_nothing_are_not_told(
    server: Handle, header: object, capfd: pytest.CaptureFixture[str]
) -> None:
    misbehave(server, FILM, "429", seconds=header)
    with pytest.raises(UnreachableError, match="429"):
        film(server)()
    assert not capfd.readouterr().err


def test_short_pauses_without_an_answer_between_them_add_up_to_the_bound(
    server: Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "LONGEST_PAUSE_SECONDS", 25)

    def asked(shared_web: Web) -> str:
        shared_web.limiter.paused_until -= 3600
        try:
            film(server, shared_web)()
        except FetchError as failure:
            return type(failure).__name__
        return "answer"

    shared_web = Web(rate=0, concurrency=4)
    server.control(set={"rules": [rule(FILM, "429", 2, seconds=9)]})
    assert [asked(shared_web) for _ in range(3)] == ["UnreachableError"] * 2 + ["answer"]
    misbehave(server, FILM, "429", seconds=9)
    assert [asked(shared_web) for _ in range(4)] == ["UnreachableError"] * 3 + ["StoppedError"]


# ---- packed answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["gzip", "deflate", "deflate-without-head", "gzip-unsaid", "gzip-untrue", "deflate-untrue"]
)
def test_packed_answers_are_read_whatever_they_are_called(server: Handle, kind: str) -> None:
    plain = film(server)(), poster(server)
    misbehave(server, "10", kind)
    assert (film(server)(), poster(server)) == plain


@pytest.mark.parametrize("kind", ["gzip-cut", "gzip-damaged", "deflate-cut"])
def test_packed_answers_that_are_cut_or_damaged_are_none(server: Handle, kind: str) -> None:
    misbehave(server, "10", kind)
    for request in (film(server), lambda: poster(server)):
        with pytest.raises(UnreachableError, match="damaged or cut short"):
            request()


@pytest.mark.parametrize("kind", ["gzip-bomb", "large"])
def test_answers_have_a_largest_size_packed_and_unpacked(server: Handle, kind: str) -> None:
    misbehave(server, "10", kind)
    for request, size in ((film(server), 4), (lambda: poster(server), 64)):
        with pytest.raises(FetchError, match=f"larger than {size} MiB"):
            request()


@pytest.mark.parametrize("kind", ["html", "empty", "truncated", "cut", "gif"])
def test_what_is_no_json_is_no_answer_whatever_its_content_type(server: Handle, kind: str) -> None:
    misbehave(server, FILM, kind)
    with pytest.raises(UnreachableError, match=r"no JSON object|connection cut"):
        film(server)()


def test_another_film_than_the_one_asked_for_is_no_answer(server: Handle) -> None:
    misbehave(server, FILM, "json", value={"id": 11})
    with pytest.raises(FetchError, match="another film"):
        film(server)()


# ---- the key, and the server's own words ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [KEY, TOKEN])
def test_the_key_follows_no_redirection_but_posters_do(server: Handle, key: str) -> None:
    with serve(films=30, poster_share=1.0) as other:
        misbehave(server, "10", "redirect", to=other.url)
        with pytest.raises(FetchError, match=r"^redirected to http://127\.0\.0\.1$"):
            film(server, key=key)()
        assert not other.control()["paths"]
        assert poster(server)[:2] == b"\xff\xd8"
        assert list(other.control()["paths"]) == ["/t/p/w342/poster-10.jpg"]


def test_through_a_proxy_the_deadline_holds_as_well(server: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    through = Tmdb(Web(rate=0, concurrency=4), KEY, "http://api.invalid")
    assert through.movie(10)["id"] == 10
    monkeypatch.setattr(deadline, "ANSWER_SECONDS", 0.4)
    misbehave(server, FILM, "dribble-head")
    with pytest.raises(UnreachableError, match="timeout"):
        through.movie(10)


def test_redirections_have_an_end(server: Handle) -> None:
    misbehave(server, "10", "redirect", to=server.url)
    with pytest.raises(FetchError, match="redirected"):
        poster(server)
    misbehave(server, "10", "redirect", to="http://[\x1b[31m")
    with pytest.raises(FetchError) as raised:
        poster(server)
    assert str(raised.value).isprintable()


def test_an_odd_head_brings_neither_the_key_nor_the_servers_words_to_the_terminal(
    server: Handle, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    misbehave(server, FILM, "odd-head")
    with pytest.raises(FetchError):
        film(server)()
    assert capfd.readouterr().err + caplog.text == ""


def test_a_password_of_netrc_stays_at_home(server: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert film(server, key=TOKEN)()  # a password in its place would be refused
