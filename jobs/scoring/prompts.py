"""Templates of language models that rerank: built-in ones, and a user's own from a YAML file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from jobs.runtime.errors import RefusedError
from udfs.spec import Prompt

# Each piece is tokenised apart.
Pieces = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else tuple(value or ())),
]


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("YAML reads yes and no as true and false; put the token in quotes")
    return value


Token = Annotated[str | int, BeforeValidator(_no_boolean)]


class Template(BaseModel):
    """How a pair becomes a prompt: texts, or lists of texts that are tokenised apart."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prefix: Pieces = ()
    query: Pieces
    document: Pieces
    suffix: Pieces = ()
    positive: Token
    """token whose logit speaks for the document, as text or id"""
    negative: Token | None = None
    """token whose logit is subtracted; none: the positive one's is the score"""
    instruction: str = ""
    """stands for {instruction} where model.query_instruction is empty"""
    instructed: str = "{}"
    """how a given instruction is written, {} being its text"""

    @model_validator(mode="after")
    def _has_texts(self) -> Template:
        pieces = [*self.prefix, *self.query, *self.document, *self.suffix]
        holders = {
            name: [piece for piece in pieces if "{" + name + "}" in piece]
            for name in ("query", "document")
        }
        if holders["query"] != [self.query[-1]] or self.query[-1].count("{query}") != 1:
            raise ValueError("the last text of query, and no other, has to hold {query} once")
        ends = self.document[-1].endswith("{document}")
        once = self.document[-1].count("{document}") == 1
        if holders["document"] != [self.document[-1]] or not (ends and once):
            raise ValueError("the last text of document, and no other, has to end with {document}")
        return self

    def prompt(self, instruction: str) -> Prompt:
        """Return the prompt for an instruction; empty: the template's own."""
        instruction = instruction or self.instruction
        written = self.instructed.replace("{}", instruction) if instruction else ""

        def filled(pieces: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(piece.replace("{instruction}", written) for piece in pieces)

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
        "query": "{instruction}query: {query}",
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
        "instructed": "instruction: {}\n",
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
        wrong = "; ".join(
            ": ".join(filter(None, (".".join(map(str, each["loc"])), each["msg"])))
            for each in error.errors()
        )
        raise RefusedError(f"model.template={name}: {wrong}; mend the file") from None


def chat_prompt(folder: Path, instruction: str) -> Prompt | None:
    """Return the prompt of a folder with LogitScore, which sentence-transformers saved.

    Its chat template has roles for query and document. Tokens do not span line ends, nor the
    special token that mostly comes after the document. None where there is no such template.
    """
    answers = folder / "1_LogitScore" / "config.json"
    templates = [folder / "chat_template.jinja", folder / "tokenizer_config.json"]
    if not answers.is_file() or not any(
        "chat_template" in file.name or '"chat_template"' in file.read_text(encoding="utf-8")
        for file in templates
        if file.is_file()
    ):
        return None
    from transformers import AutoTokenizer

    texts = {"system": instruction, "query": "<<query>>", "document": "<<document>>"}
    messages = [{"role": role, "content": text} for role, text in texts.items() if text]
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    parts = re.fullmatch("(.*)<<query>>(.*)<<document>>(.*)", str(text), re.DOTALL)
    if parts is None:
        raise RefusedError(
            f"the chat template of {folder} has no place for a query before a document; set "
            "model.template"
        )
    before, between, after = parts.groups()
    given = json.loads(answers.read_text(encoding="utf-8"))
    lines, lines_between = before.rpartition("\n"), between.rpartition("\n")
    return Prompt(
        before=("".join(lines[:2]),), query=lines[2] + "{query}" + "".join(lines_between[:2]),
        between=(), document=lines_between[2] + "{document}", after=(after,),
        positive=int(given["true_token_id"]), negative=given["false_token_id"],
    )  # fmt: skip
