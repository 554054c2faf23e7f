"""Random bf16 weights of a shape as a Hugging Face directory, so that cells of one shape load them in seconds.

    python3 random_model.py DIR '{"hidden_size": …, …}'     the shape as in config.json; with torch on its GPU, or a small one without
"""
import ctypes
import json
import random
import struct
import sys
import threading
from pathlib import Path

MOST_WITHOUT_TORCH = 10_000_000  # parameters


def tensors_of(config):
    """Names and shapes of a Qwen2 or Llama shape with an output layer of its own.

    >>> c = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=4, intermediate_size=16, vocab_size=32, model_type="qwen2")
    >>> len(tensors_of(c)), tensors_of(c)["model.layers.0.self_attn.k_proj.weight"], "model.layers.0.self_attn.k_proj.bias" in tensors_of(c)
    (15, (4, 8), True)
    """
    h, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or h // config["num_attention_heads"]
    q, kv = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    out = {"model.embed_tokens.weight": (v, h)}
    for i in range(config["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = (h,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            out[p + f"self_attn.{name}_proj.weight"] = (rows, h)
            if config["model_type"] == "qwen2":
                out[p + f"self_attn.{name}_proj.bias"] = (rows,)
        out[p + "self_attn.o_proj.weight"] = (h, q)
        out[p + "post_attention_layernorm.weight"] = (h,)
        out[p + "mlp.gate_proj.weight"], out[p + "mlp.up_proj.weight"] = (f, h), (f, h)
        out[p + "mlp.down_proj.weight"] = (h, f)
    out["model.norm.weight"], out["lm_head.weight"] = (h,), (v, h)
    return out


def elements(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def parameters(config):
    return sum(map(elements, tensors_of(config).values()))


def python_values(seed):
    r = random.Random(seed)
    return lambda n, ones: b"".join(struct.pack("<f", 1.0 if ones else r.gauss(0, 0.02))[2:] for _ in range(n))


def torch_values(seed, most):
    """Drawn on the GPU, copied through one pinned buffer."""
    import torch
    generator = torch.Generator(device="cuda").manual_seed(seed)
    host = torch.empty(most, dtype=torch.bfloat16, pin_memory=True)

    def values(n, ones):
        drawn = torch.empty(n, dtype=torch.bfloat16, device="cuda")
        host[:n].copy_(drawn.fill_(1) if ones else drawn.normal_(0, 0.02, generator=generator))
        return memoryview((ctypes.c_char * (2 * n)).from_address(host.data_ptr()))
    return values


def write_file(path, tensors, values):
    header, at = {}, 0
    for name, shape in tensors.items():
        size = 2 * elements(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            f.write(values(elements(shape), name.endswith("norm.weight")))


def make(directory, config):
    """Throws where torch is missing and the model too large to do without."""
    directory, tensors = Path(directory), tensors_of(config)
    small = parameters(config) <= MOST_WITHOUT_TORCH
    count = 1 if small else 4
    shards = [dict(list(tensors.items())[i::count]) for i in range(count)]
    names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    failed = []

    def shard(i):
        try:
            values = python_values(i) if small else torch_values(i, max(map(elements, shards[i].values())))
            write_file(directory / names[i], shards[i], values)
        except Exception as e:
            failed.append(e)

    threads = [threading.Thread(target=shard, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise failed[0]
    (directory / "config.json").write_text(json.dumps(config))
    # Last: what makes the directory complete.
    (directory / "model.safetensors.index.json").write_text(json.dumps({
        "metadata": {"total_size": 2 * parameters(config)},
        "weight_map": {name: file for file, part in zip(names, shards) for name in part}}))


if __name__ == "__main__":
    make(sys.argv[1], json.loads(sys.argv[2]))
