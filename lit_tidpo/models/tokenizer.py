"""Loading the tokenizer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_tidpo.errors import InputError
from lit_tidpo.locations import check_revision, gguf_option, locate
from lit_tidpo.models.policy import PolicyConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(
    source: str,
    chat_template: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    gguf_file: str | None = None,
    added_tokens: Sequence[str] | None = None,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer, with another chat template if one is given.

    Args:
        source: Path, name on the Hub, or ``builtin:NAME``.
        chat_template: Jinja text or path of a template.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Let the repository run its own code.
        gguf_file: Name of the GGUF file there that holds it.
        added_tokens: Texts that become tokens of their own.

    Returns:
        The tokenizer.

    Raises:
        InputError: If there is no tokenizer or no template, or an added token is there already.
    """
    from transformers import AutoTokenizer

    path = locate(source)
    check_revision("tokenizer_revision", revision, source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path,
            revision=revision or "main",
            trust_remote_code=trust_remote_code,
            **gguf_option(gguf_file),
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"no tokenizer at {source!r}: check the path or name ({error})") from error
    if chat_template is not None:
        tokenizer.chat_template = _template_text(chat_template)
    if added_tokens:
        known = sorted(tokenizer.get_vocab().keys() & set(added_tokens))
        if known:
            raise InputError(
                f"policy.added_tokens: the tokenizer has {known} already: leave them out"
            )
        tokenizer.add_tokens(list(added_tokens))
    return tokenizer


def policy_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that lies with a policy, with the tokens that are added.

    Args:
        config: Which policy.

    Raises:
        InputError: If there is none.
    """
    return load_tokenizer(
        config.path,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
        gguf_file=config.gguf_file,
        added_tokens=config.added_tokens,
    )


def _template_text(template: str) -> str:
    if "{{" in template or "{%" in template:
        return template
    path = Path(template).expanduser()
    if not path.is_file():
        raise InputError(
            f"chat_template must be Jinja text or a file; there is none at {template!r}"
        )
    return path.read_text(encoding="utf-8")
