"""A tokenizer and a transformer so small that tests make them: WordPiece over a few texts, BERT of two layers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

TEXTS = (
    "a spaceship full of aliens lands in the desert and the war begins",
    "two lovers meet in the rain, and they marry in the end!",
    "the detective hunts a killer through the city at night",
    "ghosts haunt an old house; nobody believes the children",
)
BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,  # strategies are compared
    "attention_probs_dropout_prob": 0.0,
}


def write_tokenizer(folder: Path, texts: Iterable[str] = TEXTS, size: int = 300) -> Path:
    """BERT's WordPiece, trained on texts, as a `tokenizer.json` that truncates and pads, as published ones do."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made.decoder = decoders.WordPiece()
    made.enable_truncation(8)
    made.enable_padding(length=8)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_bytes_tokenizer(folder: Path) -> Path:
    """GPT-2's kind of tokenizer: no padding token, no special one at the ends, and id 0 is an ordinary token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def write_bert(folder: Path, texts: Iterable[str] = TEXTS, **changed: Any) -> Path:
    """A model's folder: architecture, random weights and tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    from genre_dist.packing.tokenizer import read_tokenizer_file

    write_tokenizer(folder, texts)
    size = read_tokenizer_file(str(folder)).pieces.size
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=size, **BERT | changed)).save_pretrained(folder)
    return folder
