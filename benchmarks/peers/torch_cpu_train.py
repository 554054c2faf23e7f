"""What a user would run instead of r1run on a CPU: transformers + torch, full fine-tuning in fp32 of the shape that
benchmarks/train/cpu_speed measures (random weights and tokens; the arithmetic is the same). Prints one JSON line.

    python torch_cpu_train.py [--threads 2] [--rows 4] [--steps 3] [--micro-batch 1] [--compile]

Needs torch and transformers from PyPI. A step is `rows` rows of 512 tokens, gradients accumulated over micro-batches, the
gradient clipped, AdamW (fused); the fastest of `steps` after one to warm up counts.
"""

import argparse
import json
import os
import time


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="processor time of one thread, as cpu_speed --cpu-time")
    args = parser.parse_args()
    if args.cpu_time:
        args.threads = 1
    clock = time.process_time if args.cpu_time else time.perf_counter
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))

    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    config = transformers.Qwen2Config(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=4,
                                      intermediate_size=2048, vocab_size=32000, max_position_embeddings=512,
                                      tie_word_embeddings=True, use_cache=False)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    tokens = 512
    ids = torch.randint(0, config.vocab_size, (args.rows, tokens))

    def loss_of(rows):
        logits = model(input_ids=rows).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, config.vocab_size), rows[:, 1:].reshape(-1),
                                                 reduction="sum") / (args.rows * (tokens - 1))

    step_loss = torch.compile(loss_of) if args.compile else loss_of
    a = torch.randn(1024, 1024)
    b = torch.randn(1024, 1024)
    for _ in range(3):
        a @ b
    start = clock()
    products = 0
    while clock() - start < 1.0:
        for _ in range(10):
            a @ b
        products += 10
    gemm = 2 * 1024**3 * products / (clock() - start)

    seconds = []
    for _ in range(args.steps + 1):
        start = clock()
        for first in range(0, args.rows, args.micro_batch):
            step_loss(ids[first : first + args.micro_batch]).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(clock() - start)
    best = min(seconds[1:])
    print(json.dumps({"case": "torch cpu", "torch": torch.__version__, "transformers": transformers.__version__,
                      "threads": args.threads, "rows": args.rows, "micro_batch": args.micro_batch, "compile": args.compile, "cpu_time": args.cpu_time,
                      "gemm_gflops": round(gemm / 1e9, 1), "seconds_per_step": round(best, 3),
                      "tokens_per_second": round(args.rows * tokens / best, 1), "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
