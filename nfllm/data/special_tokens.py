"""Makes tokenizers read special tokens that are spelled out in a text as ordinary characters.

The `tokenizers` library has an option for this, but its models ignore it: WordLevel, WordPiece and
Unigram find such a token in their vocabulary, and BPE may produce it by merges.
"""

from __future__ import annotations

from typing import Any


def special_names(definition: dict[str, Any], end_of_text: str) -> set[str]:
    """The tokens of a parsed `tokenizer.json` that do not represent text."""
    names = {token["content"] for token in definition["added_tokens"] if token["special"]}
    return names | {end_of_text, unknown_name(definition) or end_of_text}


def unknown_name(definition: dict[str, Any]) -> str | None:
    """The unknown token of a parsed `tokenizer.json`; None if it has none."""
    model = definition["model"]
    if model.get("unk_id") is not None:  # Unigram
        name: str = model["vocab"][model["unk_id"]][0]
        return name
    return model.get("unk_token")


def without_special_tokens(definition: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The same tokenizer and ids, with `names` replaced by strings that do not occur in texts."""
    # Unicode noncharacters, which texts do not contain.
    new = {name: f"\U0010fffe{i}\U0010ffff" for i, name in enumerate(sorted(names))}
    model = dict(definition["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(name, name): i for name, i in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(name, name), *rest] for name, *rest in model["vocab"]]
    if model.get("unk_token") is not None:
        model["unk_token"] = new.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [left, right]
            for left, right in map(_pair, model["merges"])
            if not names & {left, right, left + right.removeprefix(prefix)}
        ]
    added = [
        {**token, "content": new.get(token["content"], token["content"])}
        for token in definition["added_tokens"]
    ]
    return {**definition, "model": model, "added_tokens": added, "post_processor": None}


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge
