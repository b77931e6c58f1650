"""Hugging Face folders of a few kilobytes, each written here by transformers: what loads, and what is refused."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM

from gqa_lab.checkpoint import load_pretrained
from gqa_lab.generate import generate

SIZES = dict(
    vocab_size=50, hidden_size=42, intermediate_size=24, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-3, tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 500.0}, bos_token_id=None, eos_token_id=None,
)  # fmt: skip
LLAMA3 = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)  # fmt: skip
WINDOW = 9  # between the two prompts of an answer, and shorter than either with its answer


def settings(family="llama", **changes):
    return AutoConfig.for_model(family, **SIZES | changes)


def write(folder: Path, config, *, dtype=torch.float32, **save) -> Path:
    """Writes a model whose every parameter is random: norms around 1, biases as large as what they are added to."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim == 1 else 0.3) + ("norm" in name))
    model.to(dtype).save_pretrained(folder, **save)
    return folder


def edit(folder: Path, name="config.json", **changes) -> Path:
    """Changes a JSON file of the folder; a value of `...` takes the key out."""
    said = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in said.items() if value is not ...}))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in load_file(folder / "model.safetensors").items()}


def rewrite(folder: Path, changed: dict[str, torch.Tensor]) -> Path:
    save_file(changed, folder / "model.safetensors")
    return folder


def load(folder: Path, **kwargs):
    return load_pretrained(folder, device="cpu", **kwargs)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("llama"), settings())


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A good Llama, for a test to spoil."""
    return shutil.copytree(written, tmp_path / "tiny")


# ------------------------------------------------------------------------------ against transformers


@torch.no_grad()
def assert_computes_what_transformers_does(folder: Path):
    """Logits to 2e-5 of the largest, of a whole forward and over caches, and the same greedy answers."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, _ = load(folder)
    ids = torch.randint(50, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = theirs(ids).logits
    assert (ours(ids) - expected).abs().max() <= 2e-5 * expected.abs().max()
    caches = ours.new_caches(2, 40)
    for start, end in ((0, 14), (14, 15), (15, 18), *((t, t + 1) for t in range(18, 40))):
        cached = ours(ids[:, start:end], caches)
        assert (cached - expected[:, start:end]).abs().max() <= 2e-5 * expected.abs().max()
    prompts = [ids[0, :7].tolist(), ids[1, :16].tolist()]
    steps = generate(ours, prompts, max_new_tokens=16)
    for prompt, answer in zip(prompts, zip(*steps, strict=True), strict=True):
        known = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=16, pad_token_id=0)
        assert list(answer) == known[0, len(prompt) :].tolist() and len(set(answer)) > 1
    return ours


CASES = {
    "llama": settings(),
    "llama, one KV head": settings(num_key_value_heads=1),
    "llama, one KV head per head": settings(num_key_value_heads=6),
    "llama, head_dim derived": settings(head_dim=None, hidden_size=48, num_key_value_heads=3),
    "llama, tied": settings(tie_word_embeddings=True),
    "llama, llama3 RoPE": settings(rope_parameters=LLAMA3),
    "llama, linear RoPE": settings(rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}),
    "mistral, window": settings("mistral", sliding_window=WINDOW),
    "mistral, no window": settings("mistral", sliding_window=None, num_key_value_heads=1),
    "qwen2": settings("qwen2", tie_word_embeddings=True),
    "qwen2, window": settings("qwen2", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0),
    "qwen2, no window": settings("qwen2", use_sliding_window=False, sliding_window=5, max_window_layers=0),
    "qwen3": settings("qwen3", num_key_value_heads=3),
    "qwen3, one KV head": settings("qwen3", num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3, window": settings("qwen3", use_sliding_window=True, sliding_window=WINDOW, max_window_layers=0),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_answers_are_those_of_transformers(tmp_path, name):
    model = assert_computes_what_transformers_does(write(tmp_path, CASES[name]))
    config, theirs = model.config, CASES[name]
    assert (config.n_heads, config.n_kv_heads, config.head_dim) == (6, theirs.num_key_value_heads, 8)
    assert config.sliding_window == (WINDOW if name.endswith(", window") else None)
    assert config.attention_bias == name.startswith("qwen2") and config.qk_norm == name.startswith("qwen3")
    assert config.tie_embeddings == theirs.tie_word_embeddings == (not hasattr(model, "lm_head"))
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_sixteen_bits_are_widened_exactly(tmp_path, dtype):
    model = assert_computes_what_transformers_does(write(tmp_path, settings(), dtype=dtype))
    assert model.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_weights_come_in_the_dtype_asked_for(folder, dtype):
    model, _ = load(folder, dtype=dtype)
    assert {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]} == {dtype}
    expected = weights(folder)["model.layers.1.self_attn.k_proj.weight"].to(dtype)
    assert torch.equal(model.layers[1].attention.k_proj.weight, expected)


def test_a_model_in_several_files_is_put_together_by_their_index(tmp_path):
    write(tmp_path, settings(), max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_computes_what_transformers_does(tmp_path)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_rope_is_read_from_where_older_files_have_it(folder, key):
    scaling = {name: value for name, value in LLAMA3.items() if not name.startswith("rope_")}
    edit(folder, rope_parameters=..., rope_theta=700.0, rope_scaling=scaling | {key: "llama3"})
    config = assert_computes_what_transformers_does(folder).config
    first, *_, last = config.rope_scaling
    assert (config.rope_theta, first, last) == (700.0, 1.0, 8.0)


def test_a_file_older_than_grouped_heads_means_one_kv_head_per_head_and_a_base_of_10000(tmp_path):
    write(tmp_path, settings(num_key_value_heads=6, head_dim=None, hidden_size=48))
    edit(tmp_path, rope_parameters=..., num_key_value_heads=..., head_dim=..., tie_word_embeddings=...)
    config = assert_computes_what_transformers_does(tmp_path).config
    assert (config.n_kv_heads, config.head_dim, config.rope_theta) == (6, 8, 10000.0)


def test_an_output_matrix_that_repeats_tied_embeddings_is_read_once(tmp_path):
    write(tmp_path, settings(tie_word_embeddings=True))
    both = weights(tmp_path)
    rewrite(tmp_path, both | {"lm_head.weight": both["model.embed_tokens.weight"].clone()})
    assert not hasattr(assert_computes_what_transformers_does(tmp_path), "lm_head")
    rewrite(tmp_path, both | {"lm_head.weight": both["model.embed_tokens.weight"] + 1})
    with pytest.raises(ValueError, match="tie_word_embeddings is true, but lm_head.weight differs from the embed"):
        load(tmp_path)
    rewrite(tmp_path, both | {"lm_head.weight": torch.zeros(51, 42)})
    with pytest.raises(ValueError, match=r"tensor lm_head.weight of shape \(51, 42\) belongs to no part"):
        load(tmp_path)


def test_rotary_buffers_of_old_files_are_ignored_by_name(folder):
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((4,), 9.0) for i in range(3)}
    rewrite(folder, weights(folder) | buffers | {"model.rotary_emb.inv_freq": torch.full((4,), 9.0)})
    assert_computes_what_transformers_does(folder)


def test_settings_that_say_nothing_about_the_logits_are_no_reason_to_refuse(folder):
    edit(
        folder, quantization_config=None, sliding_window=None, pretraining_tp=2, attention_dropout=0.5, use_mrope=False
    )
    assert_computes_what_transformers_does(folder)


@pytest.mark.parametrize(
    "changes, window",
    [
        (dict(use_sliding_window=True, sliding_window=5, max_window_layers=3, layer_types=...), None),
        (dict(use_sliding_window=True, sliding_window=None, max_window_layers=1, layer_types=...), None),
        (dict(use_sliding_window=True, sliding_window=5, layer_types=["full_attention"] * 3), None),
        (dict(use_sliding_window=True, sliding_window=5, layer_types=["sliding_attention"] * 3), 5),
        (dict(use_sliding_window=False, sliding_window=5, max_window_layers=0, layer_types=...), None),
        (dict(use_sliding_window=..., sliding_window=5, max_window_layers=..., layer_types=...), None),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_window_of_qwen_is_one_where_its_layers_use_it(tmp_path, changes, window):
    edit(write(tmp_path, settings("qwen2")), **changes)
    model, _ = load(tmp_path)
    assert model.config.sliding_window == window
    ids = torch.arange(20)[None]
    expected = AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits
    assert (model(ids) - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_the_model_keeps_nothing_of_the_files(folder):
    model, _ = load(folder)
    before = model(torch.tensor([[1, 2, 3]]))
    file = folder / "model.safetensors"
    with open(file, "r+b") as handle:  # in place: the very bytes that a mapped file would show
        handle.seek(file.stat().st_size // 2)
        handle.write(b"\0" * (file.stat().st_size // 2))
    assert torch.equal(model(torch.tensor([[1, 2, 3]])), before)


# ---------------------------------------------------------------------------------- what is refused


def refused(folder: Path, message: str):
    return pytest.raises(
        ValueError, match=rf"(?s)cannot load .*{folder.name}: .*{message}.*\. Supported: .*model_type llama"
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model_type="gemma2"), 'model_type = "gemma2"'),
        (dict(model_type=...), "model_type = null"),
        (dict(model_type=["llama"]), r'model_type = \["llama"\]'),
        (dict(hidden_act="gelu"), 'hidden_act = "gelu", which our model would ignore'),
        (dict(attention_bias=True), "attention_bias = true, which"),
        (dict(mlp_bias=True), "mlp_bias = true, which"),
        (dict(quantization_config={"bits": 4}), 'quantization_config = {"bits": 4}, which'),
        (dict(auto_map={"AutoModel": "evil.Model"}), 'auto_map = {"AutoModel": "evil.Model"}, which'),
        (dict(sliding_window=16), "sliding_window = 16, which"),
        (dict(layer_types=["full_attention"] * 3), "layer_types = .*, which"),
        (dict(partial_rotary_factor=0.5), "partial_rotary_factor = 0.5, which"),
        (dict(attn_logit_softcapping=50.0), "attn_logit_softcapping = 50.0, which"),
        (dict(odd="x" * 1000), 'odd = "x{76}\\.\\.\\., which'),
        (dict(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), 'rope_type = "yarn"'),
        (dict(rope_scaling={"type": "dynamic", "factor": 2.0}), 'rope_type = "dynamic"'),
        (dict(rope_parameters=LLAMA3 | {"attention_factor": 2}), "attention_factor = 2 for RoPE of type llama3, which"),
        (dict(rope_parameters={"full_attention": LLAMA3}), "full_attention = .* for RoPE of type default, which"),
        (dict(rope_parameters=LLAMA3 | {"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5 for RoPE"),
        (dict(rope_parameters=LLAMA3 | {"low_freq_factor": 4}), r"low_freq_factor \(4\) must be less than high_freq"),
        (dict(rope_parameters={"rope_type": "linear"}), "config.json lacks factor"),
        (dict(rope_parameters={"rope_type": "linear", "factor": 0}), "factor = 0, not a number greater than 0"),
        (dict(rope_parameters={"rope_type": 3}), "rope_type = 3"),
        (dict(rope_parameters=[1]), r"RoPE is \[1\], not an object"),
        (dict(rope_parameters=..., rope_theta="high"), 'rope_theta = "high", not a number'),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps = NaN, not a number greater than 0"),
        (dict(rms_norm_eps=...), "config.json lacks rms_norm_eps"),
        (dict(hidden_size=None), "config.json lacks hidden_size"),
        (dict(hidden_size="42"), 'hidden_size = "42", not a number'),
        (dict(num_hidden_layers=3.5), "num_hidden_layers = 3.5, not a whole number"),
        (dict(num_hidden_layers=True), "num_hidden_layers = true, not a number"),
        (dict(num_hidden_layers=0), "num_hidden_layers = 0, not a number greater than 0"),
        (dict(num_key_value_heads=4), r"n_heads \(6\) must be a multiple of n_kv_heads \(4\); try 1, 2, 3 or 6"),
        (dict(head_dim=9), r"head_dim \(9\) must be even"),
        (dict(head_dim=2**40), "head_dim is 1099511627776; no model has more than 4096"),
        (dict(num_attention_heads=2**40 + 1), "must be a multiple of n_kv_heads"),
        (dict(max_position_embeddings=2**40), "claims 1099511627776 positions; at most 1048576 are supported"),
        (dict(num_hidden_layers=2**40), "tensor model.layers.3.input_layernorm.weight is missing"),
        (dict(num_hidden_layers=2), r"tensor model.layers.2.* belongs to no part of this model"),
        (dict(vocab_size=49), r"model.embed_tokens.weight has shape \(50, 42\), expected \(49, 42\)"),
        (dict(num_key_value_heads=3), r"layers.0.self_attn.k_proj.weight has shape \(16, 42\), expected \(24, 42\)"),
        (dict(tie_word_embeddings="yes"), 'tie_word_embeddings = "yes", not true or false'),
        (dict(model_type="qwen2"), "tensor model.layers.0.self_attn.q_proj.bias is missing"),
        (dict(model_type="qwen3"), "tensor model.layers.0.self_attn.q_norm.weight is missing"),
        (dict(model_type="mistral"), "lacks sliding_window; a model without a window says null"),
        (dict(model_type="mistral", sliding_window=0), "sliding_window = 0, not a number greater than 0"),
        (dict(model_type="mistral", sliding_window=4, use_sliding_window=False), "use_sliding_window = false, which"),
        (dict(model_type="qwen3", use_sliding_window=1), "use_sliding_window = 1, not true or false"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_our_model_would_ignore_or_cannot_have_are_refused_by_name(folder, changes, message):
    with refused(folder, message):
        load(edit(folder, **changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            dict(sliding_window=5, max_window_layers=1),
            "different kinds of attention, full_attention, sliding_attention",
        ),
        (dict(sliding_window=5, layer_types=["full_attention"] * 2 + ["sliding_attention"]), "different kinds"),
        (dict(sliding_window=5, layer_types=["chunked_attention"] * 3), "kinds of attention, chunked_attention"),
        (dict(use_sliding_window=False, layer_types=["sliding_attention"] * 3), "kinds of attention, sliding_att"),
        (dict(sliding_window=5, layer_types=["full_attention"] * 2), "layer_types = .*, not one name for each of 3"),
        (dict(sliding_window=5, layer_types="full_attention"), "layer_types = .*, not one name for each of 3 layers"),
        (dict(sliding_window=5), "config.json lacks max_window_layers"),
        (dict(sliding_window=...), "config.json lacks sliding_window"),
    ],
    ids=str,
)
def test_windows_in_some_layers_only_are_refused(tmp_path, changes, message):
    write(tmp_path, settings("qwen3"))
    changes = dict(use_sliding_window=True, max_window_layers=..., layer_types=...) | changes
    with refused(tmp_path, message):
        load(edit(tmp_path, **changes))


def test_every_missing_tensor_is_named(folder):
    whole = weights(folder)
    for name in whole:
        rewrite(folder, {other: weight for other, weight in whole.items() if other != name})
        with refused(folder, f"tensor {name} is missing"):
            load(folder)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"model.layers.0.self_attn.o_proj.bias": (42,)}, r"o_proj.bias of shape \(42,\) belongs to no part"),
        ({"model.layers.0.self_attn.q_proj.bias": (48,)}, r"q_proj.bias of shape \(48,\) belongs to no part"),
        ({"score.weight": (2, 42)}, r"score.weight of shape \(2, 42\) belongs to no part"),
        ({"model.layers.1.mlp.up_proj.weight": (42, 24)}, r"up_proj.weight has shape \(42, 24\), expected \(24, 42\)"),
        ({"model.norm.weight": ()}, r"model.norm.weight has shape \(\), expected \(42,\)"),
    ],
)
def test_a_tensor_that_belongs_nowhere_or_is_misshapen_is_named(folder, changed, message):
    rewrite(folder, weights(folder) | {name: torch.zeros(shape) for name, shape in changed.items()})
    with refused(folder, message):
        load(folder)


@pytest.mark.parametrize("dtype, name", [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.bool, "BOOL")])
def test_weights_that_are_not_plain_floats_are_refused_by_type(folder, dtype, name):
    rewrite(folder, weights(folder) | {"model.layers.1.self_attn.v_proj.weight": torch.zeros(16, 42).to(dtype)})
    with refused(folder, f"tensor model.layers.1.self_attn.v_proj.weight has type {name}; only float weights"):
        load(folder)


def test_every_shape_is_checked_before_any_weight_is_read(folder, monkeypatch):
    from gqa_lab.hf_folder import HfFolder

    monkeypatch.setattr(HfFolder, "read", lambda *args, **kwargs: pytest.fail("a weight was read"))
    rewrite(folder, weights(folder) | {"lm_head.weight": torch.zeros(51, 42)})
    with refused(folder, "lm_head.weight has shape"):  # the last tensor of all
        load(folder)


# ------------------------------------------------------------------------------- files of the folder


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "config.json is not JSON"),
        ("{'a': 1}", "config.json is not JSON"),
        ("[" * 100_000, "config.json is not JSON"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "config.json is not JSON"),
        ("[1]", "config.json holds a list, not an object"),
        ("null", "config.json holds a NoneType, not an object"),
        (b"\xff\xfe", "config.json is not JSON"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_config_that_is_no_object_is_refused(folder, text, message):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(folder, message):
        load(folder)


def test_a_folder_without_config_or_weights_says_what_to_give_instead(folder):
    (folder / "model.safetensors").unlink()
    with refused(folder, "no model.safetensors and no model.safetensors.index.json"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with refused(folder, "pytorch_model.bin is a pickle, which can run code and is never loaded: .*save_pretrained"):
        load(folder)
    (folder / "tiny.gguf").write_bytes(b"")
    with refused(folder, "no model.safetensors .*; to load tiny.gguf, give the path of that file"):
        load(folder)
    (folder / "config.json").unlink()
    with refused(folder, "no config.json; to load tiny.gguf, give the path of that file"):
        load(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    with refused(folder, "the folder is empty"):
        load(folder)
    folder.rmdir()
    with pytest.raises(FileNotFoundError, match=f"{folder.name} does not exist"):
        load(folder)


def test_no_pickle_beside_the_weights_is_ever_opened(folder):
    torch.save({"model.norm.weight": torch.zeros(42)}, folder / "pytorch_model.bin")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    assert_computes_what_transformers_does(folder)


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with refused(folder, "it has an adapter_config.json; merge the adapter"):
        load(folder)


def test_a_weight_file_cut_off_or_garbled_anywhere_is_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for cut in [0, 1, 7, 8, 9, 500, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:cut])
        with refused(folder, "model.safetensors is truncated or damaged"):
            load(folder)
    for damaged in (struct.pack("<Q", 2**63) + whole[8:], whole[:8] + b"[" + whole[9:], whole + b"\0"):
        file.write_bytes(damaged)
        with refused(folder, "model.safetensors is truncated or damaged"):
            load(folder)
    torch.save({}, file)
    with refused(folder, "model.safetensors is truncated or damaged"):
        load(folder)


@pytest.fixture
def sharded(tmp_path) -> Path:
    return write(tmp_path / "parts", settings(), max_shard_size="20KB")


INDEX = "model.safetensors.index.json"
NORM = "model.norm.weight"


def place(folder: Path, tensor: str, file) -> Path:
    places = json.loads((folder / INDEX).read_text())["weight_map"] | {tensor: file}
    return edit(folder, INDEX, weight_map={name: file for name, file in places.items() if file is not ...})


@pytest.mark.parametrize(
    "file, message",
    [
        ("../outside.safetensors", "names '../outside.safetensors', which is not a safetensors file of this folder"),
        ("/etc/outside.safetensors", "names '/etc/outside.safetensors', which is not"),
        ("..\\outside.safetensors", "names .*, which is not a safetensors file of this folder"),
        ("C:outside.safetensors", "names .*, which is not a safetensors file of this folder"),
        ("deeper/part.safetensors", "names .*, which is not a safetensors file of this folder"),
        ("pytorch_model.bin", "names 'pytorch_model.bin', which is not a safetensors file"),
        ("model-9.safetensors", "names model-9.safetensors, which is missing; download it again"),
        (7, "has no weight_map from tensors to files"),
        (None, "has no weight_map from tensors to files"),
    ],
)
def test_an_index_that_names_a_wrong_file_is_refused(sharded, file, message):
    save_file({NORM: torch.zeros(42)}, sharded.parent / "outside.safetensors")
    with refused(sharded, f"{INDEX} {message}"):
        load(place(sharded, NORM, file))


def test_an_index_and_its_files_must_agree_on_every_tensor(sharded):
    files = sorted({path.name for path in sharded.glob("model-*.safetensors")})
    whole = json.loads((sharded / INDEX).read_text())["weight_map"]
    other = next(file for file in files if file != whole[NORM])
    with refused(sharded, f"{INDEX} places tensor {NORM} in {other}, which lacks it"):
        load(place(sharded, NORM, other))
    with refused(sharded, f"tensor {NORM} of {whole[NORM]} is not listed there by {INDEX}"):
        load(place(sharded, NORM, ...))
    edit(sharded, INDEX, weight_map=whole)
    held = load_file(sharded / other)
    save_file(held | {NORM: torch.zeros(42)}, sharded / other)
    with refused(sharded, f"tensor {NORM} of {other} is not listed there by {INDEX}"):
        load(sharded)
    save_file(held, sharded / other)
    (sharded / other).write_bytes((sharded / other).read_bytes()[:-1])
    with refused(sharded, f"{other} is truncated or damaged"):
        load(sharded)
    for said in ({}, {"weight_map": []}):
        (sharded / INDEX).write_text(json.dumps(said))
        with refused(sharded, f"{INDEX} has no weight_map"):
            load(sharded)


# ------------------------------------------------------------------------------------ its tokenizer


def add_tokenizer(folder: Path, n_tokens: int, **generation) -> Path:
    backend = Tokenizer(models.BPE({f"t{i}": i for i in range(n_tokens - 1)}, []))
    backend.add_special_tokens(["<|end|>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize("n_tokens", [40, 50])
def test_a_tokenizer_comes_along_and_may_be_smaller_than_the_model(folder, n_tokens):
    _, tokenizer = load(add_tokenizer(folder, n_tokens, eos_token_id=[3, n_tokens - 1]))
    assert (tokenizer.vocab_size, tokenizer.stop_ids) == (n_tokens, (3, n_tokens - 1))
    assert tokenizer.encode("<|end|>", special=True) == [n_tokens - 1]


@pytest.mark.parametrize(
    "n_tokens, generation, message",
    [
        (51, {}, "it has 51 tokens, but the model knows 50"),
        (40, {"eos_token_id": 40}, "token id 40 ends an answer, but the vocabulary is 0 to 39"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_a_warning_and_the_model_still_loads(folder, n_tokens, generation, message):
    with pytest.warns(UserWarning, match=f"no tokenizer, the model takes token ids only: {message}") as warned:
        model, tokenizer = load(add_tokenizer(folder, n_tokens, **generation))
    assert tokenizer is None and model.config.n_kv_heads == 2
    assert len(warned) == 1


def test_a_folder_without_a_tokenizer_gives_none_in_silence(folder, recwarn):
    assert load(folder)[1] is None and not recwarn.list
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.warns(UserWarning, match="tokenizer.model is not supported") as warned:
        assert load(folder)[1] is None
    assert len(warned) == 1


@pytest.mark.parametrize("path", [None, b"model", 3])
def test_a_path_of_another_type_is_refused(path, shapes_unchecked):
    with pytest.raises(ValueError, match="path must be a string or a Path, got"):
        load_pretrained(path)
