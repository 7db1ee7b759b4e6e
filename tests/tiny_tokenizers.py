"""Small tokenizers of the families that real models use, trained in memory on a few sentences."""

from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog.",
    "The capital of France is Paris. The capital of Italy is Rome.",
    "def f(x):\n    return x + 1\n",
    "中文字 测试 引号 全角",
    "Hello world! Hello there, how are you today? I am fine, thank you.",
    "user assistant system model",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FAMILIES = ["byte_bpe", "byte_bpe_nfc_trimmed", "sentencepiece_bpe", "unigram_nfkc", "wordpiece"]


@cache
def tiny_tokenizer(family: str = "byte_bpe", template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """A tokenizer of the family; the same object at every call, so do not change it."""
    backend, trainer = _parts(family)
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token={"wordpiece": "[UNK]", "sentencepiece_bpe": "<unk>", "unigram_nfkc": "<unk>"}.get(family),
    )
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<|im_start|>", special=True)]})
    tokenizer.chat_template = template
    return tokenizer


def _parts(family: str) -> tuple[Tokenizer, trainers.Trainer]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if family.startswith("byte_bpe"):
        trimmed = family.endswith("trimmed")
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=trimmed)
        if trimmed:
            backend.normalizer = normalizers.NFC()
        return backend, trainers.BpeTrainer(
            vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
        )
    if family == "sentencepiece_bpe":
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        return backend, trainers.BpeTrainer(
            vocab_size=500, special_tokens=[*CONTROL, "<unk>", *bytes_], show_progress=False
        )
    if family == "unigram_nfkc":
        backend = Tokenizer(models.Unigram())
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        return backend, trainers.UnigramTrainer(
            vocab_size=150, special_tokens=[*CONTROL, "<unk>"], unk_token="<unk>", show_progress=False
        )
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend, trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=[*CONTROL, "[UNK]"], show_progress=False
    )
