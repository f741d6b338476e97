"""From texts to token ids and back: by the study's rule and a vocabulary, or by a file of the tokenizers library."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genre_dist.packing.vocabulary import encode, tokenise
from genre_dist.pretrained import TOKENIZER, find_pretrained
from genre_dist.printable import printable
from genre_dist.storage import AnyPath, read_bytes
from genre_dist.stream.manifest import Text
from genre_dist.stream.words import load_words

WORDS = "vocabulary.txt"
"""The file of a vocabulary of words; that of other tokenizers is `tokenizer.json`."""
BY_WORDS = "words"
"""The value of --tokenizer for the study's rule."""
_REMEDY = "restore it, or pack the shards again (--overwrite)"


class Tokenizer(Protocol):
    """What turns texts into token ids, and ids into words."""

    size: int
    """Number of ids: all are in 0 .. size - 1."""
    closing: int
    """Special tokens that end every text, which truncation keeps."""

    def encode(self, text: str) -> NDArray[np.int32]:
        """The ids of a text with its special tokens, int32 [length]."""
        ...

    def tokens(self, words: Iterable[str]) -> NDArray[np.int32]:
        """The ids of words without special tokens, int32 [length]."""
        ...

    def text(self, tokens: NDArray[np.int32]) -> str:
        """Ids as text for people, without special tokens."""
        ...

    def words(self, tokens: NDArray[np.int32]) -> list[str]:
        """The words of a text, in lower case and without punctuation."""
        ...

    def spelled(self, tokens: NDArray[np.int32]) -> tuple[list[str], NDArray[np.int64]]:
        """Words and special tokens of a text, and for each id the number of its word, int64 [length]."""
        ...


class WordTokenizer:
    """A `Tokenizer` by the 2018 study's rule; words outside the vocabulary become <unk>."""

    closing = 0

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids, self._spelling, self.size = ids, list(ids), len(ids)

    def encode(self, text: str) -> NDArray[np.int32]:
        return self.tokens(tokenise(text))

    def tokens(self, words: Iterable[str]) -> NDArray[np.int32]:
        return encode(words, self._ids)

    def words(self, tokens: NDArray[np.int32]) -> list[str]:
        return [self._spelling[token] for token in tokens.tolist()]

    def text(self, tokens: NDArray[np.int32]) -> str:
        return " ".join(self.words(tokens))

    def spelled(self, tokens: NDArray[np.int32]) -> tuple[list[str], NDArray[np.int64]]:
        return self.words(tokens), np.arange(len(tokens))


class PieceTokenizer:
    """A `Tokenizer` read from the bytes of a `tokenizer.json`; the file's own truncation and padding are off.

    Raises ValueError if the bytes are no such file, or the library is missing.
    """

    def __init__(self, written: bytes, path: AnyPath) -> None:
        try:
            import tokenizers
        except ImportError:
            raise ValueError(
                f"{path}: reading it needs the tokenizers library, which is not installed: pip install 'genre_dist[hf]'"
            ) from None
        self.path = path
        try:
            self._pieces: Any = tokenizers.Tokenizer.from_str(_plain(written))
            ids = self._pieces.get_vocab(with_added_tokens=True)
            self.padding = _padding(json.loads(written), ids)
        except Exception as error:  # the library raises plain Exceptions
            raise ValueError(f"{path}: not a file of the tokenizers library: {_line(error)}") from None
        self.size = max(ids.values(), default=-1) + 1
        if self.size < 2:
            raise ValueError(f"{path}: a tokenizer of fewer than two tokens")
        added = self._pieces.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}
        mask = self._encoded("a", special=True).special_tokens_mask
        self.closing = next((n for n, special in enumerate(reversed(mask)) if not special), 0)

    def encode(self, text: str) -> NDArray[np.int32]:
        """Raises ValueError for a text that the tokenizer has no ids for."""
        return self._checked(self._encoded(text, special=True).ids)

    def tokens(self, words: Iterable[str]) -> NDArray[np.int32]:
        return self._checked(self._encoded(" ".join(words), special=False).ids)

    def _encoded(self, text: str, special: bool) -> Any:
        try:
            return self._pieces.encode(text, add_special_tokens=special)
        except Exception as error:  # as above
            raise ValueError(f"{self.path}: cannot tokenise a text: {_line(error)}") from None

    def _checked(self, ids: list[int]) -> NDArray[np.int32]:
        if ids and max(ids) >= self.size:
            raise ValueError(f"{self.path}: makes the id {max(ids)} and has {self.size} tokens")
        return np.array(ids, np.int32)

    def text(self, tokens: NDArray[np.int32]) -> str:
        return str(self._pieces.decode(tokens.tolist(), skip_special_tokens=True))

    def words(self, tokens: NDArray[np.int32]) -> list[str]:
        return tokenise(self.text(tokens))

    def spelled(self, tokens: NDArray[np.int32]) -> tuple[list[str], NDArray[np.int64]]:
        words: list[str] = []
        owners: list[int] = []
        run: list[int] = []
        for token in [*tokens.tolist(), None]:
            if token is not None and token not in self._special:
                run.append(token)
                continue
            spelled, numbers = self._spelled_run(run)
            owners += [len(words) + number for number in numbers]
            words += spelled
            run = []
            if token is not None:
                owners.append(len(words))
                words.append(self._special[token])
        return words, np.array(owners, np.int64)

    def _spelled_run(self, run: list[int]) -> tuple[list[str], list[int]]:
        """The same for ids without special ones: a piece begins a word if with it one word more is decoded."""
        counts = [len(self._pieces.decode(run[: end + 1]).split()) for end in range(len(run))]
        words = self._pieces.decode(run).split() or [""] * bool(run)
        return words, [min(max(count - 1, 0), len(words) - 1) for count in counts]


def _plain(written: bytes) -> str:
    """The file without truncation, padding and the decoder's tidying, which would join words."""
    content = json.loads(written)
    content["truncation"] = content["padding"] = None
    if (content.get("decoder") or {}).get("type") == "WordPiece":
        content["decoder"]["cleanup"] = False
    return json.dumps(content)


def _padding(content: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """The id of the padding token: the one the file pads with, or one of a usual name; None without any."""
    named = str((content.get("padding") or {}).get("pad_token"))
    return next((ids[name] for name in (named, "[PAD]", "<pad>", "<|pad|>", "<PAD>") if name in ids), None)


def _line(error: Exception) -> str:
    return printable(str(error).strip().partition("\n")[0])[:300] or type(error).__name__


class TokenizerFile(NamedTuple):
    """A tokenizer and its file."""

    pieces: PieceTokenizer
    written: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.written).hexdigest()


def read_tokenizer_file(name: str) -> TokenizerFile:
    """The tokenizer that --tokenizer names: a path, an installed package, or a model in the Hugging Face cache.

    Raises ValueError if it cannot be had.
    """
    path = find_pretrained(name, TOKENIZER, "--tokenizer")
    written = path.read_bytes()
    return TokenizerFile(PieceTokenizer(written, path), written)


def load_tokenizer(path: AnyPath, text: Text) -> Tokenizer:
    """The tokenizer of a manifest's or a model's `text`, whose file is `path`.

    Raises ValueError if the file is missing, damaged, or not the one that `text` notes.
    """
    if "tokenizer" not in text:
        return WordTokenizer(load_words(path, text["vocabulary_sha256"]))
    try:
        written = read_bytes(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: the tokenizer is missing; {_REMEDY}") from None
    if hashlib.sha256(written).hexdigest() != text["vocabulary_sha256"]:
        raise ValueError(f"{path}: not the tokenizer the shards were packed with; {_REMEDY}")
    return PieceTokenizer(written, path)


def token_name(text: Text) -> str:
    """What a manifest's tokens are, for counts of them."""
    return "tokens" if "tokenizer" in text else "words"


def tokenizer_of(folder: AnyPath, text: Text) -> Tokenizer:
    """The tokenizer of shards in a folder. Raises ValueError as `load_tokenizer` does."""
    return load_tokenizer(folder / text["vocabulary"], text)
