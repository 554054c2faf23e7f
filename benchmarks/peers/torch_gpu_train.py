"""What a user would run instead of r1run on one GPU: transformers + torch, full fine-tuning of a Qwen2 or Llama shape.

    python torch_gpu_train.py --make DIR --config CONFIG_DIR           random weights of that shape, bf16, as a checkpoint
    python torch_gpu_train.py --model DIR --data ROWS.jsonl [--seq-len 4096] [--batch 4] [--micro-batch 4] [--steps 20]
                              [--lr 1e-5] [--state-dtype fp32|bf16] [--compile] [--against METRICS.jsonl] [--json FILE]

Same arithmetic as `r1run train`: weights, activations and products in bf16; with --state-dtype fp32, gradients are summed in
fp32 and AdamW keeps fp32 master weights and moments. ROWS are input_ids/labels of --seq-len tokens, taken in order; betas
0.9, 0.95, eps 1e-8, no decay, the gradient's norm clipped to 1, as r1run's defaults.

--against compares the loss and the gradient's norm of every step with the metrics that r1run wrote for the same checkpoint,
rows and options, and fails (exit code 1) where they differ by more than --loss-error or --norm-error (relative). The last
line is JSON: median tokens a second of the steps after 5, peak memory, largest differences. Needs torch and transformers.
"""

import argparse
import json
import statistics
import sys
import time


def make(directory, config_dir, seed):
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.AutoConfig.from_pretrained(config_dir)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="8GB")
    print(f"{directory}: {sum(p.numel() for p in model.parameters())} parameters")


def read_rows(path, count, seq_len):
    rows = []
    with open(path) as f:
        for line in f:
            rows.append(json.loads(line))
            if len(rows) == count:
                break
    if len(rows) < count or any(len(r["input_ids"]) != seq_len for r in rows):
        sys.exit(f"{path}: {count} rows of {seq_len} tokens are needed")
    return rows


class Master:
    """fp32 copies that AdamW works on; the model's own bf16 gradients are added to theirs after each micro-batch."""

    def __init__(self, parameters, fp32):
        import torch

        self.model = parameters
        self.own = [p.detach().float().requires_grad_() for p in parameters] if fp32 else parameters
        if fp32:
            for p in self.own:
                p.grad = torch.zeros_like(p)

    def gather(self):
        if self.own is self.model:
            return
        for p, m in zip(self.model, self.own):
            m.grad += p.grad
            p.grad = None

    def apply(self):
        if self.own is self.model:
            for p in self.model:
                p.grad = None
            return
        for p, m in zip(self.model, self.own):
            p.data.copy_(m.data)
            m.grad.zero_()


def train(args):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, attn_implementation="sdpa", dtype=torch.bfloat16).cuda()
    model.config.use_cache = False
    model.train()
    master = Master([p for p in model.parameters() if p.requires_grad], args.state_dtype == "fp32")
    optimizer = torch.optim.AdamW(master.own, lr=args.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)
    rows = read_rows(args.data, args.batch * args.steps, args.seq_len)
    ids = torch.tensor([r["input_ids"] for r in rows], device="cuda")
    labels = torch.tensor([r["labels"] for r in rows], device="cuda")

    def loss_of(x, y, total):
        logits = model(input_ids=x).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]).float(), y[:, 1:].reshape(-1),
                                                 reduction="sum") / total

    step_loss = torch.compile(loss_of) if args.compile else loss_of
    losses, norms, rates = [], [], []
    for step in range(args.steps):
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = torch.zeros((), device="cuda")
        first = step * args.batch
        total = args.batch * (args.seq_len - 1)
        for m in range(first, first + args.batch, args.micro_batch):
            part = step_loss(ids[m : m + args.micro_batch], labels[m : m + args.micro_batch], total)
            part.backward()
            loss += part.detach()
            master.gather()
        norm = torch.nn.utils.clip_grad_norm_(master.own, 1.0)
        optimizer.step()
        master.apply()
        losses.append(loss.item())
        norms.append(norm.item())
        rates.append(args.batch * args.seq_len / (time.perf_counter() - start))
    return losses, norms, rates, torch.cuda.max_memory_reserved()


def compare(path, losses, norms):
    steps = [m for m in map(json.loads, open(path)) if m.get("type") == "step"][: len(losses)]
    if len(steps) < len(losses):
        sys.exit(f"{path}: {len(steps)} steps, {len(losses)} are needed")
    loss_error = max(abs(m["loss"] / l - 1) for m, l in zip(steps, losses))
    norm_error = max(abs(m["grad_norm"] / n - 1) for m, n in zip(steps, norms))
    for m, l, n in zip(steps, losses, norms):
        print(f"step {m['step']:3}  loss {m['loss']:.6f} / {l:.6f}  norm {m['grad_norm']:.5f} / {n:.5f}  (r1run / torch)")
    return loss_error, norm_error


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--make", metavar="DIR")
    p.add_argument("--config", metavar="DIR")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--model")
    p.add_argument("--data")
    p.add_argument("--seq-len", type=int, default=4096)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--micro-batch", type=int, default=4)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--lr", type=float, default=1e-5)
    p.add_argument("--state-dtype", choices=["fp32", "bf16"], default="fp32")
    p.add_argument("--compile", action="store_true")
    p.add_argument("--against", metavar="METRICS")
    p.add_argument("--loss-error", type=float, default=5e-4)
    p.add_argument("--norm-error", type=float, default=0.01)
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    if args.make:
        return make(args.make, args.config, args.seed)
    import torch
    import transformers

    losses, norms, rates, peak = train(args)
    result = {"case": "torch gpu", "torch": torch.__version__, "transformers": transformers.__version__, "device": torch.cuda.get_device_name(),
              "compile": args.compile, "state_dtype": args.state_dtype, "tokens_per_step": args.batch * args.seq_len, "steps": len(losses),
              "tokens_per_second": round(statistics.median(rates[5:] or rates), 1), "peak_gib": round(peak / 2**30, 2), "loss": losses, "grad_norm": norms}
    if args.against:
        result["loss_error"], result["norm_error"] = compare(args.against, losses, norms)
        result["ok"] = result["loss_error"] <= args.loss_error and result["norm_error"] <= args.norm_error
    if args.json:
        with open(args.json, "w") as f:
            json.dump(result, f)
    print(json.dumps({k: v for k, v in result.items() if k not in ("loss", "grad_norm")}))
    return 0 if result.get("ok", True) else 1


if __name__ == "__main__":
    sys.exit(main())
