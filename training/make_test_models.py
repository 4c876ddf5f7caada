"""Make the tiny random checkpoints of the tests, each with its logits as `transformers` computes them.

    python training/make_test_models.py src/bitloss/assets/texts/calibration.txt tests/data/checkpoints

- `mistral-odd`: every row length is a multiple of 32 and none of 256, so the types with 256-wide blocks do
  not fit and llama.cpp falls back to others.
- `llama-tied`: the output layer is the embedding table, positions use Llama 3's frequency scaling, and the
  special tokens are added tokens after the vocabulary, as Llama 3 has them.
- `llama-spm`: a SentencePiece vocabulary shaped as Llama 2's (BPE, byte fallback, nothing normalised), with
  tokens added in both files that may add some, and fewer tokens than rows in the embedding. Beside it the ids the
  sentencepiece library makes of texts in many scripts (`sentencepiece_ids.json`).

Weights are normal with a spread that keeps the logits apart from each other, and norm gains differ from 1, so
that a transposed, permuted or forgotten tensor shows in the golden logits.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, AutoModelForCausalLM

from demo_tokenizer import (
    LLAMA3,
    MISTRAL_CHAT_TEMPLATE,
    MISTRAL_SPECIALS,
    TEKKEN,
    mistral_tokenizer_config,
    train_tokenizer,
    write_json,
    write_tokenizer,
)
from make_golden_logits import write_golden_logits

VOCAB_SIZE = 512
WEIGHT_STD = 0.1
GAIN_STD = 0.1
LLAMA_BOS, LLAMA_EOS = "<|begin_of_text|>", "<|end_of_text|>"

MISTRAL_ODD: dict[str, object] = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 96,
    "intermediate_size": 288,
    "max_position_embeddings": 2048,
    "model_type": "mistral",
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB_SIZE,
}
LLAMA_TIED: dict[str, object] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": VOCAB_SIZE - 2,
    "eos_token_id": VOCAB_SIZE - 1,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "intermediate_size": 256,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    # An original context of 256 puts this head size into all three bands: kept, blended, divided.
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 256,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCAB_SIZE,
}
SPM_PIECES, SPM_VOCAB = 400, 408
SPM_ADDED = {"[note]": 400}
SPM_DECODER = {0: "<unk>", 1: "<s>", 2: "</s>", 3: "<step>", 401: "<|tool|>", 402: "\u2581(a b)\u2581"}
LLAMA_SPM: dict[str, object] = LLAMA_TIED | {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_key_value_heads": 4,
    "pad_token_id": 401,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": SPM_VOCAB,
}
# Every text is tokenized whole and line by line.
SPM_TEXT = """The quick brown fox jumped over 13 lazy dogs in 2024; they didn't care, we'LL see. I'M SURE it's "fine"...
Größe, Übermut und Straße: naïve café, l'été à Noël. Ελληνικά γράμματα και ΚΕΦΑΛΑΙΑ. Съешь ещё этих мягких БУЛОК.
日本語のテキストと漢字、カタカナ。 中文字符测试，一二三。 한국어 문장입니다. עברית ועוד. النص العربي ١٢٣ هنا.
हिन्दी में पाठ और ไม่มีช่องว่าง e\u0301te\u0301 👍🏽 🤦🏼\u200d♂️ ﬁ ligature \u00a0nbsp\u2003em   three   spaces
\tdef f(x):\n\t\treturn x**2 + 1_000_000.50 / 3  # comment //path/to/file\r\n\r\n   \n \n  end   of\t \ttext
 leading and trailing \n   three before\n\u2581the sign itself\u2581\u2581
"""


@dataclass(frozen=True, slots=True)
class TinyModel:
    """One checkpoint to make."""

    name: str
    config: dict[str, object]
    seed: int


TINY_MODELS = (
    TinyModel("mistral-odd", MISTRAL_ODD, 1),
    TinyModel("llama-tied", LLAMA_TIED, 2),
    TinyModel("llama-spm", LLAMA_SPM, 3),
)


def llama_tokenizer(text: str) -> Tokenizer:
    """Return a tokenizer shaped as Llama 3's: special tokens added after the vocabulary, BOS put in front."""
    trained = train_tokenizer([text], vocab_size=VOCAB_SIZE - 2, split=LLAMA3, specials=(), bos=None)
    trained.add_special_tokens([LLAMA_BOS, LLAMA_EOS])
    trained.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{LLAMA_BOS} $A",
                pair=f"{LLAMA_BOS} $A {LLAMA_BOS}:1 $B:1",
                special_tokens=[(LLAMA_BOS, trained.token_to_id(LLAMA_BOS))],
            ),
        ]
    )
    return trained


def write_sentencepiece(text: str, folder: Path) -> None:
    """Train and write a `tokenizer.model` with its settings, and the ids the library makes of `SPM_TEXT`."""
    written = io.BytesIO()  # given a file name, the trainer would write its path into the model
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=SPM_PIECES,
        character_coverage=0.995,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<step>"],
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    decoder = {
        str(number): {"content": content, "normalized": False, "special": number < 3}
        for number, content in SPM_DECODER.items()
    }
    config: dict[str, object] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "bos_token": "<s>",
        "chat_template": MISTRAL_CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": True,
        "model_max_length": 2048,
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "added_tokens.json", SPM_ADDED)
    library = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    texts = [SPM_TEXT, *SPM_TEXT.splitlines(keepends=True)]
    ids = [{"text": each, "ids": library.encode(each)} for each in texts]
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in ids)
    (folder / "sentencepiece_ids.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8", newline="\n")


def write_weights(model: TinyModel, folder: Path) -> None:
    """Write seeded random BF16 weights under `transformers`' names; a tied output layer is left out."""
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    random = torch.Generator().manual_seed(model.seed)
    weights: dict[str, torch.Tensor] = {}
    for name, parameter in network.named_parameters():  # names a tied tensor once
        noise = torch.randn(parameter.shape, generator=random)
        value = noise * WEIGHT_STD if parameter.ndim == 2 else 1 + noise * GAIN_STD
        weights[name] = value.bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone


def make(model: TinyModel, text: str, root: Path) -> None:
    """Write tokenizer, configs, weights and golden logits of one checkpoint."""
    folder = root / model.name
    folder.mkdir(parents=True, exist_ok=True)
    if model.config["model_type"] == "mistral":
        tokenizer = train_tokenizer(
            [text], vocab_size=VOCAB_SIZE, split=TEKKEN, specials=MISTRAL_SPECIALS, bos="<s>"
        )
        write_tokenizer(tokenizer, folder, config=mistral_tokenizer_config(2048))
    elif model.config["vocab_size"] == SPM_VOCAB:
        write_sentencepiece(text, folder)
    else:
        config: dict[str, object] = {
            "bos_token": LLAMA_BOS,
            "clean_up_tokenization_spaces": True,
            "eos_token": LLAMA_EOS,
            "model_max_length": 2048,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }
        write_tokenizer(llama_tokenizer(text), folder, config=config)
    write_json(folder / "config.json", model.config)
    write_weights(model, folder)
    write_golden_logits(folder, text, folder / "golden_logits.npz")


def main() -> None:
    """Parse the command line and write all checkpoints."""
    parser = argparse.ArgumentParser(description="Make the tests' tiny random checkpoints.")
    parser.add_argument("text", type=Path, help="text the tokenizers are trained on and the logits come from")
    parser.add_argument("out", type=Path, help="folder to write one checkpoint folder each into")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    for model in TINY_MODELS:
        make(model, text, args.out)


if __name__ == "__main__":
    main()
