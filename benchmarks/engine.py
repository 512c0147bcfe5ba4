"""What the Fisher costs an image of 224 pixels, beside what a framework's plain step costs, on one core.

The plain step is forward, backward and squares of the batch gradients, on the network as it was built: what one step of
the reference implementation's Monte Carlo does, data aside. Late layers: a pass that ends before the first filters of
`early_units`; a draw: the mean of montecarlo at early_share 0.5. Random weights: they change no time.
Run with `make bench`, or `python benchmarks/engine.py`; docs/benchmarks.md has the figures.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from t2v_core.fisher.montecarlo import early_units
from t2v_core.fisher.passes import sample_filter_norms
from t2v_core.fisher.recorder import fast_convolutions
from t2v_core.memory import keep_freed_memory
from t2v_core.probes import build_network, load_probe

B = 8
GIGAFLOP = {"resnet34": 18.3}
"""Of forward, backward and norms of one image, Gram matrices where they are taken; multiply and add are two."""


def interleaved(runs: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """The best time of each, seconds."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do; both sides gain
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    c, w = torch.randn(8, 256, 56, 56).contiguous(memory_format=torch.channels_last), torch.randn(256, 256, 3, 3)
    best = interleaved({"product": lambda: a @ b, "convolution": lambda: torch.conv2d(c, w, padding=1)})
    peak = {
        "product": 2 * 2048**3 / best["product"] / 1e9,
        "convolution": 2 * 8 * 256 * 256 * 9 * 56 * 56 / best["convolution"] / 1e9,
    }
    print(f"fp32 peak: matrix product {peak['product']:.0f} GFLOP/s, convolution {peak['convolution']:.0f} GFLOP/s\n")
    columns = ("forward, framework", "forward, t2v", "plain step", "all layers", "late layers", "a draw", "of plain")
    print(f"| network | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name in ("resnet34", "resnet50", "efficientnet_lite0"):
        measure(name, peak)


def measure(name: str, peak: dict[str, float]) -> None:
    """Print a line."""
    probe, net = load_probe(name, "random", image_size=224), build_network(name, "random")
    x = torch.randn(B, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    weights, cut = [probe.weight_of(u) for u in probe.units], early_units(probe)
    v = torch.randn(B, probe.n_features)
    net = net.to(memory_format=torch.channels_last)

    def plain(net: torch.nn.Module = net, x: torch.Tensor = x) -> list[torch.Tensor]:
        for p in net.parameters():
            p.grad = None
        net(x).logsumexp(1).mean().backward()
        return [p.grad.square() for p in net.parameters()]

    def engine(first: int = 0) -> object:
        return sample_filter_norms(
            probe.network,
            weights,
            x,
            lambda z, r: v,
            lambda unit, q, r: None,
            first=first,
        )

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return probe.network(x)

    def features() -> torch.Tensor:
        with torch.no_grad(), fast_convolutions(probe.network):
            return probe.network(x)

    t = interleaved(
        {"forward": forward, "features": features, "plain": plain, "all": engine, "late": lambda: engine(cut)}
    )
    ms = {k: 1e3 * v / B for k, v in t.items()}
    draw = 0.5 * ms["all"] + 0.5 * ms["late"]
    print(
        f"| {name} | {' | '.join(f'{each:.1f}' for each in (*ms.values(), draw))} "
        f"| {ms['all'] / ms['plain']:.2f} all, {draw / ms['plain']:.2f} a draw |"
    )
    if name in GIGAFLOP:
        rate = GIGAFLOP[name] / t["all"] * B
        print(f"{name}: {rate:.0f} GFLOP/s, {rate / peak['product']:.0%} of a matrix product's rate, ", end="")
        print(f"{rate / peak['convolution']:.0%} of a convolution's")


if __name__ == "__main__":
    main()
