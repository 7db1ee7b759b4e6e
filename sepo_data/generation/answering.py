"""Who answers: a model in this process, or a server that speaks OpenAI's chat protocol."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ..errors import HubError, first_line
from ..schema import Message

Conversation = list[Message]  # ends with a user turn

TRIES = 4
BACKOFF_S = 2.0


class Answerer(Protocol):
    """Answers conversations; the same ones in the same order with the same seed alike."""

    def answers(self, chats: Sequence[Conversation], temperatures: Sequence[float], seed: int) -> list[str]:
        """The next assistant message of each conversation."""

    def identity(self) -> dict[str, object]:
        """What decides on its answers, plain JSON."""


class Server:
    """A server that speaks OpenAI's chat protocol: vLLM, SGLang, llama.cpp, text-generation-inference.

    It renders the conversations with its own template. Whether a seed makes its answers
    the same twice is its own affair.
    """

    def __init__(self, url: str, model: str, max_new_tokens: int, parallel: int) -> None:
        from huggingface_hub import InferenceClient

        self.url, self.model = url, model
        self.max_new_tokens, self.parallel = max_new_tokens, parallel
        self.client = InferenceClient(base_url=url, timeout=600)

    def identity(self) -> dict[str, object]:
        """The server and the model requested."""
        return {"server": self.url, "model": self.model}

    def answers(self, chats: Sequence[Conversation], temperatures: Sequence[float], seed: int) -> list[str]:
        """Ask for all of them at once, as many as the batch holds.

        Raises:
            HubError: If the server cannot be reached, or refuses.
        """
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(self._answer, chats, temperatures, range(seed, seed + len(chats))))

    def _answer(self, chat: Conversation, temperature: float, seed: int) -> str:
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # as `hub.errors` says

        for attempt in range(TRIES):
            try:
                found = self.client.chat_completion(
                    chat, model=self.model, max_tokens=self.max_new_tokens, temperature=temperature, seed=seed
                )
            except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
                refused = 400 <= getattr(getattr(error, "response", None), "status_code", 500) < 500
                if attempt + 1 < TRIES and not refused:
                    time.sleep(BACKOFF_S * 2**attempt)
                    continue
                raise HubError(
                    f"{self.url}: {first_line(error)}. Finished answers are kept: start the server again, "
                    "and run the same command."
                ) from error
            return (found.choices[0].message.content or "").strip()
        raise AssertionError("unreachable")
