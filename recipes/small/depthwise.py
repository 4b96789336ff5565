"""Depthwise convolutions whose gradients a CPU computes quickly, for training EfficientNets in bfloat16.

oneDNN's gradient of a strided depthwise convolution in bfloat16 takes thirty times its forward pass, and the gradient
of a 5x5 kernel's weights fifty times: two thirds of a step of Lite0. Both have an exact workaround: the gradient of the
input is a plain depthwise convolution of the gradient with zeros between its values, and the gradient of the weights is
quicker in float32. A step then takes half the time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x = _of_input(gradient, weight, ctx.stride, ctx.padding, x.shape) if ctx.needs_input_grad[0] else None
        of_weight = _of_weight(gradient, x, weight, ctx.stride, ctx.padding) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None, None


def _of_input(gradient: Tensor, weight: Tensor, stride: int, padding: int, shape: torch.Size) -> Tensor:
    n, c, h, w = shape
    k = weight.shape[-1]
    if stride > 1:
        size = (n, c, h + 2 * padding - k + 1, w + 2 * padding - k + 1)
        spread = torch.empty(size, dtype=gradient.dtype, memory_format=torch.channels_last).zero_()
        spread[:, :, ::stride, ::stride] = gradient
        gradient = spread
    return F.conv2d(gradient, weight.flip(2, 3), padding=k - 1 - padding, groups=c)


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    if weight.shape[-1] > 3:
        gradient, x = gradient.float(), x.float()
    args = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(weight), [False, True, False])
    result = torch.ops.aten.convolution_backward(gradient, x, weight.to(x.dtype), None, *args)[1]
    return result.to(weight.dtype)


def quicken(network: nn.Module) -> nn.Module:
    """Change `network` in place so that every depthwise convolution computes its gradients as above."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = _forward_of(module)  # type: ignore[method-assign]
    return network


def _forward_of(module: nn.Conv2d) -> Any:
    same = type(module).__name__ == "Conv2dSame"  # timm's: pads as TensorFlow does, more at the end

    def forward(x: Tensor) -> Tensor:
        k, stride, padding = module.kernel_size[0], module.stride[0], int(module.padding[0])
        if same:
            x, padding = _pad_same(x, k, stride), 0
        weight = module.weight.to(torch.bfloat16) if torch.is_autocast_enabled("cpu") else module.weight
        return _Depthwise.apply(x.to(weight.dtype), weight, stride, padding)  # type: ignore[no-any-return]

    return forward


def _pad_same(x: Tensor, kernel: int, stride: int) -> Tensor:
    total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:]]
    (top, left) = (t // 2 for t in total)
    return F.pad(x, (left, total[1] - left, top, total[0] - top))
