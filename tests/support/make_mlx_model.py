"""Write a tiny MLX model, its weights drawn at random: python make_mlx_model.py FOLDER.

Runs in the environment that has MLX; the tests' own has not.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL = ["<s>", "</s>"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"

folder = Path(sys.argv[1])
folder.mkdir(parents=True)
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {text: number for number, text in enumerate([*SPECIAL, *alphabet])}
shape = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": len(vocabulary),
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
mx.random.seed(7)
weights = dict(tree_flatten(Model(ModelArgs.from_dict(shape)).parameters()))
mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
(folder / "config.json").write_text(json.dumps(shape))
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer.add_special_tokens(SPECIAL)
tokenizer.save(str(folder / "tokenizer.json"))
named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
(folder / "tokenizer_config.json").write_text(json.dumps({**named, "chat_template": TEMPLATE}))
