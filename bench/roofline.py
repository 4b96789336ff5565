"""Floors for bench/kernels.py: the arithmetic and bytes of our kernels, and the least time they take on a GPU.

Bytes count once, however often they are read; arithmetic is float16 (multiply and add: two) with float32 sums.
"""

from dataclasses import dataclass

from dgiqa.spec import TILE

HALF, FLOAT = 2, 4  # bytes
WINDOW = 49  # tokens
WIDTH, HEADS = 96, (3, 6, 12, 24)  # Swin-T
TOKENS = (56 * 56, 28 * 28, 14 * 14, 7 * 7)


@dataclass(frozen=True)
class Op:
    """flops, reads, writes, instructions: per tile; weights: bytes read once per launch.

    instructions: of all threads, for kernels that scalar work may limit; estimated from the source.
    """

    flops: float = 0
    weights: float = 0
    reads: float = 0
    writes: float = 0
    instructions: float = 0

    def bytes(self, tiles: int) -> float:
        return self.weights + (self.reads + self.writes) * tiles


@dataclass(frozen=True)
class Machine:
    """A GPU's ceilings per second: float16 FLOPs, copied bytes, threads' instructions."""

    name: str
    flops: float
    bandwidth: float
    instructions: float

    def floor_us(self, op: Op, tiles: int = 1) -> float:
        arithmetic = op.flops / self.flops + op.instructions / self.instructions
        return max(arithmetic * tiles, op.bytes(tiles) / self.bandwidth) * 1e6


# As stated for this card: dense float16 matrix arithmetic reached in practice, a large copy, and 528 schedulers of 32
# threads at 1.755 GHz.
H200 = Machine("NVIDIA H200", 790e12, 4.3e12, 528 * 32 * 1.755e9)


def window_attention(stage: int, folded: bool = False) -> Op:
    """The fused kernel: qkv in, tokens out (stage 1 to 4). folded: SDPA with windows as heads, and one mask for all."""
    tokens, width, heads = TOKENS[stage - 1], WIDTH << (stage - 1), HEADS[stage - 1]
    x, masks = tokens * width * HALF, tokens // WINDOW if folded else 1
    return Op(_attend(tokens, width), masks * heads * WINDOW * WINDOW * HALF, 3 * x, x)


def depth_car_attention(heads: int = 16, head_dim: int = 64) -> Op:
    """One 49 x 49 attention with padded heads, between its projections."""
    width = heads * head_dim
    return Op(_attend(WINDOW, width), 0, 3 * WINDOW * width * HALF, WINDOW * width * HALF)


def preprocess_kernels(height: int, width: int, depth: tuple[int, int], short: tuple[int, int], tiles: int) -> list[Op]:
    """Depth input, depth range and tiles for one uint8 image, float32 outputs."""
    image, mapped, cut = 3 * height * width, depth[0] * depth[1], tiles * TILE * TILE
    near = min(image, 4 * 3 * short[0] * short[1])  # the pixels that the tiles read
    return [
        Op(0, 0, image, 3 * FLOAT * mapped, 250 * mapped),
        Op(0, 0, FLOAT * mapped, 0, 25 * height * width),
        Op(0, 0, near + FLOAT * mapped, 6 * FLOAT * cut, 250 * cut),
    ]


def _attend(tokens: int, width: int) -> float:
    return 4 * tokens * WINDOW * width
