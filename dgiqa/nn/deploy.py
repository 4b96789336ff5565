"""Turn a network into its export twin: the same function of the same weights, in fewer and larger operators.

    DGIQA, Swin backbone ─► tokens in window order, bridges at the pixels that are read      (deploy_swin, deploy_dgiqa)
    DGIQA, convolutions  ─► bridges at the pixels that are read, pooled shortcuts in one convolution      (deploy_dgiqa)
    Depth Anything       ─► scales in the weights, 1x1 convolutions before enlarging                      (deploy_depth)
    anything else        ─► itself

Every step is exact algebra: in float64, twin and network agree up to rounding. docs/graph.md measures which steps pay,
and which were dropped.
"""

import copy
from typing import Literal

from torch import nn

from dgiqa.nn.attention import with_attention_op
from dgiqa.nn.deploy_depth import TwinDepthAnything
from dgiqa.nn.deploy_dgiqa import TwinDGIQA, has_twin
from dgiqa.nn.deploy_swin import is_foldable_swin
from dgiqa.nn.depth_anything import DepthAnything
from dgiqa.nn.network import DGIQA

Attention = Literal["standard", "folded", "op"]
ATTENTIONS: tuple[Attention, ...] = ("standard", "folded", "op")


def export_twin(network: nn.Module, attention: Attention | None = None) -> nn.Module:
    """The network to export in place of `network`, in eval mode, with the same inputs and outputs.

    network: not changed; the twin has copies of its weights, so that training one does not change the other.
    attention: "folded", the default for a Swin whose windows tile its maps, turns shifted windows into heads, so that
    one constant is added to the scores, as fused attention wants it; "standard" adds bias and mask one after the other.
    "op" keeps window attention as one `ai.dgiqa` operator, for hosts with a kernel; maps then stay in image order.
    Raises ValueError for another word, or if "folded" or "op" is given for a network without such Swin blocks.
    """
    if attention is not None and attention not in ATTENTIONS:
        raise ValueError(f"attention is {attention!r}; choose one of {', '.join(ATTENTIONS)}")
    network = copy.deepcopy(network).eval().requires_grad_(False)
    folds = isinstance(network, DGIQA) and has_twin(network) and is_foldable_swin(network.backbone)
    if attention == "folded" and not folds:
        raise ValueError(f"{type(network).__name__} has no Swin whose windows tile its maps; there is nothing to fold")
    if attention == "op":
        network = with_attention_op(network, cross=False)
    if isinstance(network, DGIQA) and has_twin(network):
        return TwinDGIQA(network, fold=attention in (None, "folded")).eval()
    if isinstance(network, DepthAnything):
        return TwinDepthAnything(network).eval()
    return network
