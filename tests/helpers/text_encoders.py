"""Tokenizers and text encoders of random weights, made without a download."""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sdpo.backbones.load import EMBEDDED

WIDTH = 16  # of the text embeddings
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tokenizer() -> CLIPTokenizer:
    """The embedded model's, which needs no download."""
    return CLIPTokenizer.from_pretrained(EMBEDDED["emoji"] / "tokenizer")


def clip_config(vocabulary: int, **extra: Any) -> CLIPTextConfig:
    settings: dict[str, Any] = dict(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )
    return CLIPTextConfig(**settings | extra)


def t5(width: int = WIDTH) -> tuple[T5Tokenizer, T5EncoderModel]:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    words = T5Tokenizer(vocab=pieces, extra_ids=0)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return words, T5EncoderModel(config)


def _language_model(vocabulary: int) -> dict[str, Any]:
    return dict(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
    )


def gemma(text: str) -> tuple[GemmaTokenizer, Gemma2Model]:
    """A tokenizer that knows the words of a text as a whole, and its model."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    alphabet = ["▁", *LETTERS]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([text.lower().replace(" ", "▁")], trainer)
    state = json.loads(trained.to_str())["model"]
    words = GemmaTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])
    return words, Gemma2Model(Gemma2Config(**_language_model(len(words)), num_hidden_layers=1))


def qwen(layers: int, head: bool) -> tuple[Qwen2Tokenizer, Qwen3Model | Qwen3ForCausalLM]:
    """Single bytes and the turns of a conversation."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Qwen2Tokenizer(vocab={"<|endoftext|>": 0} | {letter: i + 1 for i, letter in enumerate(alphabet)})
    words.chat_template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    config = Qwen3Config(**_language_model(len(words)), num_hidden_layers=layers)
    return words, Qwen3ForCausalLM(config) if head else Qwen3Model(config)
