"""`Tokenizer`: text to token ids and back, built from what a GGUF file says about its vocabulary."""

import re
from collections.abc import Callable, Mapping, Sequence

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

SUPPORTED = "tokenizer.ggml.model 'gpt2' (byte-level BPE) with tokenizer.ggml.pre 'smollm'"
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
GUARD = "\ufdd0"  # a Unicode noncharacter, "intended for process-internal uses"


class Tokenizer:
    """Byte-level BPE with SmolLM's rules: every digit by itself, then GPT-2's words, no space put in front.

    Control tokens such as `<|im_end|>` steer the model. In plain text they are only characters, so nobody can
    end a turn, or open one in another's name, by typing it; `encode(text, special=True)` and `chat` make real
    ones.

    Args:
        tokens: the vocabulary; a token's place is its id.
        merges: pairs such as `"h e"`, in the order in which they are applied.
        token_types: one GGUF type number per token; 3 is a control token, 4 one that is always kept whole.
        bos_id, eos_id, end_of_turn_id: ids that open a text, end it, and end a turn; None if there is none.
        add_bos: `encode` puts `bos_id` in front.
        chat_template: the Jinja source that lays out a conversation, or None.

    Example:
        >>> letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        >>> tokenizer = Tokenizer([*letters, "he", "<|im_end|>"], ["h e"], [1] * 257 + [3], eos_id=257)
        >>> [tokenizer.decode([i]) for i in tokenizer.encode("he 12")]
        ['he', ' ', '1', '2']
        >>> len(tokenizer.encode("<|im_end|>")), tokenizer.encode("<|im_end|>", special=True)
        (10, [257])

    Source:
        llama.cpp, src/llama-vocab.cpp, `LLAMA_VOCAB_PRE_TYPE_SMOLLM`: first `\\p{N}`, then GPT-2's regex.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[str],
        token_types: Sequence[int],
        *,
        bos_id: int | None = None,
        eos_id: int | None = None,
        end_of_turn_id: int | None = None,
        add_bos: bool = False,
        chat_template: str | None = None,
    ):
        vocab = {token: i for i, token in enumerate(tokens)}
        kinds = list(zip(tokens, token_types, strict=True))
        self._control = {token: vocab[token] for token, kind in kinds if kind == CONTROL}
        longest_first = sorted(self._control, key=len, reverse=True)
        self._control_pattern = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
        self._backend = Backend(models.BPE(vocab=vocab, merges=[tuple(pair.split(" ", 1)) for pair in merges]))
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        self._backend.decoder = decoders.ByteLevel()
        self._backend.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED])
        self._tokens = list(tokens)
        self._bos_id, self._add_bos = bos_id, add_bos and bos_id is not None
        ends = [eos_id, end_of_turn_id, self._control.get("<|im_end|>")]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in ends if i is not None))
        self.chat_template = chat_template

    @classmethod
    def from_gguf(cls, metadata: Mapping) -> "Tokenizer":
        """Returns the tokenizer that the metadata of a GGUF file describes.

        Args:
            metadata: keys and values as the file has them.

        Raises:
            ValueError: for another kind of tokenizer, named, or if a part is missing.
        """

        def get(key, default=None):
            return metadata.get(f"tokenizer.ggml.{key}", default)

        model, pre = get("model"), get("pre")
        if (model, pre) != ("gpt2", "smollm"):
            found = f"tokenizer.ggml.model {model!r} with tokenizer.ggml.pre {pre!r}"
            raise ValueError(f"{found} is not supported; supported: {SUPPORTED}")
        missing = [key for key in ("tokens", "merges", "token_type") if get(key) is None]
        if missing:
            raise ValueError(f"tokenizer.ggml.{missing[0]} is missing; supported: {SUPPORTED}")
        try:
            return cls(
                get("tokens"),
                get("merges"),
                get("token_type"),
                bos_id=get("bos_token_id"),
                eos_id=get("eos_token_id"),
                end_of_turn_id=get("eot_token_id"),
                add_bos=get("add_bos_token", False),
                chat_template=metadata.get("tokenizer.chat_template"),
            )
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"the vocabulary is damaged: {error}") from error

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; ids run from 0 to `vocab_size - 1`."""
        return len(self._tokens)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Returns the token ids of a text.

        A vocabulary may lack bytes that do not occur in ordinary text (SmolLM2: the control characters 4, 6,
        19, 20, 22 and 29, and the lead byte F1 of unassigned code points); they vanish, as in llama.cpp.

        Args:
            special: read control tokens in the text as such: for text that you wrote, never for a user's.
        """
        ids = [self._bos_id] if self._add_bos else []
        return ids + (self._encode_marked(text) if special else self._encode_plain(text))

    def _encode_plain(self, text: str) -> list[int]:
        return self._backend.encode(text).ids

    def _encode_marked(self, text: str) -> list[int]:
        ids = []
        for piece in self._control_pattern.split(text):  # text, control token, text, ...
            ids += [self._control[piece]] if piece in self._control else self._encode_plain(piece.replace(GUARD, ""))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of token ids, control tokens included; `decode(encode(text)) == text`.

        Bytes that are no whole character become U+FFFD; `stream` waits for the rest instead.

        Raises:
            ValueError: for an id outside the vocabulary.
        """
        outside = [i for i in ids if not 0 <= i < self.vocab_size]
        if outside:
            raise ValueError(f"token id {outside[0]} is outside the vocabulary, 0 to {self.vocab_size - 1}")
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def stream(self) -> Callable[[int], str]:
        """Returns a function from the next id of *one* sequence to the text it completes.

        A character of several bytes (é, 你, 🙂) can span tokens; the function returns "" until it is whole.

        Example:
            >>> show = tokenizer.stream()                              # doctest: +SKIP
            >>> for (i,) in answer: print(show(i), end="", flush=True)  # doctest: +SKIP
        """
        pending = decoders.DecodeStream(skip_special_tokens=False)
        return lambda next_id: pending.step(self._backend, next_id) or ""

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> list[int]:
        """Returns the ids of a conversation up to the point where the assistant speaks next.

        What the template writes becomes control tokens; the same characters inside a message stay text.

        Args:
            messages: a user's sentence, or a list of `{"role": ..., "content": ...}`.

        Raises:
            ValueError: if the model has no chat template, or the template refuses the messages.

        Source:
            https://huggingface.co/docs/transformers/chat_templating
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self._encode_marked(self._render([self._guarded(message) for message in messages]))

    def _guarded(self, message: Mapping[str, str]) -> dict[str, str]:
        """Returns the message with a guard in every control token; `_encode_marked` takes it out again."""

        def guard(match: re.Match) -> str:
            return match[0][0] + GUARD + match[0][1:]

        return {key: self._control_pattern.sub(guard, value) for key, value in message.items()}

    def _render(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if self.chat_template is None:
            raise ValueError("this model has no chat template; encode the text itself, tokenizer.encode(text)")

        def raise_exception(reason):
            raise TemplateError(reason)

        # A template comes in a file that someone else wrote: the sandbox lets it lay out text, nothing more.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        bos = "" if self._bos_id is None else self._tokens[self._bos_id]
        try:
            template = environment.from_string(self.chat_template)
            return template.render(messages=messages, bos_token=bos, add_generation_prompt=True)
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
