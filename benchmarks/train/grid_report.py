"""The report of the layout grid: results.json → Markdown. Pure."""

BACKENDS = ("nccl", "ipc", "ipc-copies", "torch")


def plan_shares(plan):
    """What a plan (`r1run plan --json`) predicts, in the terms of what is measured: seconds, bubble and exposed communication as
    shares of the step, bytes of the fullest device; {} where there is no plan.

    >>> p = plan_shares({"step_time": dict(seconds=2.0, bubble_fraction=0.1, tp_communication=0.2, dp_communication=0.1, optimizer=0.1, row_sums=0), "device_bytes": 2**30})
    >>> round(p["bubble"], 4), round(p["exposed"], 4), p["bytes"] == 2**30
    (0.09, 0.15, True)
    """
    if "step_time" not in plan:
        return {}
    t = plan["step_time"]
    pipeline = t["seconds"] - t["dp_communication"] - t["optimizer"] - t["row_sums"]
    return {"seconds": t["seconds"], "bubble": t["bubble_fraction"] * pipeline / t["seconds"],
            "exposed": (t["tp_communication"] + t["dp_communication"]) / t["seconds"], "bytes": plan["device_bytes"]}


def beside(measured, planned, form):
    """"1.417 (1.300)": measured, then the plan's."""
    show = lambda x: "–" if x is None else form(x)
    return f"{show(measured)} ({show(planned)})"


def percent(x):
    return f"{100 * x:.1f} %"


def cells(results):
    return {k[6:]: r for k, r in results.items() if k.startswith("train ") and "tok_s_gpu" in r}


def cells_table(results):
    lines = ["## Training cells", "", "Measured, and in brackets what `r1run plan` predicts. Bubble: share of the step in which a rank's stream stands in "
             "an operation along the pipeline;", "exposed communication: in any other operation between ranks; both of profiled steps, mean of the ranks.", "",
             "| cell | pp×dp×tp | tokens a step | tok/s per GPU | MFU | step s | bubble | exposed | peak GiB a GPU | comm |", "|---" * 10 + "|"]
    for name, r in cells(results).items():
        p, c = plan_shares(r.get("plan", {})), r["cell"]
        planned_rate = c["tokens"] / p["seconds"] / r["gpus"] if p else None
        lines.append("| " + " | ".join([
            name, c["mesh"].replace("x", "×"), f"{c['tokens']:,}", beside(r["tok_s_gpu"], planned_rate, lambda x: f"{x:,.0f}"), percent(r["mfu"]),
            beside(r["step_s"], p.get("seconds"), lambda x: f"{x:.3f}"), beside(r.get("bubble"), p.get("bubble"), percent),
            beside(r.get("exposed"), p.get("exposed"), percent),
            beside(r["peak_mib"] / 1024, p["bytes"] / 2**30 if p else None, lambda x: f"{x:.1f}"), r.get("comm", "")]) + " |")
    return lines + [""]


def collectives_table(results):
    rows = {k: results.get(f"collectives {k}", {}).get("rows", {}) for k in BACKENDS}
    rows = {k: r for k, r in rows.items() if r}
    if not rows:
        return []
    torch = rows.get("torch", {})
    lines = ["## Collectives", "", "fp32, µs a call, bus bandwidth in GB/s as nccl-tests defines it, and its ratio to torch.distributed's (NCCL).", "",
             "| operation | bytes | " + " | ".join(rows) + " |", "|---" * (2 + len(rows)) + "|"]
    for key in dict.fromkeys(k for r in rows.values() for k in r):
        def show(kind, r):
            if key not in r:
                return "–"
            ratio = f", {r[key]['busbw'] / torch[key]['busbw']:.2f}" if kind != "torch" and torch.get(key, {}).get("busbw") else ""
            return f"{r[key]['us']:.1f} ({r[key]['busbw']:.1f}{ratio})"
        op, size = key.split()
        lines.append(f"| {op} | {int(size):,} | " + " | ".join(show(k, r) for k, r in rows.items()) + " |")
    return lines + [""]


def aims(results):
    """(aim, reached, met) of everything that has an aim and was measured.

    >>> us = {"all_reduce 8192": {"us": 12.0, "busbw": 1.0}}
    >>> aims({"collectives nccl": {"rows": us}, "collectives ipc": {"rows": {"all_reduce 8192": {"us": 6.1, "busbw": 2.0}}}})
    [('all_reduce: ipc at most half of NCCL’s time below 256 KiB', '0.51 at 8192 bytes', False)]
    """
    out = []
    rows = {k: results.get(f"collectives {k}", {}).get("rows", {}) for k in BACKENDS}
    for op in dict.fromkeys(k.split()[0] for r in rows.values() for k in r):
        for kind in ("nccl", "ipc"):
            ratios = [(rows[kind][k]["busbw"] / t["busbw"], k) for k, t in rows["torch"].items()
                      if k.startswith(op + " ") and k in rows[kind] and t["busbw"] > 0]
            if ratios:
                worst, key = min(ratios)
                out.append((f"{op}: {kind} at least 95 % of torch’s bandwidth", f"{percent(worst)} at {key.split()[1]} bytes, the worst size", worst >= 0.95))
        small = [(rows["ipc"][k]["us"] / n["us"], k) for k, n in rows["nccl"].items()
                 if k.startswith(op + " ") and int(k.split()[1]) < 262144 and k in rows["ipc"]]
        if small:
            worst, key = max(small)
            out.append((f"{op}: ipc at most half of NCCL’s time below 256 KiB", f"{worst:.2f} at {key.split()[1]} bytes", worst <= 0.5))
    for name, r in cells(results).items():
        if "aim" in r:
            out.append((f"{name}: {r['aim']:,} tok/s per GPU", f"{r['tok_s_gpu']:,.0f}", r["tok_s_gpu"] >= r["aim"]))
        if r["cell"].get("bubble_aim") and "bubble" in r:
            out.append((f"{name}: bubble at most {percent(r['cell']['bubble_aim'])} of the step", percent(r["bubble"]), r["bubble"] <= r["cell"]["bubble_aim"]))
    return out


def checks(results):
    lines = ["## Checks", "", "| what | outcome | seconds | |", "|---|---|---|---|"]
    for name, r in results.items():
        if name == "about" or name.startswith(("train ", "collectives ", "model ")):
            continue
        what = r.get("compared") or (r.get("says") or [""])[-1]
        lines.append(f"| {name} | {'passed' if r['ok'] else 'FAILED'} | {r.get('seconds', r.get('took_s', ''))} | {str(what)[:200].replace('|', '/')} |")
    return lines + [""]


def report(results):
    about = results.get("about", {})
    lines = ["# Layout grid", ""]
    lines += [f"- {k}: {v}" for k, v in about.items() if k not in ("ok", "took_s")] + [""]
    lines += cells_table(results) + collectives_table(results)
    wanted = aims(results)
    if wanted:
        lines += ["## Aims", "", "| aim | reached | |", "|---|---|---|"] + [f"| {a} | {r} | {'met' if met else 'missed'} |" for a, r, met in wanted] + [""]
    lines += checks(results)
    missed = [f"- {k}: {' / '.join(map(str, r.get('says', [])))[:400]}" for k, r in results.items() if not r["ok"]]
    return "\n".join(lines + (["## Failed stages", ""] + missed if missed else [])) + "\n"
