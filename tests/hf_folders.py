"""Small models of transformers with random weights, as `save_pretrained` leaves them."""

from pathlib import Path

import torch

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
IMAGES = {"image_size": 32, "patch_size": 8, **SIZES}
TEXT = {"vocab_size": 40, "max_position_embeddings": 24, **SIZES}
WORDS = (
    *("the", "cat", "sat", "on", "a", "mat", "and", "so", "did", "one", "old", "dog", "in", "its"),
    *("own", "small", "house"),
)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, biases too; eval mode."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model.eval()


def save_vit(folder: Path, **options):
    """An image classifier with its processor: 32 x 32 pixels, mean 0.5."""
    import transformers

    model = randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGES)))
    model.save_pretrained(folder, **options)
    save_processor(folder)
    return model


def save_processor(folder: Path, kind: str = "ViTImageProcessor", **options) -> None:
    """An image processor; of 32 x 32 pixels unless it is told otherwise."""
    import transformers

    options = options or {"size": {"height": 32, "width": 32}}
    getattr(transformers, kind)(**options).save_pretrained(folder)


def save_clip(folder: Path):
    """Two towers and their processor and tokenizer."""
    import transformers

    config = transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGES)
    model = randomise(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    save_processor(folder, "CLIPImageProcessor", **size)
    save_tokenizer(folder)
    return model


def save_llama(folder: Path, **options):
    """A language model of grouped keys, with its tokenizer of few words."""
    import transformers

    config = transformers.LlamaConfig(num_key_value_heads=1, **TEXT)
    model = randomise(transformers.LlamaForCausalLM(config))
    model.save_pretrained(folder, **options)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """A token a word of `WORDS`, from 3 on; 0 unknown, 1 in front, 2 behind and for padding."""
    import tokenizers
    import transformers

    words = ["<unk>", "<s>", "</s>", *WORDS]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=24, **marks
    ).save_pretrained(folder)
