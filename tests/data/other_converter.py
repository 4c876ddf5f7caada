"""A converter as somebody else would write one: an OLMo 2 folder to GGUF by the gguf package alone."""

import argparse
import json
from pathlib import Path

import gguf
import ml_dtypes  # noqa: F401 - gives NumPy the type bfloat16
import numpy as np
from safetensors.numpy import load_file

parser = argparse.ArgumentParser()
parser.add_argument("model", type=Path)
parser.add_argument("--outtype", choices=("f32", "f16"))
parser.add_argument("--outfile")
given = parser.parse_args()
config = json.loads((given.model / "config.json").read_text())
tokenizer = json.loads((given.model / "tokenizer.json").read_text())

writer = gguf.GGUFWriter(given.outfile, "olmo2")
writer.add_block_count(config["num_hidden_layers"])
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(config["hidden_size"])
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_freq_base(config["rope_theta"])

texts = {number: text for text, number in tokenizer["model"]["vocab"].items()}
added = {each["id"]: each["content"] for each in tokenizer["added_tokens"]}
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("dbrx")
writer.add_token_list([(texts | added)[number] for number in range(config["vocab_size"])])
control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
writer.add_token_types([control if number in added else normal for number in range(config["vocab_size"])])
writer.add_token_merges(
    [each if isinstance(each, str) else " ".join(each) for each in tokenizer["model"]["merges"]]
)
writer.add_add_bos_token(False)

names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.OLMO2, config["num_hidden_layers"])
for name, values in load_file(given.model / "model.safetensors").items():
    half = values.ndim > 1 and given.outtype == "f16"
    target = names.get_name(name, try_suffixes=(".weight",))
    writer.add_tensor(target, values.astype(np.float32).astype(np.float16 if half else np.float32))
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
