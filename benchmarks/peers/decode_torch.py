#!/usr/bin/env python3
"""Greedy decoding of one sequence by torch + transformers on the CPU: the peer of benchmarks/decode.

    python3 benchmarks/peers/decode_torch.py [--threads 2] [--tokens 64] [--rounds 5]

The same shape (Qwen2, hidden 768, 12 layers, 12 heads on 4 kv heads, ffn 2048, tied vocabulary of 32,768, fp32, random weights),
prompt of 16 tokens, transformers' generate() with its cache. Best and median of the rounds, prefill included (a small part of a round).
Needs torch and transformers (tried with 2.11.0 and 5.17.0).
"""
import argparse
import statistics
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4, intermediate_size=2048,
        vocab_size=32768, max_position_embeddings=4096, tie_word_embeddings=True, eos_token_id=None, pad_token_id=0)
    model = transformers.Qwen2ForCausalLM(config).float().eval()
    prompt = torch.full((1, 16), 7)

    def run(tokens):
        begin = time.perf_counter()
        with torch.no_grad():
            out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        assert out.shape[1] == 16 + tokens
        return (time.perf_counter() - begin) / tokens

    run(4)
    times = [run(args.tokens) for _ in range(args.rounds)]
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads: "
          f"best {1 / min(times):.2f} tok/s, median {1 / statistics.median(times):.2f} tok/s over {args.rounds} rounds of {args.tokens} tokens")


if __name__ == "__main__":
    main()
