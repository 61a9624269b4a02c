import hf_folders
import pytest
import torch

import burst
from burst.errors import TextError
from burst.loading.tokenizer import _positions

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    return folder, hf_folders.save_llama(folder)


@pytest.fixture
def story(tmp_path):
    """53 words, all but the last of which the tokenizer knows."""
    path = tmp_path / "story.txt"
    path.write_text(" ".join(hf_folders.WORDS[i % 16] for i in range(52)) + " zebra")
    return path


def test_a_text_is_cut_by_the_model_s_own_tokenizer(llama, story):
    found = burst.load_backbone(f"hf:{llama[0]}")
    assert (found.kind, type(found.model).__name__) == ("text", "LlamaModel")
    stream = burst.text_for(found, story)
    rows = {}
    for names, batch in zip(stream.batch_names, stream, strict=True):
        for name, ids, mask in zip(names, batch["input_ids"], batch["attention_mask"], strict=True):
            rows[int(name)] = ids[mask.bool()].tolist()
    words = [3 + i % 16 for i in range(52)] + [0]
    assert [rows[i] for i in range(3)] == [
        [1, *words[start : start + 22], 2] for start in (0, 22, 44)
    ]


def test_the_model_s_length_is_that_of_a_sequence(llama, story):
    tokenizer = burst.load_backbone(f"hf:{llama[0]}").text_tokenizer()
    assert (tokenizer.max_length, tokenizer.vocabulary, tokenizer.pad) == (24, 40, 2)


def test_a_batch_of_text_is_what_the_model_reads(llama, story):
    found = burst.load_backbone(f"hf:{llama[0]}")
    (batch,) = burst.text_for(found, story)
    with torch.inference_mode():
        ours, theirs = (m(**batch).last_hidden_state for m in (found.model, llama[1].model))
    assert torch.equal(ours, theirs)
    assert not found.model.config.use_cache


def test_no_connection_is_asked_for(llama, story, no_sockets):
    assert burst.text_for(burst.load_backbone(f"hf:{llama[0]}"), story).count == 3


def test_positions_of_roberta_begin_behind_its_padding(tmp_path):
    config = transformers.RobertaConfig(pad_token_id=1, **hf_folders.TEXT)
    transformers.RobertaModel(config).save_pretrained(tmp_path)
    hf_folders.save_tokenizer(tmp_path)
    found = burst.load_backbone(f"hf:{tmp_path}")
    assert found.text_tokenizer().max_length == 24 - 2
    full = torch.full((1, 22), 5)
    found.model(input_ids=full, attention_mask=torch.ones_like(full))


def test_no_number_of_positions_is_no_limit():
    """XLNet's configuration says -1."""
    model = transformers.BertModel(transformers.BertConfig(**hf_folders.TEXT))
    assert _positions(model) == 24
    model.config.max_position_embeddings = -1
    assert _positions(model) >= 10**9


def test_a_model_without_a_tokenizer_says_so(tmp_path, story):
    hf_folders.save_llama(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    found = burst.load_backbone(f"hf:{tmp_path}")
    with pytest.raises(TextError, match="has no tokenizer to be read") as caught:
        burst.text_for(found, story)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_of_a_larger_model_is_told(tmp_path, story):
    sizes = hf_folders.TEXT | {"vocab_size": 10}
    transformers.BertModel(transformers.BertConfig(**sizes)).save_pretrained(tmp_path)
    hf_folders.save_tokenizer(tmp_path)
    with pytest.raises(TextError, match="gives the token 18, but the model knows 10"):
        burst.text_for(burst.load_backbone(f"hf:{tmp_path}"), story)
