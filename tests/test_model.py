import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gqa_lab.attention import expanded_attention, grouped_attention, sdpa_attention
from gqa_lab.config import ModelConfig
from gqa_lab.costs import kv_cache_bytes, n_parameters
from gqa_lab.model import Transformer, reads_faster_by_columns
from gqa_lab.recorded import recorded

SIZES = dict(
    n_layers=2, d_model=24, n_heads=6, n_kv_heads=3, head_dim=8, d_ff=32, vocab_size=50, max_seq_len=64,
    rope_theta=1e4, norm_eps=1e-5,
)  # fmt: skip
LLAMA3_SCALING = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)


def tiny(**changes) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(**SIZES | changes)).double().eval()


def oracle_and_ours(n_heads, n_kv_heads, tied, rope_parameters=None):
    torch.manual_seed(1)
    rope_parameters = {"rope_theta": 1e4, "rope_type": "default"} | (rope_parameters or {})
    theirs = LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=2, hidden_size=24, num_attention_heads=n_heads, num_key_value_heads=n_kv_heads,
            head_dim=8, intermediate_size=32, vocab_size=50, max_position_embeddings=64, rms_norm_eps=1e-5,
            tie_word_embeddings=tied, rope_parameters=rope_parameters,
        )
    ).double().eval()  # fmt: skip
    inv_freq = theirs.model.rotary_emb.inv_freq
    plain = 1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8)
    scaling = None if rope_parameters["rope_type"] == "default" else tuple((plain / inv_freq).tolist())
    ours = tiny(n_heads=n_heads, n_kv_heads=n_kv_heads, tie_embeddings=tied, rope_scaling=scaling)
    names = {
        "model.": "", "self_attn": "attention", "input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm",
    }  # fmt: skip
    state = {}
    for name, weight in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        if not (tied and name == "lm_head.weight"):
            state[name] = weight
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(6, 6), (6, 3), (6, 2), (6, 1)])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_logits_equal_those_of_transformers(n_heads, n_kv_heads, tied):
    theirs, ours = oracle_and_ours(n_heads, n_kv_heads, tied)
    ids = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-6, rtol=0)


@torch.no_grad()
def test_divided_frequencies_are_the_rope_scaling_of_llama_3():
    theirs, ours = oracle_and_ours(6, 3, False, LLAMA3_SCALING)
    assert max(ours.config.rope_scaling) > 2
    ids = torch.randint(50, (1, 60), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_heads": 6},
        {"n_kv_heads": 1},
        {"attention_bias": True, "qk_norm": True},
        {"sliding_window": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("attend", [expanded_attention, grouped_attention, sdpa_attention], ids=lambda f: f.__name__)
@torch.no_grad()
def test_prefill_chunks_and_steps_add_up_to_one_forward(changes, attend):
    model = tiny(**changes)
    ids = torch.randint(50, (2, 12), generator=torch.Generator().manual_seed(2))
    whole = model(ids, attend=attend)
    caches = model.new_caches(2, 12)
    parts = [model(ids[:, a:b], caches, attend=attend) for a, b in ((0, 5), (5, 6), (6, 9), (9, 10), (10, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", [None, 2, 4, 7])
@torch.no_grad()
def test_a_ragged_batch_computes_what_each_sequence_computes_alone(window):
    model = tiny(sliding_window=window)
    prompts = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
    caches = model.new_caches(3, 8)
    for b, prompt in enumerate(prompts):
        model(torch.tensor([prompt]), [cache.row(b) for cache in caches])
    new = torch.tensor([[7, 8], [10, 11], [12, 13]])
    together = model(new, caches, attend=grouped_attention)
    for b, prompt in enumerate(prompts):
        alone = model(torch.tensor([prompt + new[b].tolist()]))[:, -2:]
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("window", [None, 7, 30])
@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])
def test_allocated_caches_are_as_large_as_predicted(n_kv_heads, window):
    model = tiny(n_kv_heads=n_kv_heads, sliding_window=window)
    held = sum(cache.nbytes for cache in model.new_caches(3, 20))
    assert held == kv_cache_bytes(model.config, batch_size=3, kv_len=20, bytes_per_element=8)


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": True}, {"attention_bias": True, "qk_norm": True, "n_kv_heads": 1}],
    ids=str,
)
def test_the_predicted_number_of_parameters_is_exact(changes):
    model = tiny(**changes)
    assert n_parameters(model.config) == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_too_many_tokens_or_too_few_caches_are_refused(shapes_unchecked):
    model = tiny()
    with pytest.raises(ValueError, match="65 tokens after 0 exceed the 64 positions of this model"):
        model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(ValueError, match=r"max_seq_len \(65\) exceeds the 64 positions"):
        model.new_caches(1, 65)
    with pytest.raises(ValueError, match="caches has 1 entries; this model has 2 layers"):
        model(torch.zeros(1, 1, dtype=torch.long), model.new_caches(1, 8)[:1])


def test_a_changed_dtype_changes_the_caches_too():
    model = tiny().to(torch.float16)
    assert model.new_caches(1, 4)[0].k.dtype == torch.float16
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.float16


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@torch.no_grad()
def test_biases_and_head_norms_are_those_of_qwen(family):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(
        family, num_hidden_layers=2, hidden_size=24, num_attention_heads=6, num_key_value_heads=3, head_dim=4,
        intermediate_size=32, vocab_size=50, max_position_embeddings=64, rms_norm_eps=1e-2,
        tie_word_embeddings=False, rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
    )  # fmt: skip
    theirs = AutoModelForCausalLM.from_config(config).double().eval()
    for weight in theirs.parameters():
        weight.copy_(torch.randn_like(weight) * 0.2 + (weight.ndim == 1))  # norms and biases that matter
    qwen3 = family == "qwen3"
    ours = tiny(head_dim=4, norm_eps=1e-2, attention_bias=not qwen3, qk_norm=qwen3)
    names = {
        "model.": "",
        "self_attn": "attention",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
    }
    state = {}
    for name, weight in theirs.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = weight
    ours.load_state_dict(state)
    ids = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)


def test_rotary_tables_are_computed_in_float32_and_only_then_rounded():
    model = tiny(max_seq_len=64).float()
    model.init_rope()
    exact = model.rope_cos
    half = tiny(max_seq_len=64).to(torch.bfloat16)
    half.init_rope()
    assert torch.equal(half.rope_cos, exact.to(torch.bfloat16))


@torch.no_grad()
def test_caches_that_a_failed_step_left_apart_are_refused_until_they_are_rewound():
    model, ids = tiny(), torch.tensor([[3]])
    caches = model.new_caches(1, 8)
    model(ids, caches)
    with pytest.raises(ZeroDivisionError):
        model(ids, caches, attend=lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ValueError, match="different numbers of tokens"):
        model(ids, caches)
    for cache in caches:
        cache.rewind(1)
    torch.testing.assert_close(model(ids, caches)[:, -1], model(torch.tensor([[3, 3]]))[:, -1], atol=1e-10, rtol=0)


def test_a_cache_with_another_window_than_the_models_is_refused():
    caches = tiny(sliding_window=4).new_caches(1, 8)
    with pytest.raises(ValueError, match="this cache keeps a window of 4 tokens, but window is None"):
        tiny()(torch.tensor([[1, 2]]), caches)


@torch.no_grad()
def test_a_windowed_model_may_also_be_given_caches_that_keep_everything():
    model, ids = tiny(sliding_window=3), torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    caches = tiny().new_caches(1, 8)
    parts = [model(ids[:, :5], caches), model(ids[:, 5:6], caches), model(ids[:, 6:], caches)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        (torch.tensor([1]), r"token_ids must be an integer tensor \[batch, tokens\], got torch.int64 \[1\]"),
        (torch.tensor([[1.0]]), r"got torch.float32 \[1, 1\]"),
        ([[1]], r"token_ids must be an integer tensor \[batch, tokens\], got \[\[1\]\]"),
        (torch.tensor([[1, 50]]), "token_ids hold 1 to 50; this model knows 0 to 49"),
        (torch.tensor([[-1, 3]]), "token_ids hold -1 to 3"),
    ],
    ids=str,
)
def test_ids_that_no_vocabulary_has_are_refused(token_ids, message, shapes_unchecked):
    with pytest.raises(ValueError, match=message):
        tiny()(token_ids)


def test_no_caches_are_not_the_right_number_of_caches():
    with pytest.raises(ValueError, match="caches has 0 entries; this model has 2 layers"):
        tiny()(torch.tensor([[1]]), [])


def test_the_layout_of_weights_changes_no_number_and_follows_the_dtype():
    model, ids = tiny(tie_embeddings=True).requires_grad_(False).float(), torch.tensor([[3, 1, 4]])
    head, gate, down = model.embed_tokens.weight, model.layers[0].mlp.gate_proj.weight, model.layers[0].mlp.down_proj.weight  # fmt: skip
    assert head.stride() == (1, 50) and gate.stride() == (1, 32) and down.stride() == (32, 1)
    columns = model(ids)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for weight in model.parameters():
        weight.data = weight.data.contiguous()
    torch.testing.assert_close(model(ids), columns, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.is_contiguous() for weight in model.float().half().parameters())


def test_the_layout_is_for_frozen_weights_and_dtypes_that_change():
    model = tiny(tie_embeddings=True)
    assert all(weight.is_contiguous() for weight in model.float().parameters())  # in training
    model.requires_grad_(False).double().float()
    assert not model.embed_tokens.weight.is_contiguous()
    before = model.embed_tokens.weight.data_ptr()
    assert model.to("cpu").float().embed_tokens.weight.data_ptr() == before


def test_rotary_tables_are_not_rounded_by_a_dtype_that_was_left_again():
    model = tiny().float()
    expected = model.rope_sin.clone()
    assert torch.equal(model.half().float().rope_sin, expected)


def test_the_speeds_that_a_docstring_quotes_are_the_recorded_ones():
    head = recorded("cpu_weights")["results"][0]
    assert (head["dtype"], head["matrix"]) == ("float32", "lm_head")
    quoted = "{by_columns} instead of {by_rows} GB/s".format(**head["gb_per_s"])
    assert quoted in reads_faster_by_columns.__doc__
