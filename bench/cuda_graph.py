"""DGIQA becomes one CUDA graph per step: the two backbones side by side, no launch from Python.

    rgb   ─► backbone, bridges ─┐  (the caller's stream)
    depth ─► backbone, bridges ─┴─► Depth-CAR ─► dilated convolutions ─► score
                                   (forked and joined inside the capture)

At one tile the step is bound by its 200 to 700 launches, not by arithmetic (docs/kernels.md). Not yet run on a GPU;
the parts that do not need one are tested on the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgiqa.errors import BackendError
from dgiqa.nn.attention import FusedCrossAttention
from dgiqa.nn.network import DGIQA

Branch = Callable[[], Tensor]
M = TypeVar("M", bound=nn.Module)
WARM_UP = 3  # runs before the capture: cuDNN and cuBLAS choose and allocate in the first ones


class PaddedAttention(FusedCrossAttention):
    """nn.MultiheadAttention without its weights, heads padded to 64 by zero rows, through PyTorch's own attention.

    At 60, cuDNN and the memory-efficient kernel refuse and flash attention pads copies; at 64 all of them apply.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        """query, key [T,N,C], value the same tensor as key -> ([T,N,C], None)."""
        if need_weights or value is not key:
            raise ValueError("padded attention gives no weights, and takes its values from its keys")
        tokens, n, _ = query.shape
        parts = (self.q(query), *self.kv(key).chunk(2, -1))
        q, k, v = (part.reshape(tokens, n, self.heads, -1).permute(1, 2, 0, 3) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out(attended.permute(2, 0, 1, 3).reshape(tokens, n, -1)), None


def pad_heads(network: M) -> M:
    """A copy in eval mode that computes the same with heads as wide as attention kernels are made for. Inference only.

    Raises ValueError if there is no nn.MultiheadAttention, or one that padding cannot express.
    """
    network = copy.deepcopy(network).eval()
    replaced = 0
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, PaddedAttention(child))
                replaced += 1
    if not replaced:
        raise ValueError(f"{type(network).__name__} has no nn.MultiheadAttention; there are no heads to pad")
    return network


def in_turn(first: Branch, second: Branch) -> tuple[Tensor, Tensor]:
    """One branch after the other, as `DGIQA.features` runs them."""
    return first(), second()


def side_by_side(stream: torch.cuda.Stream) -> Callable[[Branch, Branch], tuple[Tensor, Tensor]]:
    """The second branch on a stream of its own; under capture, two parallel branches of the graph."""

    def run(first: Branch, second: Branch) -> tuple[Tensor, Tensor]:
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            theirs = second()
        ours = first()
        current.wait_stream(stream)
        return ours, theirs

    return run


def score_branches(
    network: DGIQA,
    rgb: Tensor,
    depth: Tensor,
    run: Callable[[Branch, Branch], tuple[Tensor, Tensor]] = in_turn,
) -> Tensor:
    """What `DGIQA.forward` computes, with the branches run by `run`: rgb, depth [N,3,S,S] -> f32 [N]."""
    if network.config.depth_car:
        fused, guide = run(lambda: network.branch(rgb), lambda: network.branch(depth, "_depth"))
        features = network.join(fused, guide)
    else:
        features = network.join(network.branch(rgb), None)
    return torch.sigmoid(network.fc(features).reshape(-1).float())


class GraphedDGIQA:
    """A network captured for one batch size: rgb, depth [batch,3,S,S] on the GPU -> score f32 [batch].

    network: any DGIQA, also one `with_attention_op`, whose own attentions get padded heads; or its `export_twin`, which
    leaves out the pixels that nothing reads. dtype: of weights and
    activations (float16; scores are float32). compiled: let torch.compile fuse what lies between the larger operations;
    takes minutes. Not for two threads at once: inputs and outputs have fixed places.
    Raises BackendError without a GPU.
    """

    def __init__(
        self, network: DGIQA, batch: int, dtype: torch.dtype = torch.float16, *, compiled: str | None = None
    ) -> None:
        if not torch.cuda.is_available():
            raise BackendError(
                "a CUDA graph needs an NVIDIA GPU, and PyTorch sees none; run the network itself instead"
            )
        padded = any(isinstance(module, nn.MultiheadAttention) for module in network.modules())
        prepared = pad_heads(network) if padded else copy.deepcopy(network).eval()
        self.network = prepared.to("cuda", dtype)
        if compiled:
            for part in ("branch", "join"):
                fast = torch.compile(getattr(self.network, part), mode=compiled, dynamic=False)
                setattr(self.network, part, fast)
        side = network.config.image_size
        self.rgb, self.depth = (torch.zeros(batch, 3, side, side, dtype=dtype, device="cuda") for _ in range(2))
        self._fork = side_by_side(torch.cuda.Stream())
        self._warm_up()
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(self._graph):
            self.scores = self._step()

    def __call__(self, rgb: Tensor, depth: Tensor) -> Tensor:
        """Copy in, replay. The result is overwritten by the next call; it is ready when the current stream is."""
        if rgb.shape != self.rgb.shape or depth.shape != self.depth.shape:
            raise ValueError(f"got {tuple(rgb.shape)} and {tuple(depth.shape)}, captured for {tuple(self.rgb.shape)}")
        self.rgb.copy_(rgb, non_blocking=True)
        self.depth.copy_(depth, non_blocking=True)
        self.replay()
        return self.scores

    def replay(self) -> None:
        """Score what lies in `rgb` and `depth` into `scores`."""
        self._graph.replay()

    def _step(self) -> Tensor:
        return score_branches(self.network, self.rgb, self.depth, self._fork)

    def _warm_up(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
