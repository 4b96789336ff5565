"""DGIQA's networks and kernels become lists of operations; on a machine's ceilings they become floors in microseconds.

An operation takes at least the time of its arithmetic at peak, or of its bytes at copy bandwidth, whichever is longer.
A network's floor is the sum over its operations: nothing overlaps, and nothing stays in a cache. Levels say which of
them are fused, each level into more. Sizes in float16 bytes and FLOPs (2 per multiply-add), per tile.

Nothing here is measured: these are models, held to torch's FLOP counter by tests/test_kernels_bench.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from dgiqa.nn.network import FULL, DGIQAConfig
from dgiqa.spec import TILE

HALF, FLOAT = 2, 4  # bytes
WINDOW = 49  # tokens
WIDTH, DEPTHS, HEADS = 96, (2, 2, 6, 2), (3, 6, 12, 24)  # Swin-T
TOKENS = (56 * 56, 28 * 28, 14 * 14, 7 * 7)


class Level(IntEnum):
    """How much is fused. COMPILED is what torch.compile and SDPA reach at best, ATTENTION what is built here."""

    EAGER = 0  # timm's default: logits, bias, mask and probabilities go through memory
    SDPA = 1
    COMPILED = 2  # mask computed once; LayerNorm, residuals, partition and GELU fused with their neighbours
    ATTENTION = 3  # the same around our window attention
    NORM = 4  # LayerNorm inside the next multiplication, residuals in the one before
    MLP = 5  # both multiplications of an MLP in one kernel
    BLOCK = 6  # a whole Swin block in one kernel
    PRUNED = 7  # pixels and taps that nothing reads are skipped


@dataclass(frozen=True)
class Op:
    """flops, reads, writes, instructions: per tile; weights: bytes read once per launch.

    instructions: of all threads, where scalar work may take longest; estimated from the source.
    """

    group: str
    name: str
    flops: float = 0
    weights: float = 0
    reads: float = 0
    writes: float = 0
    instructions: float = 0

    def bytes(self, tiles: int) -> float:
        return self.weights + (self.reads + self.writes) * tiles


@dataclass(frozen=True)
class Machine:
    """A GPU's ceilings per second: float16 FLOPs, copied bytes, threads' instructions.

    launch_us: how long one dependent launch in a graph takes at least.
    """

    name: str
    flops: float
    bandwidth: float
    instructions: float
    launch_us: float = 2.0

    def floor_us(self, op: Op, tiles: int = 1) -> float:
        arithmetic = op.flops / self.flops + op.instructions / self.instructions
        return max(arithmetic * tiles, op.bytes(tiles) / self.bandwidth) * 1e6


# As stated for this card: dense float16 matrix arithmetic that is reached in practice, a large copy, and 528 schedulers
# of 32 threads at 1.755 GHz.
H200 = Machine("NVIDIA H200", 790e12, 4.3e12, 528 * 32 * 1.755e9)


def network_us(machine: Machine, ops: Sequence[Op], tiles: int) -> float:
    """Sum of the operations' floors."""
    return sum(machine.floor_us(op, tiles) for op in ops)


def by_group(machine: Machine, ops: Sequence[Op], tiles: int) -> dict[str, float]:
    """Where the floor's microseconds are."""
    groups: dict[str, float] = {}
    for op in ops:
        groups[op.group] = groups.get(op.group, 0) + machine.floor_us(op, tiles)
    return groups


def dgiqa(level: Level, config: DGIQAConfig = FULL) -> list[Op]:
    """The whole quality network with two Swin-T backbones, eval mode."""
    branch = swin(level) + bridges(level, config)
    return [*branch, *branch, *depth_car(level, config), *dilated(level, config)]


def swin(level: Level) -> list[Op]:
    """One backbone."""
    image, x = 3 * TILE * TILE * HALF, TOKENS[0] * WIDTH * HALF
    ops = [Op("patch", "embed", 2 * TOKENS[0] * 48 * WIDTH, 48 * WIDTH * HALF, image, x)]
    if level <= Level.SDPA:
        ops.append(_pointwise("norm", "patch norm", x))
    for stage, (depth, tokens, heads) in enumerate(zip(DEPTHS, TOKENS, HEADS, strict=True)):
        width = WIDTH << stage
        if stage:
            ops += _merge(level, tokens, width)
        for index in range(depth):
            ops += _block(level, tokens, width, heads, shifted=index % 2 == 1 and tokens > WINDOW)
    return ops


def window_attention(stage: int) -> Op:
    """The fused kernel: qkv in, tokens out (stage 1 to 4)."""
    tokens, width, heads = TOKENS[stage - 1], WIDTH << (stage - 1), HEADS[stage - 1]
    x = tokens * width * HALF
    return Op("attention", f"window attention, stage {stage}", _attend(tokens, width), heads * 49 * 49 * HALF, 3 * x, x)


def unfused_attention(stage: int, shifted: bool) -> dict[str, list[Op]]:
    """What stands for the kernel between the same two projections, by name: SDPA with a ready mask, and the math path.

    Where tokens are in window order already, as the export twin keeps them, SDPA moves no windows, and a mask whose
    windows are heads is read once for all images.

    SDPA's own waste on 49 tokens is not in the model: its tiles are of 64 or 128.
    """
    tokens, width, heads = TOKENS[stage - 1], WIDTH << (stage - 1), HEADS[stage - 1]
    x, logits = tokens * width * HALF, tokens * WINDOW * heads * HALF
    roll, unroll = ([_pointwise("windows", "roll", n * x)] * shifted for n in (3, 1))
    apart, back = _pointwise("windows", "partition", 3 * x), _pointwise("windows", "reverse", x)
    sdpa = Op("attention", "sdpa", _attend(tokens, width), 0, 3 * x + logits * shifted, x)
    math = [
        _pointwise("attention", "scale q", x),
        Op("attention", "q k", sdpa.flops / 2, 0, 2 * x, logits),
        *[_pointwise("attention", name, logits) for name in ("add", "softmax")],
        Op("attention", "p v", sdpa.flops / 2, 0, logits + x, x),
    ]
    return {
        "SDPA, mask precomputed, compiled": [apart, sdpa, back],
        "SDPA, windows folded": [Op("attention", "sdpa", sdpa.flops, logits, 3 * x, x)],
        "SDPA, mask precomputed, eager": [*roll, apart, sdpa, back, *unroll],
        "math path, eager": [*roll, apart, *math, back, *unroll],
    }


def depth_car_attention(config: DGIQAConfig = FULL, head_dim: int = 64) -> Op:
    """One 49 x 49 attention with padded heads, between its projections."""
    width = config.heads * head_dim
    return Op("depth-car", "attention", _attend(WINDOW, width), 0, 3 * WINDOW * width * HALF, WINDOW * width * HALF)


def preprocess_kernels(height: int, width: int, depth: tuple[int, int], short: tuple[int, int], tiles: int) -> list[Op]:
    """The three preprocessing kernels for one uint8 image, float32 outputs. Bytes count once, however often read."""
    image, mapped, cut = 3 * height * width, depth[0] * depth[1], tiles * TILE * TILE
    near = min(image, 4 * 3 * short[0] * short[1])  # the pixels that the tiles read
    return [
        Op("preprocess", "depth input", 0, 0, image, 3 * FLOAT * mapped, 250 * mapped),
        Op("preprocess", "depth range", 0, 0, FLOAT * mapped, 0, 25 * height * width),
        Op("preprocess", "tiles", 0, 0, near + FLOAT * mapped, 6 * FLOAT * cut, 250 * cut),
    ]


def torch_preprocess(height: int, width: int, depth: tuple[int, int], tiles: int) -> list[Op]:
    """The same with torch operations, in float and through every full-size map; small maps are left out."""
    pixels, mapped, cut = FLOAT * height * width, FLOAT * depth[0] * depth[1], FLOAT * tiles * TILE * TILE
    return [
        Op("preprocess", "to float", 0, 0, 3 * pixels / FLOAT, 3 * pixels),
        Op("preprocess", "bicubic", 0, 0, 3 * pixels, 3 * mapped),
        *[_pointwise("preprocess", name, 3 * mapped) for name in ("scale", "subtract", "divide")],
        Op("preprocess", "bilinear to full size", 0, 0, mapped, pixels),
        Op("preprocess", "least and greatest", 0, 0, pixels, 0),
        *[_pointwise("preprocess", name, pixels) for name in ("subtract", "divide", "multiply", "floor")],
        Op("preprocess", "bilinear, rgb", 0, 0, 3 * pixels, 0),
        Op("preprocess", "bilinear, depth", 0, 0, pixels, 0),
        *[Op("preprocess", "small map", 0, 0, 0, 0)] * 8,
        *[_pointwise("preprocess", "stack", 3 * cut)] * 2,
    ]


def bridges(level: Level, config: DGIQAConfig = FULL) -> list[Op]:
    """The four TCBs of one backbone, resized to 7 x 7 and joined (section 3.3)."""
    ops = []
    for stage, (pixels, c_out) in enumerate(zip(TOKENS, config.tcb_channels, strict=True)):
        ops += _bridge(level, f"tcb{stage + 1}", pixels, (WIDTH << stage, c_out, c_out // config.reduction))
    return ops


def depth_car(level: Level, config: DGIQAConfig = FULL) -> list[Op]:
    """Cross-attention and refinement (section 3.4)."""
    width = sum(config.tcb_channels)
    ops = []
    for name, inputs in (("cross", 2), ("refine", 1)):
        ops += _token_block(level, name, width, config.heads, inputs)
    return ops


def dilated(level: Level, config: DGIQAConfig = FULL) -> list[Op]:
    """Two dilated convolutions on the 7 x 7 map, the mean and the last layer (section 3.5)."""
    c_in, c = sum(config.tcb_channels), config.dilated_channels
    ops = []
    for index, dilation in enumerate(config.dilations):
        x, y = WINDOW * c_in * HALF, WINDOW * c * HALF
        # Of a row's three taps, 7 + 2 (7 - dilation) of 21 lie inside; a padded tap multiplies zeros.
        live = ((7 + 2 * (7 - dilation)) / 21) ** 2 if level >= Level.PRUNED else 1
        ops.append(Op("dilated", f"conv {index + 1}", 18 * WINDOW * c_in * c * live, 9 * c_in * c * HALF, x, y))
        if level <= Level.SDPA:
            ops += [_pointwise("dilated", name, y) for name in ("batch norm", "relu")]
        c_in = c
    return [*ops, Op("dilated", "mean and score", 2 * c, c * HALF, WINDOW * c * HALF, HALF)]


def _pointwise(group: str, name: str, size: float, inputs: int = 1) -> Op:
    return Op(group, name, 0, 0, inputs * size, size)


def _attend(tokens: int, width: int) -> float:
    return 4 * tokens * WINDOW * width


def _merge(level: Level, tokens: int, width: int) -> list[Op]:
    """Patch merging into `tokens` of `width`: gather, norm, 4 C -> 2 C."""
    x, out = tokens * 2 * width * HALF, tokens * width * HALF
    reduction = Op("merge", "reduction", 4 * tokens * width * width, 2 * width * width * HALF, x, out)
    if level <= Level.SDPA:
        return [_pointwise("merge", "gather", x), _pointwise("norm", "merge norm", x), reduction]
    return [reduction]


def _attention(level: Level, tokens: int, width: int, heads: int, shifted: bool) -> list[Op]:
    """From the qkv projection's output, or its input's windows, to the output projection's input."""
    x, logits = tokens * width * HALF, tokens * WINDOW * heads * HALF
    flops = _attend(tokens, width)
    roll = [_pointwise("windows", "roll", x)] if shifted else []
    around = [*roll, _pointwise("windows", "partition", x), _pointwise("windows", "reverse", x), *roll]
    if level >= Level.ATTENTION:
        return [Op("attention", "window attention", flops, heads * 49 * 49 * HALF, 3 * x, x)]
    if level == Level.COMPILED:
        return [Op("attention", "sdpa", flops, 0, 3 * x + logits * shifted, x)]
    if level == Level.SDPA:
        mask = [Op("attention", "expand mask", writes=logits), _pointwise("attention", "add bias", logits)] * shifted
        return [*around, *mask, Op("attention", "sdpa", flops, 0, 3 * x + logits * shifted, x)]
    return [
        *around,
        _pointwise("attention", "scale q", x),
        _pointwise("attention", "copy k and v", 2 * x),
        Op("attention", "q k", flops / 2, 0, 2 * x, logits),
        *[_pointwise("attention", "add", logits)] * (1 + shifted),
        _pointwise("attention", "softmax", logits),
        Op("attention", "p v", flops / 2, 0, logits + x, x),
        _pointwise("attention", "transpose", x),
    ]


def _block(level: Level, tokens: int, width: int, heads: int, shifted: bool) -> list[Op]:
    x, square = tokens * width * HALF, width * width * HALF
    dense = 2 * tokens * width * width  # FLOPs of one C x C projection
    if level >= Level.BLOCK:
        return [Op("blocks", "block", 12 * dense + _attend(tokens, width), 12 * square, x, x)]
    attention = _attention(level, tokens, width, heads, shifted)
    fused = level >= Level.NORM
    ops = [
        Op("projections", "qkv", 3 * dense, 3 * square, x, 3 * x),
        *attention,
        Op("projections", "out", dense, square, x + x * fused, x),
    ]
    if level >= Level.MLP:
        ops.append(Op("mlp", "mlp", 8 * dense, 8 * square, x, x))
    else:
        ops.append(Op("mlp", "fc1", 4 * dense, 4 * square, x, 4 * x))
        ops.append(Op("mlp", "fc2", 4 * dense, 4 * square, 4 * x + x * fused, x))
    if level <= Level.SDPA:
        ops += [_pointwise("mlp", "gelu", 4 * x), *[_pointwise("residual", "add", x, 2)] * 2]
        ops += [_pointwise("norm", "norm", x)] * 2
    elif not fused:
        ops += [Op("norm", "residual and norm", 0, 0, 2 * x, 2 * x)] * 2
    return ops


def _bridge(level: Level, name: str, pixels: int, channels: tuple[int, int, int]) -> list[Op]:
    """channels: in, out, of the gate."""
    c_in, c, gate = channels
    x, y, z, out = pixels * c_in * HALF, pixels * c * HALF, pixels * gate * HALF, WINDOW * c * HALF
    one, gated, three = 2 * pixels * c_in * c, 4 * pixels * c * gate, 18 * pixels * c * c
    first, last = (c_in * c + 2 * c * gate) * HALF, 9 * c * c * HALF
    if level <= Level.SDPA:
        return [
            _pointwise("bridges", f"{name} permute", x),
            Op("bridges", f"{name} conv 1x1", one, c_in * c * HALF, x, y),
            Op("bridges", f"{name} gate", gated / 2, c * gate * HALF, y, z),
            _pointwise("bridges", f"{name} relu", z),
            Op("bridges", f"{name} gate back", gated / 2, c * gate * HALF, z, y),
            _pointwise("bridges", f"{name} sigmoid", y),
            _pointwise("bridges", f"{name} multiply", y, 2),
            Op("bridges", f"{name} conv 3x3", three, last, y, y),
            *[_pointwise("bridges", f"{name} {what}", y) for what in ("batch norm", "relu")],
            Op("bridges", f"{name} resize", 0, 0, y, out),
            _pointwise("bridges", f"{name} concatenate", out),
        ]
    # Resizing to 7 x 7 reads the 2 x 2 pixels in the middle of a cell, and their convolution 4 x 4.
    pruned = level >= Level.PRUNED
    read = min(pixels, 4 * WINDOW) / pixels if pruned else 1
    seen = min(pixels, 16 * WINDOW) / pixels if pruned else 1
    return [
        Op("bridges", f"{name} gate", (one + gated) * seen, first, x * seen, y * seen),
        Op("bridges", f"{name} conv 3x3 and resize", three * read, last, y * seen, out),
    ]


def _token_block(level: Level, name: str, width: int, heads: int, inputs: int) -> list[Op]:
    x, square, logits = WINDOW * width * HALF, width * width * HALF, heads * WINDOW * WINDOW * HALF
    dense = 2 * WINDOW * width * width
    qkv = Op("depth-car", f"{name} qkv", 3 * dense, 3 * square, inputs * x, 3 * x)
    attend = Op("depth-car", f"{name} attention", _attend(WINDOW, width), 0, 3 * x, x)
    mlp = [
        Op("depth-car", f"{name} fc1", 4 * dense, 4 * square, x, 4 * x),
        Op("depth-car", f"{name} fc2", 4 * dense, 4 * square, 4 * x, x),
    ]
    if level >= Level.COMPILED:
        return [qkv, attend, Op("depth-car", f"{name} out, residual, norm", dense, square, 2 * x, x), *mlp]
    return [
        _pointwise("depth-car", f"{name} tokens", inputs * x),
        qkv,
        _pointwise("depth-car", f"{name} split heads", 3 * x),
        Op("depth-car", f"{name} q k", attend.flops / 2, 0, 2 * x, logits),
        _pointwise("depth-car", f"{name} softmax", logits),
        Op("depth-car", f"{name} p v", attend.flops / 2, 0, logits + x, x),
        _pointwise("depth-car", f"{name} transpose", x),
        Op("depth-car", f"{name} out", dense, square, x, x),
        *mlp,
        _pointwise("depth-car", f"{name} gelu", 4 * x),
        *[_pointwise("depth-car", f"{name} add", x, 2)] * 2,
        *[_pointwise("depth-car", f"{name} norm", x)] * 2,
        _pointwise("depth-car", f"{name} map", x),
    ]
