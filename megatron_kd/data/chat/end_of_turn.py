"""The token that ends an assistant's turn: a model that is asked must stop there."""

from __future__ import annotations

from megatron_kd.data.chat.conversation import Conversation
from megatron_kd.data.chat.conversations import ChatTemplate
from megatron_kd.data.tokens.tokenizer import HuggingFaceTokenizer
from megatron_kd.errors import InputError


def end_of_turn(tokenizer: HuggingFaceTokenizer) -> int | None:
    """The last added token, such as `<|im_end|>`, of what a model learns of an answer.

    Args:
        tokenizer: of the conversations, with their chat template.

    Returns:
        None where the template ends turns by text alone, and where there is no template or it refuses an example.
    """
    try:
        ends = _ends(ChatTemplate(tokenizer))
    except InputError:
        return None
    return ends[-1] if ends else None


def ends_by_text_alone(template: ChatTemplate) -> bool:
    """Whether nothing that is learnt of an answer is a token that generation can stop at."""
    try:
        return not _ends(template)
    except InputError:
        return False  # of a template that refuses the example nothing is known


def _ends(template: ChatTemplate) -> list[int]:
    """The added tokens that are learnt in an example's answer."""
    example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    ids, learnt = template.encode(Conversation(example), "an example")
    added = template.tokenizer.files.backend.get_added_tokens_decoder()
    return [token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt and token in added]
