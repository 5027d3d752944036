"""What a tuned backbone states of itself, in the metadata of its file and as a page for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sktransfer.network import METADATA_PREFIX

CARD_KEY = f"{METADATA_PREFIX}finetuning"


@dataclass(frozen=True)
class FinetuningCard:
    """How a backbone was tuned, and what that brought."""

    name: str  # of the backbone that it was made from
    digest: str  # its SHA-256
    source: str  # the tensor behind which it was trained
    n_images: int  # learnt from
    n_held_out: int
    n_classes: int  # 0 for a regression
    metric: str  # "accuracy" or "R²", of a linear model on the embeddings, on the images held out
    before: float | None  # of the backbone that it was made from; None without images held out
    after: float | None
    recipe: dict[str, Any]
    history: list[list[float | None]]  # for each epoch: loss, loss and score of the images held out


def write_card(card: FinetuningCard) -> str:
    """The card as JSON."""
    return json.dumps(asdict(card), ensure_ascii=False)


def read_card(metadata: dict[str, str]) -> FinetuningCard | None:
    """The card in the metadata of a backbone's file; None where there is none, or it is not ours."""
    try:
        return FinetuningCard(**json.loads(metadata[CARD_KEY]))
    except (KeyError, TypeError, ValueError):
        return None


def describe_card(card: FinetuningCard) -> str:
    """The card in one line."""
    text = f"{card.name} (SHA-256 {card.digest}) tuned behind {card.source!r} on {card.n_images} images"
    return text if card.before is None else f"{text}; {card.metric} {describe_scores(card)}"


def describe_scores(card: FinetuningCard) -> str:
    """What a linear model on the embeddings reaches before and after."""
    if card.before is None or card.after is None:
        return "no images were held out"
    return f"{card.before:.3f} before, {card.after:.3f} after, on {card.n_held_out} images held out"


def write_page(card: FinetuningCard, name: str, digest: str, license_name: str, curve: str | None) -> str:
    """The card as Markdown; `curve` is the name of the picture beside it."""
    learnt = "a regression" if not card.n_classes else f"{card.n_classes} classes"
    rows = [f"| {key} | {value} |" for key, value in card.recipe.items()]
    lines = [
        f"# {name}",
        "",
        f"{card.name}, its weights behind `{card.source}` fine-tuned with sktransfer.",
        "",
        f"- SHA-256: `{digest}`; of the original: `{card.digest}`",
        f"- Licence of the original weights: {license_name}",
        f"- Learnt from {card.n_images} images ({learnt}).",
        f"- {card.metric} of a linear model fitted on the embeddings of those images: {describe_scores(card)}.",
        "- Operators and names are the original's. So is a classifier behind the embedding, which was not trained.",
        "",
        "| recipe | |",
        "|---|---|",
        *rows,
        *(["", f"![loss and {card.metric} over epochs]({curve})"] if curve else []),
    ]
    return "\n".join(lines) + "\n"
