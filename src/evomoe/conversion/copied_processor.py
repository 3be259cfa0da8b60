"""The processor that a converted model takes over from the model that it was made of."""

from evomoe.data.chat_template import ChatTemplate
from evomoe.model.loading import load_processor
from evomoe.model.possible import making
from evomoe.support.processor import Processor, tokenizer_of


def copied_processor(source: str, trust_remote_code: bool = False) -> Processor:
    """Loads it; its chat template is one that can be used, if there is one.

    Raises:
        ValueError: it cannot be loaded, or its chat template is empty or broken.
    """
    processor = load_processor(source, trust_remote_code)
    if any(getattr(one, "chat_template", None) is not None for one in (processor, tokenizer_of(processor))):
        with making(source, "its processor cannot be used"):
            ChatTemplate(processor)
    return processor
