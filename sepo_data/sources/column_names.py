"""What people call the columns of a pair or a conversation, beside prompt, chosen, rejected and messages."""

SIDES_NAMES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("chosen_messages", "rejected_messages"),
    ("accepted", "rejected"),
    ("preferred", "dispreferred"),
    ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's DPO files
    ("response_j", "response_k"),  # stack-exchange-paired: j is the better one
)
PROMPT_NAMES = (
    "question", "instruction", "query", "problem", "input", "context", "history", "messages",
    "conversations", "conversation",
)  # fmt: skip
COMPLETION_NAMES = ("completion", "response", "output", "answer")
CHAT_NAMES = ("messages", "conversations", "conversation")
