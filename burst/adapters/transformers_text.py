"""The attention classes of Hugging Face transformers for text, and of their decoders.

Masks (causal, sliding windows, padding) choose which tokens are scored and are no terms of a score.
"""

from dataclasses import replace

from burst.adapters.linear import Linear, fused, linear
from burst.adapters.registry import (
    CROSS,
    QUERY_KEY_NORM,
    RELATIVE,
    ROTARY,
    Attention,
    AttentionLayout,
    adapter,
    refuse,
)
from burst.adapters.transformers import (
    check_bilinear,
    classes,
    interleaved,
    number_of_heads,
    other_linear,
    scale,
    weights,
)

ALIBI = "linear position bias (ALiBi)"
SOFT_CAP = "soft cap of the scores"
SINK = "attention sink"

_BERT = (
    "bert:Bert roberta:Roberta xlm_roberta:XLMRoberta xlm_roberta_xl:XLMRobertaXL "
    "camembert:Camembert electra:Electra ernie:Ernie bert_generation:BertGeneration "
    "roberta_prelayernorm:RobertaPreLayerNorm data2vec.data2vec_text:Data2VecText"
)


@adapter(
    *classes(f"{_BERT} layoutlm:LayoutLM", "SelfAttention", "SdpaSelfAttention"),
    up=2,
    same="encoder_hidden_states",
)
def _bert(attention: Attention) -> AttentionLayout:
    kind = getattr(attention, "position_embedding_type", "absolute")
    relative = kind in ("relative_key", "relative_key_query")
    return weights(attention, "query", "key", omitted=(RELATIVE,) if relative else ())


refuse(*classes(f"{_BERT} esm:Esm", "Layer.crossattention"), reason=CROSS)


@adapter(*classes("esm:Esm", "SelfAttention"), up=2, same="encoder_hidden_states")
def _esm(attention: Attention) -> AttentionLayout:
    """It scales its queries before it turns them, and says that it scales by 1."""
    rotary = attention.position_embedding_type == "rotary"
    layout = replace(_bert(attention), scale=None)
    return replace(layout, omitted=(ROTARY,)) if rotary else layout


@adapter(*classes("albert:Albert", "Attention", "SdpaAttention"))
def _albert(attention: Attention) -> AttentionLayout:
    """One attention serves all layers, and reads the tokens of each in turn."""
    return _bert(attention)


@adapter(
    *classes("distilbert:DistilBert", "SelfAttention", "SdpaAttention", "FlashAttention2"),
    *classes("distilbert:", "MultiHeadSelfAttention"),
    same="key",
)
def _distilbert(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_lin", "k_lin")


@adapter(*classes("mpnet:MPNet", "SelfAttention"), up=2)
def _mpnet(attention: Attention) -> AttentionLayout:
    return weights(attention, "q", "k", omitted=(RELATIVE,))


@adapter(*classes("modernbert:ModernBert"), norm="attn_norm")
def _modernbert(attention: Attention) -> AttentionLayout:
    heads = number_of_heads(attention)
    return fused(linear(attention, "Wqkv"), "Wqkv", heads=heads, omitted=(ROTARY,))


refuse(
    *classes("deberta: deberta_v2:", "DisentangledSelfAttention"),
    reason="disentangled attention: it scores tokens against positions by projections of their own",
    up=2,
)


@adapter(*classes("gpt2:GPT2"), same="encoder_hidden_states", norm="ln_1")
def _gpt2(attention: Attention) -> AttentionLayout:
    """Conv1D keeps (in, out). Before 4.57 the scale was computed where it is used."""
    kept = other_linear(attention, "c_attn", "transformers.pytorch_utils:Conv1D")
    factor = attention.head_dim**-0.5 if attention.scale_attn_weights else 1.0
    if attention.scale_attn_by_inverse_layer_idx:
        factor /= attention.layer_idx + 1
    packed = Linear(kept.weight.T, kept.bias)
    return fused(packed, "c_attn", heads=number_of_heads(attention), scale=factor)


refuse(*classes("gpt2:GPT2", "Block.crossattention"), reason=CROSS)


@adapter(*classes("gpt_neo:GPTNeo", "SelfAttention", "FlashAttention2"), up=2, norm="ln_1")
def _gpt_neo(attention: Attention) -> AttentionLayout:
    return replace(weights(attention, "q_proj", "k_proj"), scale=1.0)


@adapter(*classes("gptj:GPTJ", "Attention", "FlashAttention2"), norm="ln_1")
def _gptj(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_proj", "k_proj", omitted=(ROTARY,))


@adapter(*classes("gpt_neox:GPTNeoX"), norm="input_layernorm")
def _gpt_neox(attention: Attention) -> AttentionLayout:
    packed, heads = linear(attention, "query_key_value"), number_of_heads(attention)
    return interleaved(packed, heads, 1, scale=scale(attention), omitted=(ROTARY,))


@adapter(*classes("bloom:Bloom"), norm="input_layernorm")
def _bloom(attention: Attention) -> AttentionLayout:
    packed, heads = linear(attention, "query_key_value"), number_of_heads(attention)
    return interleaved(packed, heads, 1, scale=None, omitted=(ALIBI,))


@adapter(*classes("falcon:Falcon", "Attention", "FlashAttention2"), norm="input_layernorm")
def _falcon(attention: Attention) -> AttentionLayout:
    kind = "transformers.models.falcon.modeling_falcon:FalconLinear"
    packed, heads = other_linear(attention, "query_key_value", kind), number_of_heads(attention)
    if attention.new_decoder_architecture:
        group = heads // attention.num_kv_heads
    else:
        group = heads if attention.multi_query else 1
    omitted = (ALIBI,) if attention.config.alibi else (ROTARY,)
    return interleaved(packed, heads, group, scale=None, omitted=omitted)


@adapter(*classes("mpt:Mpt"), norm="norm_1")
def _mpt(attention: Attention) -> AttentionLayout:
    check_bilinear(attention)
    packed, heads = linear(attention, "Wqkv"), number_of_heads(attention)
    return fused(packed, "Wqkv", heads=heads, scale=attention.softmax_scale, omitted=(ALIBI,))


_LLAMA = (
    "llama:Llama mistral:Mistral mixtral:Mixtral qwen2:Qwen2 gemma:Gemma gemma2:Gemma2 phi:Phi "
    "granite:Granite granitemoe:GraniteMoe starcoder2:Starcoder2 cohere:Cohere olmo:Olmo "
    "smollm3:SmolLM3 gpt_oss:GptOss glm:Glm glm4:Glm4 helium:Helium arcee:Arcee seed_oss:SeedOss "
    "ernie4_5:Ernie4_5"
)


@adapter(*classes(_LLAMA), norm="input_layernorm")
@adapter(
    *classes("qwen2_moe:Qwen2Moe stablelm:StableLm", "Attention", "SdpaAttention"),
    *classes("qwen2_moe:Qwen2Moe stablelm:StableLm", "FlashAttention2"),
    norm="input_layernorm",
)
def _llama(attention: Attention) -> AttentionLayout:
    terms = {
        ROTARY: getattr(attention, "use_rope", True),
        SOFT_CAP: getattr(attention, "attn_logit_softcapping", None) is not None,
        SINK: getattr(attention, "sinks", None) is not None,
    }
    omitted = tuple(term for term, present in terms.items() if present)
    return weights(attention, "q_proj", "k_proj", omitted=omitted)


@adapter(*classes("phi3:Phi3"), norm="input_layernorm")
def _phi3(attention: Attention) -> AttentionLayout:
    """Rows of one weight: all queries, all keys (fewer, if they are grouped) and all values."""
    packed, heads = linear(attention, "qkv_proj"), number_of_heads(attention)
    group = attention.num_key_value_groups
    queries = heads * attention.head_dim
    keys = slice(queries, queries + queries // group)
    return AttentionLayout(
        query=packed.weight[:queries],
        key=packed.weight[keys],
        heads=heads,
        group=group,
        scale=scale(attention),
        omitted=(ROTARY,),
    )


refuse(
    *classes("qwen3:Qwen3 qwen3_moe:Qwen3Moe gemma3:Gemma3 olmo2:Olmo2 olmoe:Olmoe"),
    reason=QUERY_KEY_NORM,
)
refuse(
    *classes("deepseek_v2:DeepseekV2 deepseek_v3:DeepseekV3"),
    reason="latent attention: its keys are made of a compressed and normalised token",
)


@adapter(*classes("t5:T5 mt5:MT5"), same="key_value_states", norm="layer_norm")
@adapter(*classes("umt5:UMT5"), same="encoder_hidden_states", norm="layer_norm")
def _t5(attention: Attention) -> AttentionLayout:
    """The first block's relative positions serve all of them."""
    return replace(weights(attention, "q", "k"), scale=1.0, omitted=(RELATIVE,))


refuse(*classes("t5:T5 mt5:MT5 umt5:UMT5", "LayerCrossAttention.EncDecAttention"), reason=CROSS)

_BART = "bart:Bart marian:Marian plbart:PLBart blenderbot_small:BlenderbotSmall"
_MBART = "mbart:MBart pegasus:Pegasus m2m_100:M2M100 blenderbot:Blenderbot xglm:XGLM"


@adapter(*classes(f"{_BART} opt:OPT"), same="key_value_states")  # the norm follows, or may
@adapter(*classes(_MBART), same="key_value_states", norm="self_attn_layer_norm")
def _bart(attention: Attention) -> AttentionLayout:
    return weights(attention, "q_proj", "k_proj")


refuse(*classes(f"{_BART} {_MBART}", "DecoderLayer.encoder_attn"), reason=CROSS)
