"""How a sparse model is saved, pushed to the hub and pickled."""

from typing import Any

from huggingface_hub import ModelCard, create_repo, file_exists

from evomoe.model.configuration import EvoMoEConfig
from evomoe.model.loaded_weights import Checked
from evomoe.model.model_card import CARD, card_of_folder, model_card
from evomoe.model.remote_code import has_remote_code, set_remote_code, write_remote_module
from evomoe.support import hf


class Saved(Checked):
    """What every ``EvoMoE<Base>`` changes of transformers' ``save_pretrained``, ``push_to_hub`` and of pickling."""

    config: EvoMoEConfig  # pyrefly: ignore[bad-override-mutable-attribute]: transformers names each family's own in this way

    def __getstate__(self) -> dict[str, Any]:
        """For pickling: without the hooks by which transformers captures outputs, which do not pickle; it sets them anew."""
        hf.drop_output_capturing(self)
        return dict(vars(self))

    def save_pretrained(self, save_directory, is_main_process: bool = True, *args, remote_code: bool | None = None, **kwargs):
        """transformers' ``save_pretrained``, always in the model's own tensor names.

        The base family's hub format would be undone on loading for transformers' own classes only, and tensors be lost.

        Args:
            save_directory, is_main_process, *args, **kwargs: as transformers takes them.
            remote_code: also write the module that imports evomoe for processes that have not, for those who load with
                ``trust_remote_code=True``, see ``evomoe.model.remote_code``; None does what the folder did that the model came from.
        """
        kwargs["save_original_format"] = False
        if remote_code is not None:
            set_remote_code(self.config, remote_code)
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process and has_remote_code(self.config):
            write_remote_module(save_directory)

    def push_to_hub(self, repo_id: str, *, token: str | bool | None = None, private: bool | None = None, **kwargs):
        """transformers' ``push_to_hub``; a repository without a model card gets EvoMoE's, or the one the model was loaded with."""
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if not file_exists(repo_id, CARD, revision=kwargs.get("revision"), token=token):  # transformers would write an empty form
            # A model that was just converted still bears the dense model's name.
            source = self.name_or_path or ""
            card = card_of_folder(source) or model_card(self.config, type(self).__name__, source)
            where = {name: kwargs[name] for name in ("revision", "create_pr") if name in kwargs}
            # pyrefly: ignore[bad-argument-type]: the card's client hands the token on to what takes a bool as well
            ModelCard(card).push_to_hub(repo_id, token=token, **where)
        return super().push_to_hub(repo_id, token=token, private=private, **kwargs)
