"""The circuits of heads in the weights alone: singular values of QK and OV, and composition between heads.

The source is Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". A head moves x_s W_OV from key s to
query t, by the score x_t W_QK x_s. Norms, biases and positions are not part of these matrices.

Shape suffixes:  H head  D model dim  K dim of a head  W head that writes  R head that reads
"""

from typing import Literal, NamedTuple, TypeAlias

import pandas as pd
import torch
from torch import Tensor

from model.lm import LM
from model.transformer.attention import Attention
from model.transformer.lora import merge_lora

CircuitName: TypeAlias = Literal["QK", "OV"]


class HeadMatrices(NamedTuple):
    """The weights of all heads of a layer, each a map from the left: x_D W."""

    q_HDK: Tensor
    k_HDK: Tensor
    v_HDK: Tensor
    o_HKD: Tensor

    def circuit(self, name: CircuitName) -> tuple[Tensor, Tensor]:
        """Return the two factors of a circuit, [H, D, K] and [H, K, D]. Raise ValueError for an unknown name."""
        if name not in ("QK", "OV"):
            raise ValueError(f"circuit={name!r} must be 'QK' or 'OV'")
        return (self.q_HDK, self.k_HDK.mT) if name == "QK" else (self.v_HDK, self.o_HKD)


class CircuitSVD(NamedTuple):
    """The singular value decomposition of a circuit: W = left @ diag(values) @ right.T, largest values first.

    The sign of a pair of vectors is arbitrary. `lm.unembed(svd.right.T)` reads the output directions of OV as logits.
    """

    left: Tensor  # [D, K] directions that the circuit reads: of the query in QK, of the input in OV
    values: Tensor  # [K]
    right: Tensor  # [D, K] directions of the key in QK, of the output in OV


@torch.no_grad()
def matrices_by_layer(lm: LM) -> dict[int, HeadMatrices]:
    """Return the matrices of every attention layer, by layer number. Keys and values are repeated for the heads that share them.

    Raise ValueError if no layer has such matrices, as in an RNN or with the latents of "mla".
    """
    lm = merge_lora(lm) if lm.model_params.lora_rank else lm
    found = {}
    for i, layer in lm.decoder.passes():
        mixers = [
            module for module in layer.modules() if isinstance(module, Attention) and "qkv" in module._modules
        ]
        for mixer in mixers:
            H, K = mixer.model_params.n_heads, mixer.model_params.head_width
            by_head = [torch.cat(weights).unflatten(0, (-1, K)).mT for weights in mixer.query_key_value()]
            q_HDK, k_HDK, v_HDK = (w.repeat_interleave(H // len(w), dim=0) for w in by_head)
            o_HKD = mixer.out.weight.T.unflatten(0, (H, K))
            # torch decomposes matrices in float32 and float64 only.
            dtype = torch.promote_types(o_HKD.dtype, torch.float32)
            found[i] = HeadMatrices(*(w.to(dtype) for w in (q_HDK, k_HDK, v_HDK, o_HKD)))
    if not found:
        kind = lm.model_params.layer_architecture
        raise ValueError(f"no layer has matrices of queries, keys and values: layer_architecture={kind!r}")
    return found


@torch.no_grad()
def circuit_svd(lm: LM, circuit: CircuitName, layer: int, head: int) -> CircuitSVD:
    """Return the singular value decomposition of a head's QK or OV circuit, of rank K at most.

    QK is not divided by sqrt(K). Raise ValueError for an unknown circuit, layer or head.
    """
    layers = matrices_by_layer(lm)
    if layer not in layers or head not in range(len(layers[layer].q_HDK)):
        heads = {i: len(matrices.q_HDK) for i, matrices in layers.items()}
        raise ValueError(f"layer={layer!r}, head={head!r}: the numbers of heads by layer are {heads}")
    left_HDK, right_HKD = layers[layer].circuit(circuit)
    q_DK, r_KK = torch.linalg.qr(left_HDK[head])
    q2_DK, r2_KK = torch.linalg.qr(right_HKD[head].mT)
    # Both q have orthonormal columns, so the small matrix has the singular values of the product.
    u_KK, values_K, v_KK = torch.linalg.svd(r_KK @ r2_KK.T)
    return CircuitSVD(q_DK @ u_KK, values_K, q2_DK @ v_KK.T)


@torch.no_grad()
def composition_scores(lm: LM, reads: Literal["Q", "K", "V"]) -> pd.DataFrame:
    """Return how much each head reads what each head of an earlier layer writes, from 0 to 1.

    The score is |W_OV W| / (|W_OV| |W|) with Frobenius norms. W is W_QK of the later head for `reads` "Q", its transpose
    for "K", and its W_OV for "V". The table has a row for each (layer, head) that writes and a column for each that
    reads. It is 0 where the writer is not in an earlier layer. Random matrices score about 1 / sqrt(D), not 0.
    """
    if reads not in ("Q", "K", "V"):
        raise ValueError(f"reads={reads!r} must be 'Q', 'K' or 'V'")
    layers = matrices_by_layer(lm)
    writers = {i: matrices.circuit("OV") for i, matrices in layers.items()}
    readers = {i: matrices.circuit("OV" if reads == "V" else "QK") for i, matrices in layers.items()}
    if reads == "K":
        readers = {i: (right_HKD.mT, left_HDK.mT) for i, (left_HDK, right_HKD) in readers.items()}
    rows = [
        torch.cat([scores_between(writers[w], readers[r]) * (w < r) for r in readers], dim=1) for w in writers
    ]
    names = [(i, head) for i, matrices in layers.items() for head in range(len(matrices.q_HDK))]
    index = pd.MultiIndex.from_tuples(names, names=["layer", "head"])
    table = pd.DataFrame(torch.cat(rows).cpu().numpy(), index, index)
    table.attrs["title"] = f"rows write, columns read ({reads})"
    return table


def scores_between(writer: tuple[Tensor, Tensor], reader: tuple[Tensor, Tensor]) -> Tensor:
    """Return |A B C D| / (|A B| |C D|) for the factors A, B of each writer and C, D of each reader: [W, R]."""
    a_WKK, c_RDK = triangle(writer[0]), reader[0]
    b_WKD, d_RKK = writer[1], triangle(reader[1].mT).mT
    both_WRKK = a_WKK[:, None] @ (b_WKD[:, None] @ c_RDK) @ d_RKK
    of_writers_W = (a_WKK @ b_WKD).norm(dim=(1, 2))
    of_readers_R = (c_RDK @ d_RKK).norm(dim=(1, 2))
    return both_WRKK.norm(dim=(2, 3)) / (of_writers_W[:, None] * of_readers_R)


def triangle(w_HDK: Tensor) -> Tensor:
    """Return R of W = Q R, [H, K, K]. As Q has orthonormal columns, W may be replaced by R inside a norm."""
    return torch.linalg.qr(w_HDK).R
