"""The contract between networks, files and runtime: names, sizes, constants, and each network's inputs and outputs.

Exporting, bundling, preprocessing and scoring follow it, and a bundle's manifest records it, so that a file made by
another version is refused instead of misread.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

PREPROCESS_VERSIONS = (1, 2)  # a new one whenever the same bytes would give other network inputs; old ones are kept
BUNDLE_VERSION = 1  # raised whenever an older reader would misread a manifest
QUANTIZER_VERSION = 5  # raised whenever `builder.quantize` would make other files from the same network and images
OPSET = 20
# An engine's. bf16 is never in a file: OpenVINO runs an fp32 file in it on request, if the processor can.
PRECISIONS = ("fp32", "fp16", "int8", "fp8", "bf16")
QUANTIZED = ("fp16", "int8", "fp8")  # `builder.quantize` makes files for these; the others run a bundle's own files
EIGHT_BITS = ("int8", "fp8")
ONNX_DOMAIN = "ai.dgiqa"  # of custom ops, each with a function body of standard ops

TILE = 224  # side of a square tile, pixels (paper section 4.2: crops of 224 x 224)
SHORT_SIDE = 384  # shortest image side before tiling, pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB; the depth image is normalised with the same statistics
IMAGENET_STD = (0.229, 0.224, 0.225)

# ONNX tensor names. Depth: image f32 [1,3,h,w] -> depth f32 [1,h,w], larger = nearer.
DEPTH_INPUT = "image"
DEPTH_OUTPUT = "depth"
# Quality: rgb, depth f32 [n,3,224,224] -> score f32 [n] in [0, 1], higher = better; and, in newer files,
# reasons f32 [n,K], the probability in [0, 1] of each fault that the manifest names;
# features f32 [n,C], from which score = sigmoid(w . features + b).
QUALITY_RGB = "rgb"
QUALITY_DEPTH = "depth"
QUALITY_OUTPUT = "score"
QUALITY_REASONS = "reasons"
QUALITY_FEATURES = "features"
# Kinds of faults that a `reasons` column may stand for, in the order in which they are reported.
REASONS = (
    *("blur", "noise", "compression", "dark", "bright", "low contrast", "colour", "low resolution", "sharpened"),
    "blocks",
)

DEPTH_FILE = "depth.onnx"
QUALITY_FILE = "quality.onnx"


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes network inputs. Saved in every manifest; the defaults are the DGIQA authors' recipe.

    version: 1 is the authors' recipe, which resizes without antialiasing. 2 reduces by area, so that a picture's size
    matters less and aliasing does not look like sharpness.
    depth_lower_bound: both sides of the depth network's input are at least this many pixels; 0 without such a network.
    depth_multiple: both sides of the depth network's input are multiples of this; 1 without such a network.
    short_side: the image's (and depth image's) shorter side before tiles are cut, pixels; 0: no resizing.
    tile: side of the square tiles, pixels.
    normalisation: of tiles, "imagenet" (its mean and deviation per channel) or "half" (0..1 becomes -1..1).
    """

    version: int = 1
    depth_lower_bound: int = 518
    depth_multiple: int = 14
    short_side: int = SHORT_SIDE
    tile: int = TILE
    normalisation: str = "imagenet"


NORMALISATIONS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))}


@dataclass(frozen=True)
class Network:
    """One network file of a bundle. inputs, outputs: name -> shape of a float32 tensor; a letter is a free length.

    further: names of optional outputs [n,columns].
    """

    file: str
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    further: tuple[str, ...] = ()


def networks(files: Collection[str], tile: int = TILE) -> tuple[Network, ...]:
    """The networks of a bundle with these files, in the order in which an image passes through them.

    Without a depth network, the quality network takes only the image.
    """
    tiles = ("n", 3, tile, tile)
    near = {QUALITY_DEPTH: tiles} if DEPTH_FILE in files else {}
    depth = Network(DEPTH_FILE, {DEPTH_INPUT: (1, 3, "h", "w")}, {DEPTH_OUTPUT: (1, "h", "w")})
    further = (QUALITY_REASONS, QUALITY_FEATURES)
    quality = Network(QUALITY_FILE, {QUALITY_RGB: tiles, **near}, {QUALITY_OUTPUT: ("n",)}, further)
    return (depth, quality) if near else (quality,)
