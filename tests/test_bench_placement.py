"""bench/placement.py counts kernels in TensorRT's own log."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

# Lines as TensorRT-RTX 1.7 prints them, shortened
LOG = """Engine Layer Information:
Name: __myl_CastMulMinMaxRounCastReplConc_myl0_6, LayerType: kgen, Inputs: [ { Datatype: Float }], Outputs: [ x ]
Name: node_Conv_1324_myl0_7, LayerType: correlation, Inputs: [ { Name: a, Datatype: Int8 }], Outputs: [ y ]
Name: __myl_MulCastAddMaxMinMulMinMaxRounCast_myl0_10, LayerType: kgen, Inputs: [ { Datatype: Float }], Outputs: [ z ]
Name: node_linear_myl0_11, LayerType: gemm, Inputs: [ { Name: z, Datatype: Half }], Outputs: [ s ]
"""


def test_kernels_that_quantise_are_told_from_those_that_do_so_beside_other_work(
    script: Callable[[str], ModuleType],
) -> None:
    found = script("bench/placement.py").kernels(LOG)
    assert found == {"kernels": 4, "int8": 1, "quantise": 2, "quantise_alone": 1}
