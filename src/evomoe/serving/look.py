"""``evomoe look``: a page that shows which expert took which patch and which word. One file, without a server or a network."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from evomoe.analysis.recording import record_routing
from evomoe.analysis.routing_load import RoutingLoad
from evomoe.analysis.token_places import NoPlacesError, Place, token_places
from evomoe.analysis.token_routing import TokenRouting, other_choices, routing_of_tokens
from evomoe.data.images import open_rgb
from evomoe.data.records import IMAGE_MARK
from evomoe.model.sparse_model import is_sparse
from evomoe.model.structure import image_token_ids
from evomoe.serving.conversation import Conversation, about
from evomoe.serving.sampling import Sampling
from evomoe.support.files import write_text
from evomoe.support.names import check_folder, refuse_existing

TEMPLATE = Path(__file__).with_name("page.html")
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (120, 120, 120),
)
"""Okabe and Ito's, which the colour-blind can tell."""
LARGEST_SIDE = 768
"""Pixels of a picture on the page."""


def look(
    checkpoint: str,
    out: str | Path,
    prompt: str,
    images: Sequence[str],
    sampling: Sampling,
    dtype: str = "auto",
    trust_remote_code: bool = False,
) -> str:
    """Asks a sparse model, and writes the page; says what was written.

    Raises:
        OptionError: a picture, the file or the prompt cannot be used.
        ValueError: the model is dense.
    """
    refuse_existing(str(out), "file")
    check_folder("out", Path(out).absolute().parent)
    conversation = Conversation.load_from(checkpoint, dtype, trust_remote_code)
    if not conversation.is_sparse:
        raise ValueError(f"{checkpoint}: {type(conversation.model).__name__} is dense: it has no experts to look at.")
    with about("image"):
        for image in images:
            conversation.add_picture(image)
    with about("prompt"):
        conversation.say(prompt, sampling)
    write_text(Path(out), page(conversation, checkpoint))
    return f"{out}: open it in a browser."


def page_under_another_picture(conversation: Conversation, name: str, file: str) -> str:
    """The page of the same words under another picture, which says how many of their choices are others.

    Raises:
        ConversationError: there is no answer about a picture yet, or this picture does not fit.
        ValueError: the model is dense.
    """
    other = conversation.under_another_picture(file)
    model, last, now = conversation.model, conversation.said.last, other.said.last
    if not is_sparse(model) or last is None or now is None:
        raise ValueError("There is no answer of a sparse model to look at.")
    before = routing_of_tokens(model, last.inputs, last.ids_T)
    with record_routing(model, max_tokens=1) as recording:
        after = routing_of_tokens(model, now.inputs, now.ids_T)
    is_word_T = ~torch.isin(last.ids_T, torch.tensor(image_token_ids(model.config)))
    moved = float(other_choices(before, after)[:, is_word_T].float().mean())
    other.said = replace(other.said, last=replace(now, load=RoutingLoad.of(model, recording)))
    return page(
        other,
        f"{name}, the same words under {Path(file).name}",
        f"{moved:.0%} of the words' choices are others than under the picture before.",
    )


def page(conversation: Conversation, name: str, remark: str = "") -> str:
    """The last question and its answer as a page in HTML.

    Args:
        remark: a sentence more.

    Raises:
        ValueError: nothing was said yet, or the model is dense.
    """
    model, last = conversation.model, conversation.said.last
    if last is None or last.load is None or not is_sparse(model):
        raise ValueError("There is no answer of a sparse model to look at.")
    routing = routing_of_tokens(model, last.inputs, last.ids_T)
    pictures = [conversation.shape.fit(open_rgb(file)) for file in conversation.said.pictures]
    image_tokens, asked, note = image_token_ids(model.config), int(last.inputs["input_ids"].shape[1]), remark
    places: list[Place | None] = [None] * len(last.ids_T)
    try:  # what a model writes itself, an image token or not, is no part of a picture
        sizes = [(picture.height, picture.width) for picture in pictures]
        places[:asked] = token_places(
            last.ids_T[:asked], image_tokens, len(pictures), last.inputs, conversation.decode, conversation.processor, sizes
        )
    except NoPlacesError as error:
        note = f"{remark} The patches cannot be shown: {error}".strip()
    data = {
        "name": name,
        "question": conversation.said.turns[-2].text.replace(f"{IMAGE_MARK}\n", ""),
        "answer": conversation.said.turns[-1].text,
        "note": note,
        "load": last.load.sentence(),
        "colours": COLOURS,
        "pictures": [_data_url(picture) for picture in pictures],
        "tokens": _tokens(conversation, last.ids_T, asked, image_tokens, places),
        **_of_routing(routing),
    }
    # "</script>" within the data would end them.
    text = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text)


def _tokens(
    conversation: Conversation,
    ids_T: torch.Tensor,
    asked: int,
    image_tokens: Sequence[int],
    places: Sequence[Place | None],
) -> list[dict[str, Any]]:
    tokens = []
    for number, (token, place) in enumerate(zip(ids_T.tolist(), places, strict=True)):
        kind = "image" if token in image_tokens else "question" if number < asked else "answer"
        one: dict[str, Any] = {"kind": kind, "text": "" if kind == "image" else conversation.decode([token])}
        tokens.append(one | ({"place": asdict(place)} if place else {}))
    return tokens


def _of_routing(routing: TokenRouting) -> dict[str, Any]:
    """Probabilities as bytes, 255 for 1; of chosen experts the number, 255 for none."""
    E = len(routing.names)
    probs = (routing.probs_LTE * 255).round().to(torch.uint8)
    chosen = routing.chosen_LTK.where(routing.chosen_LTK < E, torch.tensor(255)).to(torch.uint8)
    return {
        "experts": routing.names,
        "real": routing.num_real,
        "varies": bool(((routing.chosen_LTK < routing.num_real).sum(-1).unique()).numel() > 1),
        "layers": routing.layers,
        "slots": routing.chosen_LTK.shape[-1],
        "probs": base64.b64encode(probs.numpy().tobytes()).decode(),
        "chosen": base64.b64encode(chosen.numpy().tobytes()).decode(),
    }


def _data_url(picture: Image.Image) -> str:
    shown = picture.copy()
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    file = io.BytesIO()
    shown.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
