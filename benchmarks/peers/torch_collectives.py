"""The collectives of torch.distributed over NCCL, measured as bench_gpu_collectives measures ours.

  torchrun --standalone --nproc-per-node N torch_collectives.py [--max BYTES] [--dtype fp32|bf16]
  mpirun -np N python3 torch_collectives.py ...

Calls are enqueued back to back, the stream is awaited once; the slowest rank's time for one call, median of five runs.
"""
import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist

parser = argparse.ArgumentParser()
parser.add_argument("--op", default="all_reduce,all_gather,reduce_scatter,send_recv")
parser.add_argument("--min", type=int, default=8192)
parser.add_argument("--max", type=int, default=1 << 30)
parser.add_argument("--dtype", default="fp32")
parser.add_argument("--seconds", type=float, default=0.25)
args = parser.parse_args()

rank = int(os.environ.get("RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
world = int(os.environ.get("WORLD_SIZE", os.environ.get("OMPI_COMM_WORLD_SIZE", "1")))
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("MASTER_PORT", "29517")
torch.cuda.set_device(rank % torch.cuda.device_count())
device = torch.device("cuda", torch.cuda.current_device())
dist.init_process_group("nccl", rank=rank, world_size=world, device_id=device)
dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
size = torch.finfo(dtype).bits // 8
a = torch.zeros(args.max // size, dtype=dtype, device=device)
b = torch.zeros(args.max // size, dtype=dtype, device=device)


def call(op, n):
    part = n // world
    if op == "all_reduce":
        dist.all_reduce(a[:n])
    elif op == "all_gather":
        dist.all_gather_into_tensor(b[: part * world], a[:part])
    elif op == "reduce_scatter":
        dist.reduce_scatter_tensor(b[:part], a[: part * world])
    else:
        ops = [dist.P2POp(dist.isend, a[:n], (rank + 1) % world), dist.P2POp(dist.irecv, b[:n], (rank - 1) % world)]
        for w in dist.batch_isend_irecv(ops):
            w.wait()


def run(op, n, iterations):
    torch.cuda.synchronize()
    dist.barrier()
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(iterations):
        call(op, n)
    torch.cuda.synchronize()
    t = torch.tensor([(time.perf_counter() - begin) / iterations], dtype=torch.float64, device=device)
    dist.all_reduce(t, op=dist.ReduceOp.MAX)
    return t.item()


if rank == 0:
    print(f"# {torch.cuda.get_device_name()}; {world} ranks; torch {torch.__version__}, NCCL {'.'.join(map(str, torch.cuda.nccl.version()))}")
for op in args.op.split(","):
    nbytes = args.min
    while nbytes <= args.max:
        n = nbytes // size
        run(op, n, 3)
        guess = run(op, n, 3)
        iterations = int(min(max(args.seconds / 5 / guess, 3), 500))
        times = sorted(run(op, n, iterations) for _ in range(5))
        t = statistics.median(times)
        factor = {"all_reduce": 2 * (world - 1) / world, "send_recv": 1}.get(op, (world - 1) / world)
        if rank == 0:
            print(f"  {'torch':10} {op:14} {nbytes:11} {t * 1e6:10.1f} {f'{times[0] * 1e6:.1f}..{times[-1] * 1e6:.1f}':>18} "
                  f"{nbytes / t / 1e9:10.2f} {nbytes / t / 1e9 * factor:10.2f}", flush=True)
        nbytes *= 2
dist.destroy_process_group()
