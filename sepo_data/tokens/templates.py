"""The chat template of a model in training: its own, one from a file, or a default for base models.

Base models have none, and conversations cannot be rendered without one. The template set here is saved
with the model, so that annotation and all later users render as training did.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import pyarrow as pa

from ..errors import SettingsError, TokenizerError
from .encoder import bos_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = logging.getLogger("sepo")

# The template of Zephyr and TinyLlama-Chat: its only control token is EOS, which every model has. BOS is
# prepended for models that use one.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def set_chat_template(
    tokenizer: "PreTrainedTokenizerBase", chat_template: bool | Path, schema: pa.Schema, name: str
) -> None:
    """Set the chat template of a tokenizer, which is changed in place and saved with the model.

    Args:
        tokenizer: The model's tokenizer.
        chat_template: A Jinja file; True: the tokenizer's own or, if it has none and the data
            holds messages, a default; False: none.
        schema: Schema of the columns that hold the conversations.
        name: The model's name in messages.

    Raises:
        SettingsError: If the file cannot be read.
        TokenizerError: If a default is needed and the tokenizer has no end-of-sequence token.
    """
    if isinstance(chat_template, Path):
        read_chat_template(tokenizer, chat_template)
        return
    holds_messages = any(pa.types.is_nested(column.type) for column in schema)
    if not chat_template or tokenizer.chat_template is not None or not holds_messages:
        return
    if tokenizer.eos_token is None:
        raise TokenizerError(
            f"{name}: has neither a chat template nor an eos_token. Set eos_token in tokenizer_config.json, "
            "or pass `chat_template=FILE`."
        )
    begin = "{{ bos_token }}" if tokenizer.bos_token and bos_ids(tokenizer) else ""
    tokenizer.chat_template = begin + DEFAULT_TEMPLATE
    log.info(
        "%s has no chat template and the data holds messages, so Zephyr's is used, the default of training",
        name,
    )


def read_chat_template(tokenizer: "PreTrainedTokenizerBase", path: Path) -> None:
    """Set a tokenizer's chat template from a Jinja file.

    Raises:
        SettingsError: If it cannot be read, is not a template, or refuses a plain conversation.
    """
    try:
        tokenizer.chat_template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"`chat_template={path}`: cannot be read ({error}).") from error
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise SettingsError(f"`chat_template={path}`, line {error.lineno}: {error.message}.") from error
    except Exception as error:  # a template is a program, and may raise anything
        raise SettingsError(
            f"`chat_template={path}`: refuses a user's turn and an answer: {error}."
        ) from error
    if not all(turn["content"] in str(rendered) for turn in turns):
        raise SettingsError(f"`chat_template={path}`: does not write out what the messages say.")
