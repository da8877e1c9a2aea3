"""`raylign chat`: an export answers in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

Message = dict[str, str]  # role and content, as chat templates want them


@dataclass(frozen=True, slots=True)
class Answering:
    """A model that continues a conversation."""

    model: Any  # transformers' model and tokenizer: their generate and templates are untyped
    tokenizer: Any
    max_new_tokens: int
    temperature: float  # 0: the likeliest token

    @classmethod
    def load(cls, folder: Path, max_new_tokens: int, temperature: float) -> Answering:
        """The export in `folder`, on a GPU where there is one."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.to(device).eval(), tokenizer, max_new_tokens, temperature)

    def answer(self, messages: Sequence[Message], out: TextIO) -> str:
        """Write the answer to `out` while it is generated, and return it. Without a chat template the last message is
        continued as plain text, as in training."""
        import torch
        from transformers import TextStreamer

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                out.write(text + ("\n" if stream_end else ""))
                out.flush()

        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
            inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        else:
            inputs = self.tokenizer(messages[-1]["content"], return_tensors="pt")
        ids = inputs["input_ids"].to(self.model.device)
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": 1.0, "top_k": 0}
        with torch.inference_mode():
            done = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.max_new_tokens,
                streamer=Stream(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
                **(sampling if self.temperature else {"do_sample": False}),
            )
        return str(self.tokenizer.decode(done[0, ids.shape[1] :], skip_special_tokens=True))


def converse(answering: Answering, question: str | None, given: TextIO, out: TextIO) -> None:
    """Answer `question` and end; without one a conversation on a terminal, and each piped line on its own."""
    if question is not None:
        answering.answer([{"role": "user", "content": question}], out)
        return
    talking, messages = given.isatty(), list[Message]()
    while True:
        if talking:
            out.write("> ")
            out.flush()
        line = given.readline()
        if not line:
            return
        if not line.strip():
            continue
        messages = [*(messages if talking else ()), {"role": "user", "content": line.strip()}]
        messages.append({"role": "assistant", "content": answering.answer(messages, out)})
