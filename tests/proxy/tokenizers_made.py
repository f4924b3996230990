"""Small tokenizers of the kinds that models use, made here so that the tests need no downloads."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "The quick brown fox jumps over the lazy dog. Hello, world! How are you today?\n",
    "你好，世界。今天天气很好，我们去公园吧。请介绍一下自己。\n",
    "こんにちは世界。Привет, мир! Γειά σου Κόσμε. مرحبا بالعالم\n",
    "👋🌍 emoji 👩‍👩‍👧 and code: for i in range(10): print(i)\n",
)
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>"]


def byte_level() -> Tokenizer:
    """GPT-2, Llama 3 and Qwen: byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """Llama 2 and Mistral: SentencePiece BPE with byte fallback."""
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>"])}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for character in dict.fromkeys("".join(CORPUS[:2]).replace(" ", "▁")):
        vocabulary.setdefault(character, len(vocabulary))
    merges = []
    for left, right in (
        ("▁", "T"),
        ("h", "e"),
        ("▁T", "he"),
        ("o", "x"),
        ("l", "l"),
        ("▁", "w"),
        ("你", "好"),
    ):
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


def tiktoken_like() -> Tokenizer:
    """GLM-4 and Qwen 1: byte-level pieces behind a regular expression that splits first."""
    tokenizer = byte_level()
    split = pre_tokenizers.Split(
        pattern=__import__("tokenizers").Regex(r"\p{L}+|\p{N}{1,3}|[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer
