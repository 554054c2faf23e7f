"""Compares maps of one host as `r1run topo --json` prints them, pair by pair: this machine's own against other programs'."""


def host_of(document):
    """The one host's map of a document of `r1run topo --json`."""
    return document["kinds"][document["hosts"][0]["kind"]]


def cell(path):
    """A pair's relation as nvidia-smi words it; None: the source does not say.

    >>> cell({"path": "NVL", "nvlinks": 18}), cell({"path": "NODE"}), cell({})
    ('NV18', 'NODE', None)
    """
    if "path" not in path:
        return None
    if path["path"] == "NVL":
        return f"NV{path['nvlinks']}" if path.get("nvlinks") else "NV#"
    return path["path"]


def same(a, b, as_nccl):
    """NCCL has one word, PHB, for what nvidia-smi splits into PHB and NODE; a source may know NVLinks without their number.

    >>> same("PHB", "NODE", True), same("PHB", "NODE", False), same("NV18", "NV#", False), same("NV18", "NV12", True)
    (True, False, True, False)
    """
    if as_nccl:
        a, b = ("PHB" if x == "NODE" else x for x in (a, b))
    return a == b or ("NV#" in (a, b) and a[:2] == b[:2] == "NV")


def cpus(text):
    """
    >>> sorted(cpus("0-2,8"))
    [0, 1, 2, 8]
    """
    out = set()
    for part in filter(None, (text or "").split(",")):
        first, _, last = part.partition("-")
        out.update(range(int(first), int(last or first) + 1))
    return out


def numa_of(host, gpu):
    """(number, CPUs) of the NUMA node near a GPU; None where unknown."""
    node = host["numa_nodes"][gpu["numa"]] if "numa" in gpu else {}
    number = node.get("os_index", -1)
    return (number if number >= 0 else None), cpus(gpu.get("cpu_affinity") or node.get("cpus")) or None


def matched(ours, other):
    """Indices in `other` of our GPUs: by PCI address where both say it, else by number; None: it has none."""
    def key(host):
        return "busid" if all(g.get("busid") for g in host.get("gpus", [])) else "index"
    by = "busid" if key(ours) == key(other) == "busid" else "index"
    places = {g[by]: i for i, g in enumerate(other.get("gpus", []))}
    return [places.get(g[by]) for g in ours.get("gpus", [])]


def compare(ours, other, name, as_nccl=False, allowed=None):
    """{"pairs": GPU pairs compared, "nic_pairs", "numa": GPUs compared, "says": what disagrees or is not told, a line each}.

    `allowed`: CPUs of this process; a machine's map may have no others.
    """
    out = {"pairs": 0, "nic_pairs": 0, "numa": 0, "says": []}
    gpus, theirs = ours.get("gpus", []), matched(ours, other)
    if len(gpus) != len(other.get("gpus", [])):
        out["says"].append(f"{len(gpus)} GPUs, {name} has {len(other.get('gpus', []))}")
    for a, there in enumerate(theirs):
        who = f"GPU{gpus[a]['index']}"
        if there is None:
            out["says"].append(f"{who} is missing in {name}")
            continue
        for b in range(a + 1, len(gpus)):
            if theirs[b] is None:
                continue
            mine, its = cell(ours["gpu_gpu"][a][b]), cell(other["gpu_gpu"][there][theirs[b]])
            pair = f"{who}-GPU{gpus[b]['index']}"
            if mine is None or its is None:
                out["says"].append(f"{pair}: {mine or 'unknown'}, {name} says {its or 'nothing'}")
                continue
            out["pairs"] += 1
            if not same(mine, its, as_nccl):
                out["says"].append(f"{pair}: {mine}, {name} says {its}")
        nics = {n["name"]: i for i, n in enumerate(other.get("nics", [])) if n.get("name") and n.get("rdma")}
        for i, nic in enumerate(ours.get("nics", [])):
            if nic.get("name") not in nics or not nic.get("rdma"):
                continue
            mine, its = cell(ours["gpu_nic"][a][i]), cell(other["gpu_nic"][there][nics[nic["name"]]])
            if mine is None or its is None:
                continue
            out["nic_pairs"] += 1
            if not same(mine, its, as_nccl):
                out["says"].append(f"{who}-{nic['name']}: {mine}, {name} says {its}")
        (number, near), (its_number, its_near) = numa_of(ours, gpus[a]), numa_of(other, other["gpus"][there])
        if number is not None and its_number is not None:
            out["numa"] += 1
            if number != its_number:
                out["says"].append(f"{who} on NUMA node {number}, {name} says {its_number}")
        if near and its_near and allowed:
            near, its_near = near & allowed, its_near & allowed
        if near and its_near and near != its_near:
            out["says"].append(f"{who} is near {len(near)} CPUs, {name} says {len(its_near)}")
    return out
