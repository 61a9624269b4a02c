"""The attention classes of Hugging Face transformers for images, video and sound."""

from dataclasses import replace

from burst.adapters.linear import fused, linear
from burst.adapters.registry import (
    COSINE_WINDOWS,
    CROSS,
    LEARNED,
    REDUCED,
    RELATIVE,
    ROTARY,
    SHIFT_MASK,
    Attention,
    AttentionLayout,
    adapter,
    prefix_tokens,
    read_layout,
    refuse,
)
from burst.adapters.transformers import classes, number_of_heads, scale, weights
from burst.errors import UnsupportedModel

# Since 5.0, or later, each of these attentions is one module. Before it was around another, which
# has the weights and reads the same.
_VIT = (
    "vit:ViT deit:DeiT vit_mae:ViTMAE vit_msn:ViTMSN ijepa:IJepa vivit:Vivit yolos:Yolos "
    "audio_spectrogram_transformer:AST videomae:VideoMAE vitpose_backbone:VitPoseBackbone"
)
_DINOV2 = "dinov2:Dinov2 dinov2_with_registers:Dinov2WithRegisters"
_BEIT = "beit:Beit data2vec.data2vec_vision:Data2VecVision"


def _either(attention: Attention, inner: str) -> AttentionLayout:
    around = attention._modules.get(inner)
    return weights(attention, "q_proj", "k_proj") if around is None else read_layout(around)


@adapter(*classes(f"{_VIT} dpt:DPTViT"), norm="layernorm_before")
@adapter(*classes(_DINOV2), norm="norm1")
def _vit(attention: Attention) -> AttentionLayout:
    return _either(attention, "attention")


@adapter(*classes(f"{_VIT} {_DINOV2} dpt:DPT", "SelfAttention"), up=2)
def _vit_inside(attention: Attention) -> AttentionLayout:
    layout = weights(attention, "query", "key")
    apart = getattr(attention, "q_bias", None)  # VideoMAE before 5.0
    return layout if apart is None else replace(layout, query_bias=apart)


@adapter(*classes(_BEIT), norm="layernorm_before")
def _beit(attention: Attention) -> AttentionLayout:
    layout = _either(attention, "attention")
    return layout if layout.omitted else replace(layout, omitted=_relative(attention))


@adapter(*classes(_BEIT, "SelfAttention", "SdpaSelfAttention"), up=2)
def _beit_inside(attention: Attention) -> AttentionLayout:
    return weights(attention, "query", "key", omitted=_relative(attention))


def _relative(attention: Attention) -> tuple[str, ...]:
    config = getattr(attention, "config", None)
    options = ("use_relative_position_bias", "use_shared_relative_position_bias")
    return (RELATIVE,) if any(getattr(config, option, False) for option in options) else ()


@adapter(*classes("swin:Swin"), norm="layernorm_before")
def _swin(attention: Attention) -> AttentionLayout:
    """It reads windows (B * windows, N, d), and d differs from stage to stage."""
    return replace(_either(attention, "self"), omitted=(RELATIVE, SHIFT_MASK))


@adapter(*classes("swin:Swin", "SelfAttention"), up=2)
def _swin_inside(attention: Attention) -> AttentionLayout:
    return weights(attention, "query", "key", omitted=(RELATIVE, SHIFT_MASK))


@adapter(*classes("clip:CLIP siglip:Siglip siglip2:Siglip2 clipseg:CLIPSeg"), norm="layer_norm1")
@adapter(*classes("owlvit:OwlViT owlv2:Owlv2 idefics3:Idefics3Vision"), norm="layer_norm1")
@adapter(*classes("smolvlm:SmolVLMVision"), norm="layer_norm1")
@adapter(*classes("aimv2:Aimv2"), norm="rms_norm1")
def _clip(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_proj", "k_proj")


refuse(
    *classes("siglip:Siglip siglip2:Siglip2", "MultiheadAttentionPoolingHead.attention"),
    reason=LEARNED,
)


@adapter(*classes("dinov3_vit:DINOv3ViT"), norm="norm1")
def _dinov3(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_proj", "k_proj", omitted=(ROTARY,))


@adapter(*classes("blip:Blip blip_2:Blip2"), norm="layer_norm1")
def _blip(attention: Attention) -> AttentionLayout:
    packed = linear(attention, "qkv")
    return fused(packed, "qkv", heads=number_of_heads(attention), scale=scale(attention))


@adapter(*classes("sam:SamVision", "Attention", "SdpaAttention"), norm="layer_norm1", grid=True)
def _sam(attention: Attention) -> AttentionLayout:
    return replace(_blip(attention), omitted=(RELATIVE,) if attention.use_rel_pos else ())


_WAV2VEC2 = (
    "wav2vec2:Wav2Vec2 hubert:Hubert unispeech:UniSpeech data2vec.data2vec_audio:Data2VecAudio"
)


@adapter(*classes(_WAV2VEC2), same="key_value_states")
@adapter(*classes("whisper:Whisper"), same="key_value_states", norm="self_attn_layer_norm")
def _audio(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_proj", "k_proj")


@adapter(*classes("wavlm:WavLM"))
def _wavlm(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_proj", "k_proj", omitted=(RELATIVE,))


refuse(*classes("whisper:Whisper", "DecoderLayer.encoder_attn"), reason=CROSS)
refuse(*classes("swinv2:Swinv2"), reason=COSINE_WINDOWS)
refuse(*classes("segformer:Segformer pvt:Pvt"), reason=REDUCED)

_ONE = (
    "vit:ViT vit_mae:ViTMAE vit_msn:ViTMSN dinov2:Dinov2 beit:Beit vivit:Vivit dpt:DPTViT "
    "dpt:DPTViTHybrid data2vec.data2vec_vision:Data2VecVision clip:CLIPVision "
    "clipseg:CLIPSegVision owlvit:OwlViTVision owlv2:Owlv2Vision blip:BlipVision blip_2:Blip2Vision"
)
_NONE = (
    "ijepa:IJepa videomae:VideoMAE siglip:SiglipVision siglip2:Siglip2Vision aimv2:Aimv2Vision "
    "vitpose_backbone:VitPoseBackbone"
)


# Models of two towers, whose texts have no such tokens.
_WITH_TEXT = (
    "clip:CLIP clipseg:CLIPSeg siglip:Siglip siglip2:Siglip2 owlvit:OwlViT owlv2:Owlv2 "
    "aimv2:Aimv2 blip.blip_text:Blip"
)


@prefix_tokens(*classes(_ONE, "Embeddings"))
def _class_token(_: Attention) -> int:
    return 1


@prefix_tokens(*classes(_NONE, "Embeddings"))
@prefix_tokens(*classes(_WITH_TEXT, "TextEmbeddings"))
def _no_token(_: Attention) -> int:
    return 0


@prefix_tokens(*classes("deit:DeiT audio_spectrogram_transformer:AST", "Embeddings"))
def _class_and_distillation_token(_: Attention) -> int:
    return 2


@prefix_tokens(
    *classes("dinov2_with_registers:Dinov2WithRegisters dinov3_vit:DINOv3ViT", "Embeddings")
)
def _class_token_and_registers(embeddings: Attention) -> int:
    return 1 + int(embeddings.register_tokens.shape[1])


@prefix_tokens(*classes("yolos:Yolos", "Embeddings"))
def _tokens_behind(_: Attention) -> int:
    raise UnsupportedModel("YOLOS has detection tokens behind its patches; measure all its tokens")
