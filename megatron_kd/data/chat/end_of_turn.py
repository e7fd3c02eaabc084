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
    example = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ids, learnt = ChatTemplate(tokenizer).encode(Conversation(example), "an example")
    except InputError:
        return None
    added = tokenizer.files.backend.get_added_tokens_decoder()
    ends = [token for token, is_learnt in zip(ids, learnt, strict=True) if is_learnt and token in added]
    return ends[-1] if ends else None
