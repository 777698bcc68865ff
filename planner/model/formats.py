"""Weight formats: how many bytes a matrix takes, scales included.

Sources: OCP Microscaling Formats v1.0 (mxfp4, mxfp8: 32 elements share one 8-bit scale); NVIDIA ModelOpt (nvfp4: 16
elements share one FP8 scale, one FP32 scale a tensor); DeepSeek-V3 report section 3.3 (FP8 with one FP32 scale a
128 x 128 block); bitsandbytes (nf4: 64 elements a block, double quantisation of 256 blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

#: Bits of one element of a plain type, by the names that `torch_dtype` and engines use.
PLAIN_BITS: Mapping[str, int] = {
    "float64": 64,
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "half": 16,
    "float8_e4m3fn": 8,
    "float8_e5m2": 8,
    "int8": 8,
    "uint8": 8,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFormat:
    """Bits of an element, and of a scale that a block of elements shares.

    block_rows, block_columns : elements of a block along the output and input features; 0 is the whole dimension.
    scale_bits : bits of one scale, zero point included; 0 when there are no scales.
    tensor_bits : bits once a matrix (a second-level scale).
    """

    name: str
    bits: float
    scale_bits: float = 0.0
    block_rows: int = 0
    block_columns: int = 0
    tensor_bits: int = 0

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of one [rows, columns] matrix, scales included, rounded up to whole bytes."""
        total = rows * columns * self.bits + self.tensor_bits
        if self.scale_bits:
            down = -(-rows // self.block_rows) if self.block_rows else 1
            across = -(-columns // self.block_columns) if self.block_columns else 1
            total += down * across * self.scale_bits
        return -int(-total // 8)


def plain(name: str) -> WeightFormat:
    """An unquantised type; KeyError for a name that is not in PLAIN_BITS."""
    return WeightFormat(name=name, bits=PLAIN_BITS[name])


BF16 = plain("bfloat16")
FP8_BLOCK = WeightFormat(name="fp8_block", bits=8, scale_bits=32, block_rows=128, block_columns=128)
FP8_TENSOR = WeightFormat(name="fp8", bits=8, tensor_bits=32)
FP8_CHANNEL = WeightFormat(name="fp8_channel", bits=8, scale_bits=32, block_rows=1)
INT8_CHANNEL = WeightFormat(name="int8", bits=8, scale_bits=32, block_rows=1)
MXFP4 = WeightFormat(name="mxfp4", bits=4, scale_bits=8, block_rows=1, block_columns=32)
MXFP8 = WeightFormat(name="mxfp8", bits=8, scale_bits=8, block_rows=1, block_columns=32)
NVFP4 = WeightFormat(name="nvfp4", bits=4, scale_bits=8, block_rows=1, block_columns=16, tensor_bits=32)


def grouped_integer(bits: int, group_size: int, zero_points: bool, scale_bits: int = 16) -> WeightFormat:
    """GPTQ, AWQ and packed integers: `group_size` elements of a row share a scale; 0 is one scale a row."""
    return WeightFormat(
        name=f"int{bits}",
        bits=bits,
        scale_bits=scale_bits + (bits if zero_points else 0),
        block_rows=1,
        block_columns=group_size,
    )


#: Formats by name, for plans that say what the weights are converted to.
FORMATS: Mapping[str, WeightFormat] = {
    one.name: one
    for one in (
        BF16,
        plain("float16"),
        plain("float32"),
        FP8_TENSOR,
        FP8_BLOCK,
        FP8_CHANNEL,
        INT8_CHANNEL,
        MXFP8,
        MXFP4,
        NVFP4,
        grouped_integer(4, 128, zero_points=False),
    )
}
