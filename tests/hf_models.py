"""Small models of Hugging Face transformers, made from a configuration: what is known of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scores import randomised

from burst.adapters.registry import RELATIVE, ROTARY, SHIFT_MASK
from burst.adapters.transformers_text import ALIBI, SINK, SOFT_CAP

HEADS, LENGTH = 4, 7
IMAGE, PATCH = 16, 4
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS}
SIZES = {**WIDTH, "intermediate_size": 40}
GROUPED = {**SIZES, "num_key_value_heads": 2, "vocab_size": 50, "pad_token_id": 0}
WIDE_HEADS = {**GROUPED, "head_dim": 10}
TEXT = {**SIZES, "vocab_size": 50, "pad_token_id": 0, "max_position_embeddings": 32}
VISION = {**SIZES, "image_size": IMAGE, "patch_size": PATCH}
AUDIO = {
    **SIZES, "vocab_size": 12, "conv_dim": (8, 8), "conv_kernel": (4, 3), "conv_stride": (4, 2),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
SEQ2SEQ = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40,
    "vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0,
    "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": HEADS, "vocab_size": 50}


def images():
    return {"pixel_values": torch.randn(2, 3, IMAGE, IMAGE)}


def video():
    return {"pixel_values": torch.randn(2, 4, 3, IMAGE, IMAGE)}


def text():
    return {"input_ids": torch.randint(3, 50, (2, LENGTH))}


def both():
    return {**text(), "decoder_input_ids": torch.randint(3, 50, (2, 5))}


def waves():
    return {"input_values": torch.randn(2, 200)}


def patches():
    """What SigLIP 2 reads: patches of several sizes of image, of which all are used here."""
    return {
        "pixel_values": torch.randn(2, 16, 3 * PATCH**2),
        "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long),
        "spatial_shapes": torch.tensor([[4, 4], [2, 8]]),
    }


@dataclass(frozen=True)
class Known:
    """A model class, a configuration, and what is known of it.

    Attributes:
        name: of the model class.
        config: of the configuration class.
        options: of the configuration.
        inputs: makes what the model is called with.
        omitted: what its scores hold beyond the bilinear term.
        silent: parts of the names of parameters; at zero, their term of the scores is zero.
        attentions: how many attentions are measured.
        refused: how many are not.
        prefix: tokens before the patches; None where there are no patches.
    """

    name: str
    config: str
    options: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]]
    omitted: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    attentions: int = 2
    refused: int = 0
    prefix: int | None = None

    def build(self):
        """The model, with random weights and biases; skipped where this version has none."""
        transformers = pytest.importorskip("transformers", reason="install the extra [hf]")
        if not hasattr(transformers, self.name):
            pytest.skip(f"transformers {transformers.__version__} has no {self.name}")
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.name)._from_config(config, attn_implementation="eager")
        randomised(model)
        for name, parameter in model.named_parameters():
            if any(part in name for part in self.silent):
                torch.nn.init.zeros_(parameter)
        return model


def vision(kind, options=VISION, **known):
    return Known(f"{kind}Model", f"{kind}Config", options, images, **{"prefix": 1, **known})


def encoder(kind, options=TEXT, **known):
    return Known(f"{kind}Model", f"{kind}Config", options, text, **known)


def decoder(kind, options=GROUPED, omitted=(ROTARY,), **known):
    return Known(f"{kind}Model", f"{kind}Config", options, text, omitted, **known)


def audio(kind, **known):
    return Known(f"{kind}Model", f"{kind}Config", AUDIO, waves, **known)


def seq2seq(kind, options=SEQ2SEQ, **known):
    known = {"attentions": 3, "refused": 1, **known}
    return Known(f"{kind}Model", f"{kind}Config", options, both, **known)


MODELS = [
    vision("ViT"),
    vision("DeiT", prefix=2),
    vision("ViTMAE", {**VISION, "mask_ratio": 0.0}),
    vision("ViTMSN"),
    vision("IJepa", prefix=0),
    vision("Yolos", {**VISION, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 3},
           prefix=None),
    vision("DPT", {**VISION, "backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 8]}),
    vision("Dinov2", {**VISION, "mlp_ratio": 1}),
    vision("Dinov2WithRegisters", {**VISION, "mlp_ratio": 1, "num_register_tokens": 3}, prefix=4),
    vision("DINOv3ViT", {**VISION, "num_register_tokens": 2, "key_bias": True},
           omitted=(ROTARY,), prefix=3),
    vision("Beit", {**VISION, "use_relative_position_bias": True},
           omitted=(RELATIVE,), silent=("relative_position_bias",)),
    vision("Data2VecVision", {**VISION, "use_shared_relative_position_bias": True},
           omitted=(RELATIVE,), silent=("relative_position_bias",)),
    Known("VideoMAEModel", "VideoMAEConfig", {**VISION, "num_frames": 4, "tubelet_size": 2}, video,
          prefix=0),
    Known("VivitModel", "VivitConfig", {**VISION, "num_frames": 4, "tubelet_size": [2, 4, 4]},
          video, prefix=1),
    Known("ASTModel", "ASTConfig", {**SIZES, "patch_size": 4, "frequency_stride": 4,
          "time_stride": 4, "max_length": 12, "num_mel_bins": 8},
          lambda: {"input_values": torch.randn(2, 12, 8)}, prefix=2),
    vision("CLIPVision"),
    encoder("CLIPText"),
    vision("SiglipVision", prefix=0, refused=1),
    encoder("SiglipText"),
    Known("Siglip2VisionModel", "Siglip2VisionConfig", {**SIZES, "patch_size": PATCH,
          "num_patches": 16}, patches, refused=1, prefix=0),
    vision("CLIPSegVision"),
    vision("OwlViTVision"),
    vision("Owlv2Vision"),
    vision("Aimv2Vision", {**VISION, "qkv_bias": True}, prefix=0),
    vision("BlipVision"),
    vision("Blip2Vision"),
    vision("Swin", {"image_size": IMAGE, "patch_size": 2, "embed_dim": 16, "depths": [2, 1],
           "num_heads": [2, 4], "window_size": 2},
           omitted=(RELATIVE, SHIFT_MASK), silent=("relative_position_bias",), attentions=3,
           prefix=0),
    vision("SamVision", {**WIDTH, "image_size": IMAGE, "patch_size": PATCH, "window_size": 2,
           "global_attn_indexes": [1], "output_channels": 8, "mlp_dim": 40},
           omitted=(RELATIVE,), silent=("rel_pos",), prefix=0),
    audio("Wav2Vec2"),
    audio("Hubert"),
    audio("UniSpeech"),
    audio("WavLM", omitted=(RELATIVE,), silent=("rel_attn_embed",)),
    Known("WhisperModel", "WhisperConfig", {**SEQ2SEQ, "max_source_positions": 10,
          "num_mel_bins": 8, "max_target_positions": 16},
          lambda: {"input_features": torch.randn(2, 8, 20),
                   "decoder_input_ids": torch.randint(3, 50, (2, 5))},
          attentions=3, refused=1),
    encoder("Bert"),
    encoder("Roberta"),
    encoder("XLMRoberta"),
    encoder("XLMRobertaXL"),
    encoder("Camembert"),
    encoder("Electra", {**TEXT, "embedding_size": 24}),
    encoder("Ernie"),
    encoder("RobertaPreLayerNorm"),
    encoder("Data2VecText"),
    encoder("LayoutLM"),
    encoder("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": HEADS, "hidden_dim": 40,
            "vocab_size": 50, "max_position_embeddings": 32}),
    encoder("MPNet", omitted=(RELATIVE,), silent=("relative_attention_bias",)),
    encoder("Albert", {**TEXT, "embedding_size": 24}, attentions=1),
    encoder("Esm", {**TEXT, "position_embedding_type": "rotary", "mask_token_id": 1},
            omitted=(ROTARY,)),
    encoder("ModernBert", {**TEXT, "attention_bias": True, "bos_token_id": 1, "eos_token_id": 2,
            "cls_token_id": 1, "sep_token_id": 2}, omitted=(ROTARY,)),
    encoder("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": HEADS, "vocab_size": 50,
            "n_positions": 32, "scale_attn_by_inverse_layer_idx": True, "bos_token_id": 1,
            "eos_token_id": 2}),
    encoder("GPTNeo", {"hidden_size": 32, "num_layers": 2, "num_heads": HEADS, "vocab_size": 50,
            "max_position_embeddings": 32, "attention_types": [[["global", "local"], 1]],
            "window_size": 3, "bos_token_id": 1, "eos_token_id": 2}),
    decoder("GPTNeoX", TEXT),
    decoder("GPTJ", {"n_embd": 32, "n_layer": 2, "n_head": HEADS, "vocab_size": 50,
            "n_positions": 32, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2}),
    encoder("OPT", {**TEXT, "ffn_dim": 40, "word_embed_proj_dim": 32}),
    encoder("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": HEADS, "vocab_size": 50,
            "bos_token_id": 1, "eos_token_id": 2}, omitted=(ALIBI,)),
    decoder("Falcon", {**TEXT, "bias": True, "multi_query": False}),
    decoder("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": HEADS, "vocab_size": 50,
            "max_seq_len": 16}, (ALIBI,)),
    decoder("Llama", {**GROUPED, "attention_bias": True}),
    decoder("Mistral", WIDE_HEADS),
    decoder("Mixtral", {**GROUPED, "num_local_experts": 2}),
    decoder("Qwen2"),
    decoder("Qwen2Moe", {**GROUPED, "num_experts": 2, "num_experts_per_tok": 1,
            "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}),
    decoder("Gemma", WIDE_HEADS),
    decoder("Gemma2", {**WIDE_HEADS, "query_pre_attn_scalar": 3, "attn_logit_softcapping": 2.0},
            (ROTARY, SOFT_CAP)),
    decoder("Granite", {**GROUPED, "attention_multiplier": 0.3}),
    decoder("Starcoder2"),
    decoder("Cohere", {**GROUPED, "attention_bias": True}),
    decoder("Olmo", {**GROUPED, "eos_token_id": 2, "attention_bias": True}),
    decoder("SmolLM3", {**GROUPED, "no_rope_layers": [1, 0], "bos_token_id": 1,
            "eos_token_id": 2}),
    decoder("GptOss", {**WIDE_HEADS, "num_local_experts": 2, "num_experts_per_tok": 1,
            "eos_token_id": 2}, (ROTARY, SINK)),
    decoder("Glm", {**WIDE_HEADS, "attention_bias": True, "eos_token_id": 2}),
    decoder("Helium", {**GROUPED, "head_dim": 8}),
    decoder("Arcee"),
    decoder("Ernie4_5", {**GROUPED, "head_dim": 8, "use_bias": True}),
    decoder("Phi"),
    decoder("Phi3", {**GROUPED, "bos_token_id": 1, "eos_token_id": 2}),
    decoder("StableLm", {**GROUPED, "use_qkv_bias": True}),
    seq2seq("Bart"),
    seq2seq("MBart"),
    seq2seq("Pegasus"),
    seq2seq("Marian"),
    seq2seq("M2M100"),
    seq2seq("T5", T5, omitted=(RELATIVE,), silent=("relative_attention_bias",), attentions=4,
            refused=2),
    seq2seq("MT5", T5, omitted=(RELATIVE,), silent=("relative_attention_bias",), attentions=4,
            refused=2),
]  # fmt: skip

NORMED = "normalises queries and keys (query-key norm)"
CLAMPED = "clamps queries and keys"
CROSS = "its keys come from other tokens"
DISENTANGLED = "disentangled attention"
LATENT = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 2,
}  # fmt: skip
DECODING = {**TEXT, "is_decoder": True, "add_cross_attention": True}
# model, what is said of its last attention
REFUSED = [
    (decoder("Qwen3", WIDE_HEADS), NORMED),
    (decoder("Qwen3Moe", {**WIDE_HEADS, "num_experts": 2}), NORMED),
    (Known("Gemma3TextModel", "Gemma3TextConfig", WIDE_HEADS, text), NORMED),
    (decoder("Olmo2", {**GROUPED, "eos_token_id": 2}), NORMED),
    (decoder("Olmoe", {**GROUPED, "num_experts": 2, "eos_token_id": 2}), NORMED),
    (decoder("Cohere", {**GROUPED, "use_qk_norm": True}), NORMED),
    (decoder("Phi", {**GROUPED, "qk_layernorm": True}), NORMED),
    (decoder("Olmo", {**GROUPED, "clip_qkv": 1.0, "eos_token_id": 2}), CLAMPED),
    (decoder("Mpt", {"d_model": 32, "n_layers": 1, "n_heads": HEADS, "vocab_size": 50,
             "attn_config": {"clip_qkv": 1.0}}), CLAMPED),
    (decoder("DeepseekV2", {**GROUPED, **LATENT}), "latent attention"),
    (decoder("DeepseekV3", {**GROUPED, **LATENT}), "latent attention"),
    (encoder("Deberta"), DISENTANGLED),
    (encoder("DebertaV2"), DISENTANGLED),
    (vision("Swinv2", {"image_size": IMAGE, "embed_dim": 16, "depths": [1], "num_heads": [2],
            "window_size": 2}), "cosine attention"),
    (vision("Segformer", {"num_encoder_blocks": 1, "depths": [1], "sr_ratios": [2],
            "hidden_sizes": [16], "patch_sizes": [3], "strides": [2], "num_attention_heads": [2],
            "mlp_ratios": [2]}), "reduced map"),
    (encoder("Bert", DECODING), CROSS),
    (encoder("Roberta", DECODING), CROSS),
    (encoder("Electra", DECODING), CROSS),
    (encoder("GPT2", {"n_embd": 32, "n_layer": 1, "n_head": HEADS, "vocab_size": 50,
             "add_cross_attention": True}), CROSS),
    (seq2seq("Bart"), CROSS),
    (seq2seq("T5", T5), CROSS),
    (vision("SiglipVision"), "its queries are learned vectors"),
]  # fmt: skip
