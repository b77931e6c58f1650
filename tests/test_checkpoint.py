"""GGUF files of a few kilobytes, each written here: what loads, what is refused, how the model is brought."""

import random
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import pre_tokenizers

from gqa_lab.checkpoint import halves_from_pairs, load_pretrained

SIZES = {
    "llama.block_count": 2,
    "llama.embedding_length": 42,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 3,
    "llama.attention.key_length": 8,
    "llama.attention.value_length": 8,
    "llama.rope.dimension_count": 8,
    "llama.feed_forward_length": 24,
    "llama.context_length": 64,
    "llama.rope.freq_base": 500.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
VOCAB_SIZE = 50


def tensors(sizes=SIZES, *, tied=True, biases=False, seed=0) -> dict[str, np.ndarray]:
    """Random weights under their GGUF names. 6 heads of 8 are 48, not the 42 of d_model."""
    rng = np.random.default_rng(seed)
    c, f = sizes["llama.embedding_length"], sizes["llama.feed_forward_length"]
    d = sizes.get("llama.attention.key_length", c // sizes["llama.attention.head_count"])
    q = sizes["llama.attention.head_count"] * d
    kv = sizes.get("llama.attention.head_count_kv", sizes["llama.attention.head_count"]) * d
    shapes = {"token_embd.weight": (VOCAB_SIZE, c), "output_norm.weight": (c,)}
    shapes |= {} if tied else {"output.weight": (VOCAB_SIZE, c)}
    for i in range(sizes["llama.block_count"]):
        layer = {
            "attn_norm": (c,),
            "attn_q": (q, c),
            "attn_k": (kv, c),
            "attn_v": (kv, c),
            "attn_output": (c, q),
        }
        layer |= {"ffn_norm": (c,), "ffn_gate": (f, c), "ffn_up": (f, c), "ffn_down": (c, f)}
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
        if biases:
            shapes |= {f"blk.{i}.attn_{x}.bias": (rows,) for x, rows in zip("qkv", (q, kv, kv), strict=True)}
    return {name: rng.normal(size=shape).astype(np.float32) / 4 for name, shape in shapes.items()}


def write(path: Path, metadata, weights, *, kinds=None, architecture="llama", endian=gguf.GGUFEndian.LITTLE) -> Path:
    """Writes a GGUF file; `kinds` says which tensors are stored as other than float32."""
    writer = gguf.GGUFWriter(path, architecture, endianess=endian)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        (writer.add_array if isinstance(value, list) else add[type(value)])(key, value)
    for name, numbers in weights.items():
        kind = (kinds or {}).get(name, Kind.F32)
        raw = numbers if numbers.dtype == np.uint8 else gguf.quants.quantize(numbers, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def without(mapping, *names):
    return {key: value for key, value in mapping.items() if key not in names}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "tiny.gguf"


def load(path: Path):
    return load_pretrained(path, device="cpu")


# ------------------------------------------------------------------------------ against transformers


def pairs_from_halves(rows: np.ndarray, n_heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py: how Q and K go into a file."""
    return rows.reshape(n_heads, 2, rows.shape[0] // n_heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def hugging_face(tmp_path, *, n_kv_heads=3, tied=False, biases=False, rope=None, wrong_k_heads=None):
    """A random `LlamaForCausalLM` and the GGUF file that llama.cpp's converter would make of it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=42,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=n_kv_heads,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=tied,
        attention_bias=biases,
    )
    oracle = LlamaForCausalLM(config).eval()
    state = {name: torch.randn_like(weight) / 4 for name, weight in oracle.state_dict().items()}
    state = {name: weight * 0 if "o_proj.bias" in name else weight for name, weight in state.items()}
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    oracle.load_state_dict(state)
    gguf_name = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2).get_name
    weights = {}
    for name, weight in state.items():
        rows = weight.numpy()
        if "q_proj" in name:
            rows = pairs_from_halves(rows, 6)
        if "k_proj" in name:
            rows = pairs_from_halves(rows, wrong_k_heads or n_kv_heads)
        if "o_proj.bias" not in name and not (tied and name == "lm_head.weight"):
            weights[gguf_name(name, (".weight", ".bias"))] = rows
    if rope:
        standard = 500.0 ** (torch.arange(0, 8, 2) / -8)
        weights["rope_freqs.weight"] = (standard / oracle.model.rotary_emb.inv_freq).numpy()
    sizes = SIZES | {"llama.attention.head_count_kv": n_kv_heads}
    return oracle, write(tmp_path / "hf.gguf", sizes, weights)


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def worst_difference(oracle, model) -> float:
    ids = torch.randint(VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (oracle(ids).logits - model(ids)).abs().max().item()


@pytest.mark.parametrize("n_kv_heads", [6, 3, 2, 1])
@pytest.mark.parametrize("tied, biases", [(False, False), (True, False), (False, True)])
def test_logits_are_those_of_transformers(tmp_path, n_kv_heads, tied, biases):
    oracle, path = hugging_face(tmp_path, n_kv_heads=n_kv_heads, tied=tied, biases=biases)
    model, _ = load(path)
    assert worst_difference(oracle, model) < 1e-5
    assert model.config.tie_embeddings == tied and model.config.attention_bias == biases


def test_k_permuted_with_another_head_count_gives_other_logits(tmp_path):
    """The same file with K permuted for H heads instead of G: every shape is right, every answer wrong."""
    oracle, path = hugging_face(tmp_path, wrong_k_heads=6)
    assert worst_difference(oracle, load(path)[0]) > 1e-2


def test_llama3_frequencies_are_those_of_transformers(tmp_path):
    oracle, path = hugging_face(tmp_path, rope=LLAMA3)
    model, _ = load(path)
    first, second, *slow = model.config.rope_scaling
    assert first == 1 and 1 < second < 8 and slow == [8, 8], "kept, in between, and divided by the whole factor"
    assert worst_difference(oracle, model) < 1e-5


# ------------------------------------------------------------------------------------ what is loaded


def test_the_model_is_ready_to_answer_and_not_to_be_trained(path):
    model, tokenizer = load(write(path, SIZES, tensors(tied=False)))
    assert tokenizer is None
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    assert (model.config.n_heads, model.config.n_kv_heads, model.config.head_dim) == (6, 3, 8)
    assert (model.config.d_model, model.config.max_seq_len, model.config.vocab_size) == (42, 64, 50)


def test_a_file_that_leaves_things_out_means_the_defaults(path):
    optional = ("attention.head_count_kv", "attention.key_length", "attention.value_length", "rope.freq_base")
    sizes = without(SIZES, *(f"llama.{key}" for key in optional), "llama.rope.dimension_count")
    sizes |= {"llama.attention.head_count": 5, "llama.embedding_length": 40}
    config = load(write(path, sizes, tensors(sizes)))[0].config
    assert (config.n_kv_heads, config.head_dim, config.rope_theta) == (5, 8, 10000.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_and_rotary_tables_come_in_the_dtype_asked_for(path, dtype):
    model, _ = load_pretrained(write(path, SIZES, tensors()), dtype=dtype, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert {table.dtype for table in model.buffers()} == {dtype}
    assert model(torch.tensor([[1, 2, 3]])).isfinite().all()


@pytest.mark.parametrize("kind, steps", [(Kind.F16, 4096), (Kind.BF16, 512), (Kind.Q8_0, 254), (Kind.Q4_1, 14)])
def test_compressed_numbers_come_back_within_half_a_step(path, kind, steps):
    sizes = SIZES | {"llama.embedding_length": 64}
    weights = tensors(sizes)
    name = "token_embd.weight"  # 50 rows: not a multiple of 8
    model, _ = load(write(path, sizes, weights, kinds={name: kind}))
    error = np.abs(model.embed_tokens.weight.numpy() - weights[name]).max()
    assert 0 < error <= 1.1 * np.ptp(weights[name]) / steps


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q5_1, Kind.Q4_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS])
def test_every_type_of_the_gguf_package_is_read(path, kind):
    sizes = SIZES | {"llama.embedding_length": 256}
    weights = tensors(sizes)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(60, size=(24, 256 // block * block_bytes), dtype=np.uint8)
    weights["blk.1.attn_v.weight"] = raw
    model, _ = load(write(path, sizes, weights, kinds={"blk.1.attn_v.weight": kind}))
    expected = torch.from_numpy(gguf.quants.dequantize(raw, kind))
    assert expected.isfinite().all() and expected.std() > 0
    assert torch.equal(model.layers[1].attention.v_proj.weight, expected)


def test_the_model_keeps_nothing_of_the_file(path):
    model, _ = load(write(path, SIZES, tensors()))
    before = model(torch.tensor([[1, 2, 3]]))
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(model(torch.tensor([[1, 2, 3]])), before)


def test_loading_leaves_the_random_numbers_and_later_models_alone(path):
    write(path, SIZES, tensors())
    torch.manual_seed(0)
    expected = torch.nn.Linear(3, 3).weight
    torch.manual_seed(0)
    load(path)
    assert torch.equal(torch.nn.Linear(3, 3).weight, expected)


@pytest.mark.parametrize("n_heads", [1, 2, 3])
def test_unpermuting_is_the_inverse_of_llama_cpps_permuting(n_heads):
    for shape in ((24, 5), (24,)):
        rows = np.arange(np.prod(shape)).reshape(shape)
        assert np.array_equal(halves_from_pairs(torch.tensor(pairs_from_halves(rows, n_heads)), n_heads), rows)


def test_another_kind_of_tokenizer_is_a_warning_and_the_model_still_loads(path):
    metadata = SIZES | {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default"}
    with pytest.warns(UserWarning, match="tokenizer.ggml.model 'llama'.*supported: .*'smollm'") as warned:
        model, tokenizer = load(write(path, metadata, tensors()))
    assert tokenizer is None and model(torch.tensor([[1]])).shape == (1, 1, VOCAB_SIZE)
    assert len(warned) == 1


# ---------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"llama.expert_count": 8}, r"llama.expert_count = 8"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama.rope.scaling.type = 'yarn'"),
        ({"llama.rope.scaling.factor": 4.0}, r"llama.rope.scaling.factor = 4.0"),
        ({"llama.rope.dimension_count": 4}, r"llama.rope.dimension_count is 4, but the head dimension is 8"),
        (
            {"llama.attention.value_length": 4},
            r"llama.attention.value_length is 4, but the head dimension is 8",
        ),
        (
            {"llama.attention.head_count": [6, 6]},
            r"llama.attention.head_count is not one number for all layers: \[6, 6\]",
        ),
        (
            {"llama.attention.head_count_kv": [3, 1]},
            r"llama.attention.head_count_kv is not one number for all layers",
        ),
        (
            {"llama.feed_forward_length": [24, 48]},
            r"llama.feed_forward_length is not one number for all layers",
        ),
        ({"llama.attention.head_count_kv": 4}, r"n_heads \(6\) must be a multiple of n_kv_heads \(4\)"),
        ({"llama.attention.sliding_window": 16}, r"llama.attention.sliding_window = 16"),
        ({"llama.attention.sinks": True}, r"llama.attention.sinks = True"),
        ({"llama.block_count": 3}, r"tensor blk.2.attn_norm.weight is missing"),
        ({"llama.block_count": 2**31}, r"tensor blk.2.attn_norm.weight is missing"),
        (
            {"llama.feed_forward_length": 2**31},
            r"ffn_gate.weight has shape \(24, 42\), expected \(2147483648, 42\)",
        ),
        ({"llama.rope.freq_base": "high"}, r"llama.rope.freq_base is not one number for all layers: 'high'"),
        ({"split.count": 2}, r"one of 2 parts of a split model"),
    ],
)
def test_metadata_that_our_model_would_ignore_is_refused_by_name(path, changes, message):
    with pytest.raises(ValueError, match=rf"cannot load .*tiny.gguf: .*{message}.* Supported: .*'llama'"):
        load(write(path, SIZES | changes, tensors()))


def test_values_that_change_nothing_are_no_reason_to_refuse(path):
    neutral = {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.vocab_size": 50}
    load(write(path, SIZES | neutral, tensors()))


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_a_missing_size_is_named(path, key):
    with pytest.raises(ValueError, match=f"the metadata lacks llama.{key}"):
        load(write(path, without(SIZES, f"llama.{key}"), tensors()))


def test_another_architecture_is_refused_by_name(path):
    with pytest.raises(ValueError, match="the architecture is 'qwen3moe'. Supported: .*'llama'"):
        load(write(path, SIZES, tensors(), architecture="qwen3moe"))


@pytest.mark.parametrize("name", tensors())  # output.weight is not among them: without it the model is tied
def test_a_missing_tensor_is_named(path, name):
    with pytest.raises(ValueError, match=f"tensor {name} is missing"):
        load(write(path, SIZES, without(tensors(tied=False), name)))


def test_a_missing_bias_is_named(path):
    with pytest.raises(ValueError, match="tensor blk.1.attn_k.bias is missing"):
        load(write(path, SIZES, without(tensors(biases=True), "blk.1.attn_k.bias")))


@pytest.mark.parametrize("name", ["blk.0.attn_output.bias", "blk.0.ffn_gate_inp.weight", "blk.2.attn_norm.weight"])
def test_a_tensor_that_belongs_nowhere_is_named(path, name):
    stray = {name: np.zeros(42, np.float32)}
    with pytest.raises(ValueError, match=rf"tensor {name} of shape \(42,\) belongs to no part of this model"):
        load(write(path, SIZES, tensors() | stray))


def test_a_misshapen_tensor_is_named_with_both_shapes(path):
    wrong = {"blk.1.attn_k.weight": np.zeros((48, 42), np.float32)}  # as many rows as Q has
    with pytest.raises(ValueError, match=r"blk.1.attn_k.weight has shape \(48, 42\), expected \(24, 42\)"):
        load(write(path, SIZES, tensors() | wrong))
    wrong = {"rope_freqs.weight": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="rope_scaling has 3 numbers.* = 4"):
        load(write(path, SIZES, tensors() | wrong))


def test_a_type_that_the_gguf_package_cannot_read_is_named(path):
    weights = tensors() | {"blk.0.attn_v.weight": np.zeros((24, 42), np.uint8)}
    with pytest.raises(ValueError, match="tensor blk.0.attn_v.weight has type I8, which the gguf package cannot"):
        load(write(path, SIZES, weights, kinds={"blk.0.attn_v.weight": Kind.I8}))


def test_a_file_cut_off_anywhere_is_refused(path):
    whole = write(path, SIZES | {"tokenizer.ggml.tokens": ["a", "b"]}, tensors()).read_bytes()
    cuts = [0, 1, 3, 4, 23, 24, *range(25, 1200, 13), *range(1200, len(whole) - 32, 997), len(whole) - 33]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="not a GGUF file" if cut < 4 else "truncated"):
            load(path)


def test_a_file_with_a_damaged_header_is_refused_or_loads_but_never_breaks(path):
    write(path, SIZES | {"tokenizer.ggml.tokens": ["a", "b"]}, tensors())
    whole = path.read_bytes()
    context_length = whole.index(b"llama.context_length")  # any length is possible there, even a huge one
    n_refused = 0
    rng = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        place = rng.choice([i for i in range(2400) if not context_length <= i < context_length + 28])
        damaged[place] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load(path)
        except ValueError:
            n_refused += 1
    assert n_refused > 75


def test_a_big_endian_file_is_refused_by_name(path):
    with pytest.raises(ValueError, match="the file is big-endian"):
        load(write(path, SIZES, tensors(), endian=gguf.GGUFEndian.BIG))


def test_another_version_is_refused_by_number(path):
    damaged = bytearray(write(path, SIZES, tensors()).read_bytes())
    damaged[4] = 1
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="version 1"):
        load(path)


def test_a_pickle_is_not_a_gguf_file_and_nothing_in_it_runs(path):
    torch.save({"weight": torch.zeros(100)}, path)
    with pytest.raises(ValueError, match="not a GGUF file"):
        load(path)


def test_a_missing_path_a_useless_dtype_and_an_absent_device_are_refused_with_a_remedy(path, shapes_unchecked):
    with pytest.raises(FileNotFoundError, match=r"tiny.gguf does not exist; smollm2_path\(\) brings a model"):
        load(path)
    write(path, SIZES, tensors())
    for dtype in (torch.int8, torch.float8_e5m2, "float32", None):
        with pytest.raises(ValueError, match=rf"floating-point type such as torch.float32 .*, got .*{dtype}"):
            load_pretrained(path, dtype=dtype, device="cpu")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device must be one of this machine, such as 'cpu', got '{device}'"):
            load_pretrained(path, device=device)


def test_a_claim_of_endless_positions_is_refused_before_their_tables_are_made(path):
    with pytest.raises(ValueError, match="it claims 1048577 positions; at most 1048576 are supported"):
        load(write(path, SIZES | {"llama.context_length": 2**20 + 1}, tensors()))


def test_a_vocabulary_size_that_the_embeddings_contradict_is_refused(path):
    with pytest.raises(ValueError, match="llama.vocab_size is 51, but token_embd.weight has 50 rows"):
        load(write(path, SIZES | {"llama.vocab_size": 51}, tensors()))


def test_billions_of_heads_that_do_not_divide_are_refused_at_once(path):
    sizes = SIZES | {"llama.attention.head_count": 2**32 - 1, "llama.attention.head_count_kv": 2}
    with pytest.raises(ValueError, match=r"n_heads \(4294967295\) must be a multiple of n_kv_heads \(2\); try 1"):
        load(write(path, sizes, tensors()))


def test_a_tokenizer_may_be_smaller_than_the_model_and_never_larger(path, monkeypatch):
    monkeypatch.setitem(globals(), "VOCAB_SIZE", 300)
    weights, letters = tensors(), sorted(pre_tokenizers.ByteLevel.alphabet())

    def file(n_tokens, **ids):
        parts = {
            "model": "gpt2",
            "pre": "smollm",
            "tokens": [*letters, "he", *(f"<|{i}|>" for i in range(n_tokens - 257))],
            "merges": ["h e"],
            "token_type": [1] * n_tokens,
        } | {f"{key}_token_id": i for key, i in ids.items()}
        return write(path, SIZES | {f"tokenizer.ggml.{key}": value for key, value in parts.items()}, weights)

    for n_tokens in (290, 300):
        model, tokenizer = load(file(n_tokens, eos=n_tokens - 1))
        assert (tokenizer.vocab_size, tokenizer.stop_ids) == (n_tokens, (n_tokens - 1,))
    with pytest.warns(UserWarning, match="no tokenizer.*: it has 301 tokens, but the model knows 300"):
        assert load(file(301))[1] is None
    for key in ("bos", "eos", "eot"):
        with pytest.warns(UserWarning, match=f"tokenizer.ggml.{key}_token_id is 290, but the vocabulary is 0 to 289"):
            assert load(file(290, **{key: 290}))[1] is None
