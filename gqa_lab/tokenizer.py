"""`Tokenizer`: text to token ids and back, as a GGUF file or a Hugging Face folder describes it."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from gqa_lab.hf_folder import read_json

SUPPORTED = "tokenizer.ggml.model 'gpt2' (byte-level BPE) with tokenizer.ggml.pre 'smollm'"
CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
GUARD = "\ufdd0"  # a Unicode noncharacter, "intended for process-internal uses"
OTHER_KINDS = ("tokenizer.model", "vocab.json", "tekken.json", "vocab.txt")


class Tokenizer:
    """A vocabulary with its rules, and what a conversation looks like.

    Control tokens such as `<|im_end|>` steer the model. In plain text they are only characters, so nobody can
    end a turn, or open one in another's name, by typing it; `encode(text, special=True)` and `chat` make real
    ones.

    Args:
        backend: the rules, from the `tokenizers` package; its special tokens are the control tokens.
        bos, eos: the tokens that open and end a text, for the chat template; None if there is none.
        stop_ids: ids that end an answer.
        chat_template: the Jinja source that lays out a conversation, or None.

    Raises:
        ValueError: if a control token could not be told from the same characters in a text, or an id of `stop_ids`
            is outside the vocabulary.

    Example:
        >>> letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        >>> backend = byte_level_bpe([*letters, "he", "<|im_end|>"], ["h e"], [1] * 257 + [3])
        >>> tokenizer = Tokenizer(backend, eos="<|im_end|>", stop_ids=[257])
        >>> [tokenizer.decode([i]) for i in tokenizer.encode("he 12")]
        ['he', ' ', '1', '2']
        >>> len(tokenizer.encode("<|im_end|>")), tokenizer.encode("<|im_end|>", special=True)
        (10, [257])
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos: str | None = None,
        eos: str | None = None,
        stop_ids: Iterable[int | None] = (),
        chat_template: str | None = None,
    ):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # "encode them like any text": as characters
        self._backend = backend
        self._bos, self._eos = bos, eos
        self.chat_template = chat_template
        self._vocab_size = max(backend.get_vocab().values(), default=-1) + 1
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys(i for i in stop_ids if i is not None))
        outside = [i for i in self.stop_ids if not 0 <= i < self._vocab_size]
        if outside:
            raise ValueError(f"token id {outside[0]} ends an answer, but the vocabulary is 0 to {self._vocab_size - 1}")
        control = {token.content: i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        for token, i in control.items():
            if len(token) < 2 or i in backend.encode(token, add_special_tokens=False).ids:
                raise ValueError(f"control token {token!r} cannot be told from the same characters in a text")
        longest_first = sorted(control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    @classmethod
    def from_gguf(cls, metadata: Mapping) -> "Tokenizer | None":
        """Returns the tokenizer that the metadata of a GGUF file describes, or None if there is none.

        Args:
            metadata: keys and values as the file has them.

        Raises:
            ValueError: for another kind of tokenizer, named, or if a part is missing or damaged.
        """

        def get(key, default=None):
            return metadata.get(f"tokenizer.ggml.{key}", default)

        if get("model") is None:
            return None
        if (get("model"), get("pre")) != ("gpt2", "smollm"):
            found = f"tokenizer.ggml.model {get('model')!r} with tokenizer.ggml.pre {get('pre')!r}"
            raise ValueError(f"{found} is not supported; supported: {SUPPORTED}")
        missing = [key for key in ("tokens", "merges", "token_type") if get(key) is None]
        if missing:
            raise ValueError(f"tokenizer.ggml.{missing[0]} is missing; supported: {SUPPORTED}")
        tokens, ends = get("tokens"), {key: get(f"{key}_token_id") for key in ("bos", "eos", "eot")}
        for key, i in ends.items():
            if i is not None and not 0 <= i < len(tokens):
                raise ValueError(f"tokenizer.ggml.{key}_token_id is {i}, but the vocabulary is 0 to {len(tokens) - 1}")
        bos, eos = (None if ends[key] is None else tokens[ends[key]] for key in ("bos", "eos"))
        try:
            backend = byte_level_bpe(tokens, get("merges"), get("token_type"))
            if get("add_bos_token", False) and bos is not None:
                before_text = {"single": [bos, "$A"], "special_tokens": [(bos, ends["bos"])]}
                backend.post_processor = processors.TemplateProcessing(**before_text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"the vocabulary is damaged: {error}") from error
        return cls(
            backend,
            bos=bos,
            eos=eos,
            stop_ids=[ends["eos"], ends["eot"], backend.token_to_id("<|im_end|>")],
            chat_template=metadata.get("tokenizer.chat_template"),
        )

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer | None":
        """Returns the tokenizer of a Hugging Face folder, or None if it has none.

        It computes what `transformers.PreTrainedTokenizerFast` does, except that control tokens in a text stay text.

        Args:
            folder: with tokenizer.json, and beside it tokenizer_config.json, chat_template.jinja,
                generation_config.json and config.json as far as they are there.

        Raises:
            ValueError: for another kind of tokenizer or a damaged file, named, or one that contradicts another.
        """
        if not (folder / "tokenizer.json").exists():
            others = [name for name in OTHER_KINDS if (folder / name).exists()]
            if others:
                raise ValueError(f"{others[0]} is not supported, only tokenizer.json")
            return None
        backend = _read_backend(folder / "tokenizer.json")
        said, generation, model = (
            read_json(path) if path.exists() else {}
            for path in (folder / f"{name}.json" for name in ("tokenizer_config", "generation_config", "config"))
        )
        bos, eos = (_token_text(said, f"{key}_token") for key in ("bos", "eos"))
        kept_whole = {token.content for token in backend.get_added_tokens_decoder().values()}
        for token, is_control in _named_tokens(said):
            if token not in kept_whole and (not is_control or backend.token_to_id(token) is None):
                raise ValueError(f"tokenizer_config.json names the token {token!r}, which tokenizer.json lacks")
            if is_control:
                backend.add_special_tokens([AddedToken(token, normalized=False)])  # nothing new if it is one already
        stop_ids = [*_ids(generation, "generation_config.json"), *_ids(model, "config.json")]
        return cls(
            backend,
            bos=bos,
            eos=eos,
            stop_ids=[*stop_ids, None if eos is None else backend.token_to_id(eos)],
            chat_template=_chat_template(folder, said),
        )

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; ids run from 0 to `vocab_size - 1`."""
        return self._vocab_size

    @functools.cached_property
    def _marking_backend(self) -> Backend:
        """The same rules, but control tokens in a text are real, unless a guard stands in them; it then vanishes.

        The backend looks for control tokens first and only then normalises what lies between them.
        """
        rules = json.loads(self._backend.to_str())
        for token in rules["added_tokens"]:
            token["normalized"] &= not token["special"]
        unguard = {"type": "Replace", "pattern": {"String": GUARD}, "content": ""}
        rules["normalizer"] = {"type": "Sequence", "normalizers": [unguard, *filter(None, [rules["normalizer"]])]}
        return Backend.from_str(json.dumps(rules))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Returns the token ids of a text, and around them what the vocabulary opens or ends every text with.

        A vocabulary may lack bytes that do not occur in ordinary text (SmolLM2: the control characters 4, 6,
        19, 20, 22 and 29, and the lead byte F1 of unassigned code points); they vanish, as in llama.cpp.

        Args:
            special: read control tokens in the text as such: for text that you wrote, never for a user's.
        """
        return (self._marking_backend if special else self._backend).encode(text).ids

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
        text = self._render([self._guarded(message) for message in messages])
        return self._marking_backend.encode(text, add_special_tokens=False).ids  # the template wrote them

    def _guarded(self, message: Mapping[str, str]) -> dict[str, str]:
        """Returns the message with a guard in every control token; `_marking_backend` takes it out again."""

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
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        known = {"bos_token": self._bos, "eos_token": self._eos}
        try:
            template = environment.from_string(self.chat_template)
            return template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **{name: token for name, token in known.items() if token is not None},
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error


def byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], token_types: Sequence[int]) -> Backend:
    """Returns byte-level BPE with SmolLM's rules: every digit by itself, then GPT-2's words, no space put in front.

    Args:
        tokens: the vocabulary; a token's place is its id.
        merges: pairs such as `"h e"`, in the order in which they are applied.
        token_types: one GGUF type number per token; 3 is a control token, 4 one that is always kept whole.

    Source:
        llama.cpp, src/llama-vocab.cpp, `LLAMA_VOCAB_PRE_TYPE_SMOLLM`: first `\\p{N}`, then GPT-2's regex.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=[tuple(pair.split(" ", 1)) for pair in merges]))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = list(zip(tokens, token_types, strict=True))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == CONTROL])
    backend.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == USER_DEFINED])
    return backend


def _read_backend(path: Path) -> Backend:
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"{path.name} is damaged: {error}") from error
    if not isinstance(backend.model, models.BPE):
        raise ValueError(f"{path.name} is of kind {type(backend.model).__name__}; only BPE is supported")
    return backend


def _token_text(said: Mapping, key: str) -> str | None:
    """Returns the text of a token that a tokenizer_config.json names, as such or in an object."""
    token = said.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None and not isinstance(token, str):
        raise ValueError(f"tokenizer_config.json says {key} = {token!r}, not a text")
    return token


def _named_tokens(said: Mapping) -> list[tuple[str, bool]]:
    """Returns the tokens that a tokenizer_config.json names, and whether each is a control token."""
    try:
        listed = said.get("added_tokens_decoder", {}).values()
        named = [(entry["content"], bool(entry.get("special"))) for entry in listed]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("tokenizer_config.json says added_tokens_decoder, but not by id") from error
    ends = (_token_text(said, key) for key in ("bos_token", "eos_token"))
    return named + [(token, True) for token in ends if token is not None]


def _ids(said: Mapping, name: str) -> list[int]:
    """Returns the ids that end an answer: one, a list, or none."""
    found = said.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"{name} says eos_token_id = {found!r}, not one id or several")
    return ids


def _chat_template(folder: Path, said: Mapping) -> str | None:
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    found = said.get("chat_template")
    if isinstance(found, list):  # several by name
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}.get("default")
    if found is not None and not isinstance(found, str):
        raise ValueError("tokenizer_config.json says chat_template, but not as a text")
    return found
