"""A small library about grouped-query attention, and the course that derives it.

Letters used everywhere, once and for all:

    B  batch_size      sequences decoded together
    H  n_heads         query heads
    G  n_kv_heads      key/value heads (the GQA paper's "number of groups")
    R  group_size      H // G, query heads that share one KV head
    T  q_len           new tokens
    S  kv_len          tokens that can be seen, the new ones included
    D  head_dim        numbers per head
    C  d_model         numbers per token between layers

Tensors are `[batch, heads, seq, head_dim]` everywhere, the cache included. Query head `i` reads KV head
`i // R`. Multi-head attention is G = H and multi-query attention is G = 1: the two ends of one number, and
nowhere a code path of their own.

The modules, ground floor first: `bandwidth`, `config`, `reference`, `costs`, `cache`, `footprint`, `recorded`,
`smollm2`; `contract`, `gguf_file`, `hf_config`, `plots`, `traffic`; `attention`, `hf_folder`, `triton_decode`;
`model`, `tokenizer`, `widgets`; `checkpoint`, `convert`, `generate`; `listen`, `profiler`, `steps`; `checks`. A
module imports only from lower floors. Importing `gqa_lab` itself imports none of them.
"""

__version__ = "0.1.0"
