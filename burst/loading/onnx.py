"""A DINOv2-type ViT in an ONNX file -> a timm state dict; nothing of the graph is run.

PyTorch's exporter keeps the names of most parameters. The weights of matrix products it stores
transposed, as `onnx::MatMul_1966` and the like, and the positions in two parts: what those are, the
scopes of the nodes that read them tell.
"""

import importlib
import re
from pathlib import PurePosixPath

import torch
from torch import Tensor

from burst.errors import CheckpointError
from burst.loading.common import Foreign, first_line

ENCODER = "backbone."
CLASS_POSITION, PATCH_POSITIONS = "embeddings.Concat", "embeddings.Reshape"
PROJECTION = r"(encoder\.layer\.\d+\.attention\.attention)\.query\.(weight|bias)"
TIMM = {  # how transformers' Dinov2Model calls a part -> how timm does
    r"^embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"^embeddings\.": "",
    r"^layernorm": "norm",
    r"^encoder\.layer": "blocks",
    r"attention\.attention": "attn",
    r"attention\.output\.dense": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
}
Named = dict[str, Tensor]


def read_dinov2(content: bytes) -> Named:
    """The encoder of a model around transformers' Dinov2Model, in timm's names.

    What lies outside of `backbone.`, such as a decoder, is left out. Other files, to which an ONNX
    model may refer, are never opened.

    Args:
        content: of the ONNX file.

    Returns:
        Name -> float32 tensor on the CPU; query, key and value joined, the class token's position
        before those of the patches.

    Raises:
        CheckpointError: this is no ONNX model, or one that keeps weights in other files, or of
            another kind.
        ImportError: onnx is not installed.
    """
    onnx: Foreign = importlib.import_module("onnx")
    try:
        graph = onnx.load_model_from_string(content).graph
    except Exception as error:  # protobuf tells damage by an error of its own
        raise CheckpointError(f"this is no ONNX model ({first_line(error)})") from error
    held = {one.name: one for one in graph.initializer}
    named = {meant: _tensor(onnx, held[name]) for name, meant in _parameters(graph, held).items()}
    try:
        return _in_timm_names(named)
    except KeyError as error:
        raise CheckpointError(f"this ONNX model has no {ENCODER}{error.args[0]}") from error
    except RuntimeError as error:  # parts that do not fit together
        raise CheckpointError(
            f"this ONNX model has an encoder of another kind ({first_line(error)})"
        ) from error


def _parameters(graph: Foreign, held: Named) -> dict[str, str]:
    """The encoder's stored tensors -> what each was called before the export."""
    names = {name: name for name in held if name.startswith(ENCODER)}
    for node in graph.node:
        scope = ".".join(PurePosixPath(node.name).parent.parts[1:])
        if scope.startswith(ENCODER):
            what = "weight" if node.op_type == "MatMul" else node.op_type
            lost = (name for name in node.input if name in held and name not in names)
            names |= dict.fromkeys(lost, f"{scope}.{what}")
    return {name: meant.removeprefix(ENCODER) for name, meant in names.items()}


def _tensor(onnx: Foreign, stored: Foreign) -> Tensor:
    if stored.external_data or stored.data_location == onnx.TensorProto.EXTERNAL:
        raise CheckpointError(f"this ONNX model keeps {stored.name} in another file")
    value = torch.tensor(onnx.numpy_helper.to_array(stored), dtype=torch.float32)
    return value.mT.contiguous() if stored.name.startswith("onnx::MatMul") else value


def _in_timm_names(named: Named) -> Named:
    rest = dict(named)
    positions = [rest.pop(CLASS_POSITION), rest.pop(PATCH_POSITIONS)]
    state = {"pos_embed": torch.cat(positions, dim=1)}
    for found in filter(None, (re.fullmatch(PROJECTION, name) for name in named)):
        scope, kind = found.groups()
        parts = [rest.pop(f"{scope}.{one}.{kind}") for one in ("query", "key", "value")]
        rest[f"{scope}.qkv.{kind}"] = torch.cat(parts)
    return state | {_timm_name(name): value for name, value in rest.items()}


def _timm_name(name: str) -> str:
    for theirs, ours in TIMM.items():
        name = re.sub(theirs, ours, name)
    return name
