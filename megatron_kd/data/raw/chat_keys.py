"""The keys of records that are conversations: those of each format, and those that are about a record.

Every key of a record is one of its format, is ignored by its name here or by the user, or repeats a message.
"""

from __future__ import annotations

from collections.abc import Collection

# A record has the first of these formats whose keys it has.
FORMATS = (("messages",), ("conversations",), ("prompt", "completion"), ("instruction", "output"))
FORMATS_SHOWN = "'messages', 'conversations', 'prompt' and 'completion', or 'instruction' and 'output'"

# Where a record comes from, how it is filed and how it was made or rated: of records, messages and tool calls.
_ABOUT = """
id idx index uid uuid hash prompt_id message_id conversation_id session_id parent_id tool_call_id type
source origin dataset dataset_name dataset_source subset split domain category topic task task_type tags
url license author model model_name generator language lang title
timestamp created created_at date time score rating quality difficulty num_turns
metadata meta extra_info parallel_tool_calls
"""
IGNORED = frozenset(_ABOUT.split())


def format_of(keys: Collection[str]) -> tuple[str, ...] | None:
    """The format of a record with these keys; None: it is not a conversation."""
    return next((names for names in FORMATS if all(name in keys for name in names)), None)
