import numpy as np
import pytest
import torch
from support import DEPTH, vit

from burst.errors import CheckpointError
from burst.loading.onnx import read_dinov2

onnx = pytest.importorskip("onnx", reason="needs onnx")
BLOCK = {  # as timm calls it -> as transformers does
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "attn.proj.bias": "attention.output.dense.bias",
    "ls1.gamma": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "mlp.fc1.bias": "mlp.fc1.bias",
    "mlp.fc2.bias": "mlp.fc2.bias",
    "ls2.gamma": "layer_scale2.lambda1",
}
PRODUCTS = {
    "attn.proj.weight": "attention/output/dense",
    "mlp.fc1.weight": "mlp/fc1",
    "mlp.fc2.weight": "mlp/fc2",
}


class Graph:
    """What an exporter writes, as far as it is read: initialisers, and the nodes that use them."""

    def __init__(self):
        self.initialisers, self.nodes = [], []

    def keep(self, name, value):
        self.initialisers.append(onnx.numpy_helper.from_array(value.numpy(), name))

    def use(self, scope, operator, value, *, number):
        name = f"onnx::{operator}_{number}"
        self.keep(name, value)
        inputs = ["x", name] if operator == "MatMul" else [name, "x"]
        node = onnx.helper.make_node(operator, inputs, ["y"], name=f"/{scope}/{operator}")
        self.nodes.append(node)

    def model(self):
        graph = onnx.helper.make_graph(self.nodes, "main", [], [], initializer=self.initialisers)
        return onnx.helper.make_model(graph)

    def content(self):
        return self.model().SerializeToString()


def random_state(**changes):
    model = vit(init_values=0.5, **changes)
    return {name: torch.randn(value.shape) for name, value in model.state_dict().items()}


def exported(state, depth=DEPTH):
    """A ViT as PyTorch exports transformers' Dinov2Model, the `backbone` of another model."""
    graph, at = Graph(), "backbone.embeddings"
    graph.keep(f"{at}.cls_token", state["cls_token"])
    for kind in ("weight", "bias"):
        graph.keep(f"{at}.patch_embeddings.projection.{kind}", state[f"patch_embed.proj.{kind}"])
        graph.keep(f"backbone.layernorm.{kind}", state[f"norm.{kind}"])
        graph.keep(f"decoder.head.{kind}", torch.randn(3))
    graph.use("backbone/embeddings", "Reshape", state["pos_embed"][:, 1:], number=1962)
    graph.use("backbone/embeddings", "Concat", state["pos_embed"][:, :1], number=1957)
    for n in reversed(range(depth)):  # the numbers of names and the order of nodes say nothing
        for ours, theirs in BLOCK.items():
            graph.keep(f"backbone.encoder.layer.{n}.{theirs}", state[f"blocks.{n}.{ours}"])
        q_k_v = zip(
            ("query", "key", "value"),
            state[f"blocks.{n}.attn.qkv.weight"].chunk(3),
            state[f"blocks.{n}.attn.qkv.bias"].chunk(3),
            strict=True,
        )
        for i, (one, weight, bias) in enumerate(q_k_v):
            scope = f"backbone/encoder/layer.{n}/attention/attention/{one}"
            graph.use(scope, "MatMul", weight.mT.contiguous(), number=100 * n + i)
            graph.keep(f"{scope.replace('/', '.')}.bias", bias)
        for i, (ours, place) in enumerate(PRODUCTS.items()):
            weight = state[f"blocks.{n}.{ours}"].mT.contiguous()
            scope = f"backbone/encoder/layer.{n}/{place}"
            graph.use(scope, "MatMul", weight, number=100 * n + 50 + i)
    graph.use("decoder/mixer", "MatMul", torch.randn(2, 2), number=9999)
    return graph


@pytest.mark.parametrize("depth", [1, 3, 11])
def test_every_tensor_comes_back_under_timm_s_name(depth):
    state = random_state(depth=depth)
    found = read_dinov2(exported(state, depth).content())
    assert found.keys() == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_what_is_read_fits_the_model_and_is_its_own_memory():
    model = vit(init_values=0.5)
    found = read_dinov2(exported(random_state()).content())
    model.load_state_dict(found, strict=True)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.is_contiguous() for value in found.values())


def test_half_precision_is_read_as_float32():
    graph = exported(random_state())
    kept = next(one for one in graph.initialisers if one.name == "backbone.layernorm.weight")
    values = onnx.numpy_helper.to_array(kept).astype(np.float16)
    kept.CopyFrom(onnx.numpy_helper.from_array(values, kept.name))
    found = read_dinov2(graph.content())["norm.weight"]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("content", [b"not a model", b"\x0a\xff\xff\xff\xff\xff"])
def test_what_is_no_onnx_model_is_told(content):
    with pytest.raises(CheckpointError, match="this is no ONNX model"):
        read_dinov2(content)


@pytest.mark.parametrize("content", [b"", None])
def test_a_model_of_another_kind_is_told(content):
    other = Graph()
    other.keep("conv1.weight", torch.randn(3))
    with pytest.raises(CheckpointError, match=r"this ONNX model has no backbone\.embeddings"):
        read_dinov2(other.content() if content is None else content)


def test_a_projection_that_is_missing_is_named():
    graph = exported(random_state())
    graph.nodes = [
        node for node in graph.nodes if "layer.1/attention/attention/key" not in node.name
    ]
    words = r"no backbone\.encoder\.layer\.1\.attention\.attention\.key\.weight"
    with pytest.raises(CheckpointError, match=words):
        read_dinov2(graph.content())


def test_projections_of_unlike_widths_are_refused():
    graph = exported(random_state())
    name = "backbone.encoder.layer.2.attention.attention.value.bias"
    kept = next(one for one in graph.initialisers if one.name == name)
    kept.CopyFrom(onnx.numpy_helper.from_array(np.zeros((3, 3), np.float32), name))
    with pytest.raises(CheckpointError, match="encoder of another kind"):
        read_dinov2(graph.content())


def test_weights_in_another_file_are_never_opened(tmp_path, monkeypatch):
    (tmp_path / "weights.bin").write_bytes(bytes(4 * 32))
    monkeypatch.chdir(tmp_path)
    graph = exported(random_state())
    kept = next(one for one in graph.initialisers if one.name == "backbone.layernorm.bias")
    onnx.external_data_helper.set_external_data(kept, "weights.bin")
    kept.ClearField("raw_data")
    with pytest.raises(CheckpointError, match=r"keeps backbone\.layernorm\.bias in another file"):
        read_dinov2(graph.content())
