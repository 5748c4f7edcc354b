"""Templates of language models that rerank: built-in ones, and a user's own from a YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from jobs.runtime.errors import RefusedError
from udfs.spec import Prompt

#: Where an instruction goes.
INSTRUCTION: Final = "{instruction}"
_INSTRUCTED: Final = re.compile(r"[^\n]*\{instruction\}[^\n]*\n?")
Pieces = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else tuple(value or ())),
]


class Template(BaseModel):
    """How a pair becomes a prompt: texts, or lists of texts that are tokenised apart.

    A line with {instruction} is left out where there is none.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    prefix: Pieces = ()
    query: Pieces
    document: Pieces
    suffix: Pieces = ()
    positive: str
    """token whose logit speaks for the document"""
    negative: str | None = None
    """token whose logit is subtracted; none: the positive one's is the score"""
    instruction: str = ""
    """stands for {instruction} where model.query_instruction is empty"""

    @model_validator(mode="after")
    def _has_texts(self) -> Template:
        for name, pieces in (("query", self.query), ("document", self.document)):
            if [piece.count(f"{{{name}}}") for piece in pieces[-1:]] != [1]:
                raise ValueError(f"the last text of {name} has to hold {{{name}}} once")
        if not self.document[-1].endswith("{document}"):
            raise ValueError("document has to end with {document}; what follows is the suffix")
        return self

    def prompt(self, instruction: str) -> Prompt:
        """Return the prompt for an instruction; empty: the template's own."""
        instruction = instruction or self.instruction

        def filled(pieces: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(with_instruction(piece, instruction) for piece in pieces)

        *before, query = filled(self.query)
        *between, document = filled(self.document)
        return Prompt(
            before=(*filled(self.prefix), *before), query=query, between=tuple(between),
            document=document, after=filled(self.suffix),
            positive=self.positive, negative=self.negative,
        )  # fmt: skip


# Scores depend on every character: these are the prompts that the models were trained with, as
# their cards, or the package that the card names, write and tokenise them.
_BUILT_IN: Final[Mapping[str, Mapping[str, Any]]] = {
    "qwen3-reranker": {
        "prefix": "<|im_start|>system\nJudge whether the Document meets the requirements based on "
        "the Query and the Instruct provided. Note that the answer can only be "
        '"yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "query": "<Instruct>: {instruction}\n<Query>: {query}\n",
        "document": "<Document>: {document}",
        "suffix": "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "positive": "yes",
        "negative": "no",
        "instruction": "Given a web search query, retrieve relevant passages that answer the query",
    },
    # Its score is the logit of Yes alone.
    "bge-gemma": {
        "prefix": "<bos>",
        "query": "A: {query}",
        "document": ["\n", "B: {document}"],
        "suffix": ["\n", "{instruction}"],
        "positive": "Yes",
        "instruction": "Given a query A and a passage B, determine whether the passage contains an "
        "answer to the query by providing a prediction of either 'Yes' or 'No'.",
    },
    "mxbai-v2": {
        "prefix": "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
        "assistant.<|im_end|>\n<|im_start|>user\n",
        "query": "instruction: {instruction}\nquery: {query}",
        "document": ["\n", "document: {document}"],
        "suffix": [
            "\n",
            "You are a search relevance expert who evaluates how well documents match search "
            "queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for "
            "relevant).\nRelevance:",
            "<|im_end|>\n<|im_start|>assistant\n",
        ],
        "positive": "1",
        "negative": "0",
    },
}
TEMPLATES: Final = tuple(_BUILT_IN)


def read_template(name: str) -> Template:
    """Return a built-in template, or that of a YAML file; RefusedError if it cannot be used."""
    content: Any = _BUILT_IN.get(name)
    if content is None:
        try:
            content = yaml.safe_load(Path(name).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RefusedError(
                f"model.template={name} is none of {', '.join(TEMPLATES)}, nor a YAML file that "
                f"can be read ({type(error).__name__}); name one of them"
            ) from None
    try:
        return Template.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}" for e in error.errors())
        raise RefusedError(
            f"model.template={name}: {wrong.strip()}; mend the file (in YAML, tokens such as yes "
            "and 1 need quotes)"
        ) from None


def with_instruction(text: str, instruction: str) -> str:
    """Put in an instruction; without one, leave out the lines that have a place for it."""
    return (text if instruction else _INSTRUCTED.sub("", text)).replace(INSTRUCTION, instruction)


def split_lead(prompt: Prompt) -> tuple[Prompt, str]:
    """Take from a prompt what stands before its query, for rows to fill in `INSTRUCTION` there.

    Raises:
        RefusedError: if the place of the instruction is elsewhere.
    """
    lead, behind = prompt.query.split("{query}")
    pieces = (*prompt.before, behind, *prompt.between, prompt.document, *prompt.after)
    if lead.count(INSTRUCTION) == 1 and not any(INSTRUCTION in piece for piece in pieces):
        return replace(prompt, query="{query}" + behind), lead
    raise RefusedError(
        "input.instruction needs a prompt with {instruction} in its text `query`, before {query}; "
        "set model.query_instruction for the whole job, or model.template to qwen3-reranker, "
        "mxbai-v2 or a YAML file"
    )


def _chat_settings(folder: Path) -> dict[str, Any]:
    """Return what sentence-transformers passes to a chat template (`add_generation_prompt`)."""
    file = folder / "sentence_bert_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    given = dict((saved.get("processing_kwargs") or {}).get("chat_template") or {})
    given.pop("restore_suffix", None)  # its own
    return given


def _last_line(text: str) -> tuple[str, str]:
    """Return a text without its last line, and that."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[:-1]), "".join(lines[-1:])


def chat_prompt(folder: Path, instruction: str) -> Prompt | None:
    """Return the prompt of a folder with LogitScore, which sentence-transformers saved.

    Its chat template has roles for query and document. Tokens do not span line ends, nor the
    special token that mostly comes after the document. None where there is no such template.
    """
    answers = folder / "1_LogitScore" / "config.json"
    if not answers.is_file():
        return None
    from transformers import AutoTokenizer

    texts = {"system": instruction, "query": "<<query>>", "document": "<<document>>"}
    messages = [{"role": role, "content": text} for role, text in texts.items() if text]
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    try:
        more = _chat_settings(folder)
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **more))
        before, rest = text.split("<<query>>")
        between, after = rest.split("<<document>>")
        given = json.loads(answers.read_text(encoding="utf-8"))
    except Exception as error:  # whatever the template raises
        raise RefusedError(
            f"{folder} has no chat template for a query and then a document "
            f"({type(error).__name__}); set model.template"
        ) from None
    lines, lead = _last_line(before)
    tail, lead_of_document = _last_line(between)
    return Prompt(
        before=(lines,), query=lead + "{query}" + tail, between=(),
        document=lead_of_document + "{document}", after=(after,),
        positive=int(given["true_token_id"]), negative=given["false_token_id"],
    )  # fmt: skip
