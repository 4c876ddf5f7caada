"""Make a tiny random checkpoint of every family, with its logits as `transformers` computes them.

    python training/make_family_models.py src/bitloss/assets/texts/calibration.txt tests/data/families

Settings are in `family_configs.py`. Weights are written by `save_pretrained`, so tensor names and shapes (experts,
fused projections) are those of published checkpoints. Byte-level vocabularies carry the splitting rule, the
`ignore_merges` flag, the normaliser and the post-processor of the family's published tokenizer.json. SentencePiece
vocabularies come as `tokenizer.model`; Gemma's also as the tokenizer.json published beside it, and `llama2-json` as
that alone.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM

from demo_tokenizer import LLAMA3, write_json
from family_configs import BPE_VOCAB, FAMILY_MODELS, SPM_PIECES, FamilyModel
from make_golden_logits import write_golden_logits

# Gemma's vocabulary begins with such pieces: names of controls, and runs of line ends and of spaces.
GEMMA_PIECES = (
    "<mask>",
    "<unused0>",
    "<start_of_turn>",
    "<end_of_turn>",
    "\n\n",
    *("▁" * n for n in range(2, 9)),
)
WEIGHT_STD, GAIN_STD = 0.1, 0.1
# ggml takes GELU from a table of float16: smaller activations keep what that costs below the tests' tolerance.
GEMMA_STDS = {"gemma2": 0.06, "gemma3_text": 0.05}
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + m['content'] + '<|im_end|>' }}{% endfor %}"
# Published names of the last three tokens of the byte-level vocabularies, and BOS put before a text.
SPECIALS = {
    "qwen2": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None),
    "llama-bpe": (("<|begin_of_text|>", "<|im_end|>", "<|end_of_text|>"), None),
    "dbrx": (("<|endoftext|>", "<|im_end|>", "<|dummy_85|>"), None),
    "refact": (("<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>"), None),
    "smollm": (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None),
}


# Tokens in front of the vocabulary instead.
FIRST = {"refact": ["<|end_of_text|>"], "smollm": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]}


def byte_level(kind: str, text: str) -> Tokenizer:
    """Train a byte-level vocabulary of `BPE_VOCAB` tokens, the last three of them added."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama-bpe"))
    if kind in {"refact", "smollm"}:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        # Vocabularies that came from tiktoken keep what the pattern matches; the others split at it.
        kept = {"behavior": "removed", "invert": True} if kind == "dbrx" else {"behavior": "isolated"}
        split = pre_tokenizers.Split(Regex(QWEN2 if kind == "qwen2" else LLAMA3), **kept)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_VOCAB - 3,
        special_tokens=FIRST.get(kind, []),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    specials = SPECIALS[kind][0]
    if kind == "refact":  # Granite's text end is its first token and both BOS and EOS
        specials = ("<fim_middle>", *specials[1:])
    if kind == "smollm":  # all of them in front; the last three are its next special tokens
        specials = ("<repo_name>", "<reponame>", "<file_sep>")
    tokenizer.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in specials])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if tokenizer.get_vocab_size() != BPE_VOCAB:
        raise ValueError(f"{kind}: {tokenizer.get_vocab_size()} tokens, not {BPE_VOCAB}")
    return tokenizer


def byte_level_config(kind: str, architecture: str) -> dict[str, Any]:
    """Return tokenizer_config.json in the published manner of the family."""
    first, second, third = SPECIALS[kind][0]
    own: dict[str, dict[str, Any]] = {
        "qwen2": {
            "add_bos_token": False,
            "bos_token": None,
            "eos_token": third,
            "pad_token": first,
            "tokenizer_class": "Qwen2Tokenizer",
        },
        "llama-bpe": {
            "bos_token": None,
            "eos_token": second,
            "pad_token": second,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
        "dbrx": {
            "bos_token": first,
            "eos_token": second if architecture == "Phi3ForCausalLM" else first,
            "pad_token": third,
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": first,
        },
        "smollm": {
            "add_prefix_space": False,
            "bos_token": first,
            "eos_token": first,
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": first,
        },
        "refact": {
            "add_bos_token": False,
            "bos_token": first,
            "eos_token": first,
            "pad_token": first,
            "tokenizer_class": "GPT2Tokenizer",
            "unk_token": first,
        },
    }
    shared = {"chat_template": CHAT, "clean_up_tokenization_spaces": False, "model_max_length": 2048}
    return dict(sorted((shared | own[kind]).items()))


def train_sentencepiece(text: str, *, gemma: bool) -> bytes:
    """Train a `tokenizer.model` shaped as Llama 2's, or as Gemma's (no space in front, other special ids)."""
    written = io.BytesIO()
    own: dict[str, Any] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    if gemma:
        own = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
        own |= {"bos_piece": "<bos>", "eos_piece": "<eos>"}
        own["user_defined_symbols"] = list(GEMMA_PIECES)
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
        num_threads=1,
        minloglevel=2,
        **own,
    )
    return written.getvalue()


def tokenizer_json(model: bytes, *, gemma: bool) -> Tokenizer:
    """Return the same vocabulary as a tokenizer.json: byte-fallback BPE, merges in the order of their scores."""
    library = SentencePieceProcessor(model_proto=model)
    texts = [library.id_to_piece(number) for number in range(library.vocab_size())]
    ids = {text: number for number, text in enumerate(texts)}
    plain = [
        n
        for n in range(len(texts))
        if not (library.is_control(n) or library.is_unknown(n) or library.is_byte(n))
    ]
    merges: list[tuple[str, str]] = []
    for number in sorted(plain, key=lambda n: -library.get_score(n)):
        text = texts[number]
        parts = [(text[:at], text[at:]) for at in range(1, len(text))]
        known = [pair for pair in parts if pair[0] in ids and pair[1] in ids and text[0] != "<"]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    unknown = "<unk>"
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    replace = normalizers.Replace(" ", "▁")
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.normalizer = replace if gemma else normalizers.Sequence([normalizers.Prepend("▁"), replace])
    tokenizer.decoder = decoders.Sequence(steps if gemma else [*steps, strip])
    if gemma:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    bos = "<bos>" if gemma else "<s>"
    tokenizer.add_special_tokens([AddedToken(each, normalized=False, special=True) for each in specials])
    if gemma:
        added = texts[4 : 4 + len(GEMMA_PIECES)]
        tokenizer.add_tokens([AddedToken(each, normalized=False, special=False) for each in added])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def write_spm(kind: str, text: str, folder: Path, architecture: str) -> None:
    """Write the SentencePiece vocabulary's files."""
    gemma = kind == "spm-gemma"
    model = train_sentencepiece(text, gemma=gemma)
    names = ("<pad>", "<eos>", "<bos>", "<unk>") if gemma else ("<unk>", "<s>", "</s>")
    added = {str(n): {"content": name, "normalized": False, "special": True} for n, name in enumerate(names)}
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>" if gemma else "<s>",
        "chat_template": CHAT,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<eos>" if gemma else "</s>",
        "model_max_length": 2048,
        "tokenizer_class": "GemmaTokenizer" if gemma else "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    if gemma:
        config["pad_token"] = "<pad>"
        for number, name in enumerate(GEMMA_PIECES, start=4):
            special = name.endswith("_turn>")
            added[str(number)] = {"content": name, "normalized": False, "special": special}
    elif architecture == "Phi3ForCausalLM":
        for number, name in enumerate(("<|endoftext|>", "<|assistant|>", "<|user|>"), start=SPM_PIECES):
            added[str(number)] = {
                "content": name,
                "normalized": False,
                "special": True,
                "rstrip": number > SPM_PIECES,
            }
        config |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_json(
        folder / "tokenizer_config.json", dict(sorted((config | {"added_tokens_decoder": added}).items()))
    )
    if kind != "spm-json":
        (folder / "tokenizer.model").write_bytes(model)
    if kind == "spm":
        return
    whole = tokenizer_json(model, gemma=gemma)
    library = SentencePieceProcessor(model_proto=model)
    told = whole.encode(text, add_special_tokens=False).ids
    if told != library.encode(text):
        raise ValueError(f"{folder.name}: tokenizer.json and tokenizer.model tokenize differently")
    whole.save(str(folder / "tokenizer.json"))


def write_weights(folder: Path, seed: int) -> None:
    """Write seeded random BF16 weights under the names `save_pretrained` gives them."""
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    with tempfile.TemporaryDirectory() as temporary:
        network.save_pretrained(temporary)
        weights = load_file(Path(temporary) / "model.safetensors")
    random = torch.Generator().manual_seed(seed)
    shifted = network.config.model_type.startswith("gemma")  # Gemma's gains are stored less one
    std = GEMMA_STDS.get(network.config.model_type, WEIGHT_STD)
    for name, weight in sorted(weights.items()):
        noise = torch.randn(weight.shape, generator=random)
        gain = (0.0 if shifted else 1.0) + noise * GAIN_STD
        weights[name] = (noise * std if weight.ndim > 1 else gain).bfloat16()
    save_file(dict(sorted(weights.items())), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def make(model: FamilyModel, text: str, root: Path, seed: int) -> None:
    """Write one checkpoint and its golden logits."""
    folder = root / model.name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", model.config)
    if model.vocabulary.startswith("spm"):
        write_spm(model.vocabulary, text, folder, model.architecture)
    else:
        byte_level(model.vocabulary, text).save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", byte_level_config(model.vocabulary, model.architecture))
    write_weights(folder, seed)
    write_golden_logits(folder, text, folder / "golden_logits.npz")


def main() -> None:
    """Parse the command line and write all checkpoints."""
    parser = argparse.ArgumentParser(description="Make the tiny checkpoints of all families.")
    parser.add_argument("text", type=Path, help="text the tokenizers are trained on and the logits come from")
    parser.add_argument("out", type=Path, help="folder to write one checkpoint folder each into")
    parser.add_argument("--only", help="name of the one to make")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    for seed, model in enumerate(FAMILY_MODELS, start=11):
        if args.only in {None, model.name}:
            make(model, text, args.out, seed)
            print(model.name, sum(f.stat().st_size for f in (args.out / model.name).iterdir()))


if __name__ == "__main__":
    main()
