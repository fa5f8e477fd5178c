"""What torch does on a CPU in many small calls, as compiled loops: for inference in float32.

A decoding step of a small network is hundreds of operations on a few rows, and torch spends more time on starting them
than on their numbers. Numba compiles each of these functions at its first call (seconds) and keeps the result on disk.

Letters: N packed tokens, L tokens of a sequence, R of its rows, H query heads, K key heads, D head dimension, E hidden
size, S sequences, B blocks of a table.
"""

import math
from typing import Literal

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Activation = Literal["silu", "gelu", "gelu_tanh"]

ONEDNN_NAMES: dict[Activation | None, tuple[str, str]] = {
    None: ("none", ""),
    "silu": ("swish", ""),
    "gelu": ("gelu", "none"),
    "gelu_tanh": ("gelu", "tanh"),
}
DENSE_LENGTH = 256  # of a sequence from which on products of whole matrices are the faster way to attend
DENSE_ROWS = 512  # of queries at a time: their scores stay in the cache
PACKED_FOR_ROWS = 64  # any number of rows can be multiplied; the blocks suit about so many
FloatArray = NDArray[np.float32]
IndexArray = NDArray[np.int64]

# Sums may be taken in any order, or no loop over them could be vectorised; NaN and infinity stay what they are.
compiled = numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


def serve(tensor: Tensor) -> bool:
    """Whether these functions know what to do with it. None of them has a gradient."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and torch.is_inference_mode_enabled()


def can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def packed(weight_OI: Tensor) -> Tensor:
    """A matrix as oneDNN multiplies by it: in blocks that are read one after the other, from memory as fast as it goes.
    Torch's compiler has these two operations for its own frozen networks."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_OI.contiguous(), PACKED_FOR_ROWS)


def packed_linear(
    hidden: Tensor, packed_OI: Tensor, bias_O: Tensor | None, activation: Activation | None = None
) -> Tensor:
    """A linear map, and an activation of what it gives before that is written. The matrix need not be packed."""
    name, algorithm = ONEDNN_NAMES[activation]
    return torch.ops.mkldnn._linear_pointwise(hidden, packed_OI, bias_O, name, [], algorithm)


def attends_dense(query_NHD: Tensor, key_NKD: Tensor, length: int) -> bool:
    """Whether `attend_dense` serves sequences of that length, and is faster than torch's own attention. Without AVX-512
    oneDNN has shown no gain over MKL."""
    is_long = length >= DENSE_LENGTH and query_NHD.shape[1] == key_NKD.shape[1]
    return is_long and serve(query_NHD) and torch.backends.mkldnn.is_available() and _has_avx512()


def _has_avx512() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_f"))


def attend_dense(query_LHD: Tensor, key_LHD: Tensor, value_LHD: Tensor) -> Tensor:
    """Softmax attention of L tokens that all see each other -> [L, H, D].

    Torch's own kernel multiplies small blocks. On a core with AVX-512 oneDNN multiplies whole matrices at twice that
    rate, which is worth writing the scores.
    """
    length, heads, width = query_LHD.shape
    query_HLD = (query_LHD * width**-0.5).transpose(0, 1).contiguous()
    key_HLD = key_LHD.transpose(0, 1).contiguous()
    value_HDL = value_LHD.permute(1, 2, 0).contiguous()
    attended_LHD = torch.empty_like(query_LHD, memory_format=torch.contiguous_format)
    for head in range(heads):
        for start in range(0, length, DENSE_ROWS):
            end = start + DENSE_ROWS
            scores_RL = packed_linear(query_HLD[head, start:end], key_HLD[head], None)
            torch.softmax(scores_RL, -1, out=scores_RL)
            attended_LHD[start:end, head] = packed_linear(scores_RL, value_HDL[head], None)
    return attended_LHD


def rms_norm(hidden: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """-> `hidden` [..., E] with each of its last rows divided by its root mean square, times the weight."""
    hidden_NE = hidden.reshape(-1, len(weight_E))
    output_NE = torch.empty_like(hidden_NE)
    _rms_norm(hidden_NE.numpy(), weight_E.detach().numpy(), eps, output_NE.numpy())
    return output_NE.view(hidden.shape)


@compiled
def _rms_norm(hidden_NE: FloatArray, weight_E: FloatArray, eps: float, output_NE: FloatArray) -> None:
    size = len(weight_E)
    for n in range(len(hidden_NE)):
        total = np.float32(0)
        for e in range(size):
            total += hidden_NE[n, e] * hidden_NE[n, e]
        scale = np.float32(1 / math.sqrt(total / size + eps))
        for e in range(size):
            output_NE[n, e] = hidden_NE[n, e] * scale * weight_E[e]


def rotate(heads_NHD: Tensor, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """-> [N, H, D]: the two halves of each head turned as rotary embeddings do."""
    output_NHD = torch.empty(heads_NHD.shape)
    _rotate(heads_NHD.contiguous().numpy(), cos_ND.numpy(), sin_ND.numpy(), output_NHD.numpy())
    return output_NHD


@compiled
def _rotate(heads_NHD: FloatArray, cos_ND: FloatArray, sin_ND: FloatArray, output_NHD: FloatArray) -> None:
    tokens, heads, size = heads_NHD.shape
    half = size // 2
    for n in range(tokens):
        for h in range(heads):
            for d in range(half):
                first, second = heads_NHD[n, h, d], heads_NHD[n, h, half + d]
                output_NHD[n, h, d] = first * cos_ND[n, d] - second * sin_ND[n, d]
                output_NHD[n, h, half + d] = second * cos_ND[n, half + d] + first * sin_ND[n, half + d]


def norm_and_rotate(heads_NHD: Tensor, weight_D: Tensor, eps: float, cos_ND: Tensor, sin_ND: Tensor) -> Tensor:
    """-> [N, H, D]: `rotate` of `rms_norm`."""
    heads_NHD = heads_NHD.contiguous()
    output_NHD = torch.empty_like(heads_NHD)
    _norm_and_rotate(
        heads_NHD.numpy(), weight_D.detach().numpy(), eps, cos_ND.numpy(), sin_ND.numpy(), output_NHD.numpy()
    )
    return output_NHD


@compiled
def _norm_and_rotate(
    heads_NHD: FloatArray,
    weight_D: FloatArray,
    eps: float,
    cos_ND: FloatArray,
    sin_ND: FloatArray,
    output_NHD: FloatArray,
) -> None:
    size = len(weight_D)
    _rms_norm(heads_NHD.reshape(-1, size), weight_D, eps, output_NHD.reshape(-1, size))
    _rotate(output_NHD, cos_ND, sin_ND, output_NHD)  # in place: both halves are read before they are written


def write_paged(keys: Tensor, values: Tensor, slots_N: IndexArray, key_NKD: Tensor, value_NKD: Tensor) -> None:
    """Puts new keys and values into their slots of one layer's cache, each [K, blocks, block size, D]."""
    _write_paged(keys.numpy(), values.numpy(), slots_N, key_NKD.contiguous().numpy(), value_NKD.contiguous().numpy())


@compiled
def _write_paged(
    keys: FloatArray, values: FloatArray, slots_N: IndexArray, key_NKD: FloatArray, value_NKD: FloatArray
) -> None:
    num_heads, _, block_size, size = keys.shape
    for n in range(len(slots_N)):
        block, place = divmod(slots_N[n], block_size)
        for k in range(num_heads):
            for d in range(size):
                keys[k, block, place, d] = key_NKD[n, k, d]
                values[k, block, place, d] = value_NKD[n, k, d]


def attend_paged(
    query_NHD: Tensor,
    keys: Tensor,
    values: Tensor,
    output_NHD: Tensor,
    *,
    tables_SB: IndexArray,
    firsts_S: IndexArray,
    lengths_S: IndexArray,
    starts_S: IndexArray,
) -> None:
    """Softmax attention over one layer's cache, each [K, blocks, block size, D], into the rows of `output_NHD`.

    Sequence s has `lengths_S[s]` rows of N, from `firsts_S[s]` on; the first of them is its token `starts_S[s]`, and
    each sees its own sequence up to itself. All of them lie in the blocks of `tables_SB[s]`.
    """
    _attend_paged(
        query_NHD.contiguous().numpy(),
        keys.numpy(),
        values.numpy(),
        output_NHD.numpy(),
        tables_SB,
        firsts_S,
        lengths_S,
        starts_S,
    )


@compiled
def _attend_paged(
    query_NHD: FloatArray,
    keys: FloatArray,
    values: FloatArray,
    output_NHD: FloatArray,
    tables_SB: IndexArray,
    firsts_S: IndexArray,
    lengths_S: IndexArray,
    starts_S: IndexArray,
) -> None:
    groups = query_NHD.shape[1] // len(keys)
    weights_T = np.empty((starts_S + lengths_S).max(), np.float32)
    for s in range(len(lengths_S)):
        for k in range(len(keys)):
            for i in range(lengths_S[s]):
                n, seen = firsts_S[s] + i, starts_S[s] + i + 1
                for h in range(k * groups, (k + 1) * groups):
                    _weigh(query_NHD[n, h], keys[k], tables_SB[s], weights_T[:seen])
                    _mix(weights_T[:seen], values[k], tables_SB[s], output_NHD[n, h])


@compiled
def _weigh(query_D: FloatArray, keys: FloatArray, table_B: IndexArray, weights_T: FloatArray) -> None:
    """How much each token that is seen counts; not divided by their sum yet. `keys` [blocks, block size, D].

    Four tokens at a time, here and in `_mix`: a sum is not waited for before the next begins, and what is read or
    written for all of them is so once.
    """
    _, block_size, size = keys.shape
    scale = np.float32(1 / math.sqrt(size))
    for start in range(0, len(weights_T), block_size):
        block, count = table_B[start // block_size], min(block_size, len(weights_T) - start)
        fours = count - count % 4
        for t in range(0, fours, 4):
            first, second, third, fourth = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for d in range(size):
                first += query_D[d] * keys[block, t, d]
                second += query_D[d] * keys[block, t + 1, d]
                third += query_D[d] * keys[block, t + 2, d]
                fourth += query_D[d] * keys[block, t + 3, d]
            weights_T[start + t] = first * scale
            weights_T[start + t + 1] = second * scale
            weights_T[start + t + 2] = third * scale
            weights_T[start + t + 3] = fourth * scale
        for t in range(fours, count):
            score = np.float32(0)
            for d in range(size):
                score += query_D[d] * keys[block, t, d]
            weights_T[start + t] = score * scale
    largest = np.float32(-np.inf)
    for t in range(len(weights_T)):
        largest = max(largest, weights_T[t])
    for t in range(len(weights_T)):
        weights_T[t] -= largest
    _exponentiate(weights_T)


@compiled
def _mix(weights_T: FloatArray, values: FloatArray, table_B: IndexArray, output_D: FloatArray) -> None:
    """The mean of the values [blocks, block size, D] by these weights."""
    _, block_size, size = values.shape
    total = np.float32(0)
    for t in range(len(weights_T)):
        total += weights_T[t]
    output_D[:] = 0
    for start in range(0, len(weights_T), block_size):
        block, count = table_B[start // block_size], min(block_size, len(weights_T) - start)
        fours = count - count % 4
        for t in range(0, fours, 4):
            first, second = weights_T[start + t], weights_T[start + t + 1]
            third, fourth = weights_T[start + t + 2], weights_T[start + t + 3]
            for d in range(size):
                output_D[d] += (
                    first * values[block, t, d]
                    + second * values[block, t + 1, d]
                    + third * values[block, t + 2, d]
                    + fourth * values[block, t + 3, d]
                )
        for t in range(fours, count):
            for d in range(size):
                output_D[d] += weights_T[start + t] * values[block, t, d]
    for d in range(size):
        output_D[d] /= total


@compiled
def _exponentiate(values_T: FloatArray) -> None:
    """e**x in place, for x up to 88; below -87 it stays at e**-87. A call of libm for each would not be vectorised.

    2**y = 2**n * 2**f with f from -0.5 to 0.5: n goes straight into the exponent's bits, 2**f is a polynomial of degree
    six (Cephes, exp2f.c: at most 2 units in the last place).
    """
    bits_T = values_T.view(np.int32)
    for t in range(len(values_T)):
        y = max(values_T[t] * np.float32(1.4426950408889634), np.float32(-126))
        n = np.floor(y + np.float32(0.5))
        f = y - n
        power = np.float32(1.535336188319500e-4)
        power = power * f + np.float32(1.339887440266574e-3)
        power = power * f + np.float32(9.618437357674640e-3)
        power = power * f + np.float32(5.550332471162809e-2)
        power = power * f + np.float32(2.402264791363012e-1)
        power = power * f + np.float32(6.931472028550421e-1)
        values_T[t] = power * f + np.float32(1)
        bits_T[t] += np.int32(n) << 23
