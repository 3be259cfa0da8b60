"""Features that are kept and handed on must be those that the model would have computed."""

import pytest
import torch
import transformers
from packaging import version
from tiny import FAMILIES, QUICK, inputs_for, make

from evomoe.evaluation.encode_once import EncodeOnce

# Ovis2's output has a part that belongs to no picture; Mllama's pictures enter by cross-attention.
NOT_SHARED = {"ovis2", "mllama"}
if version.parse(transformers.__version__) < version.parse("5.23"):
    NOT_SHARED |= {"idefics2", "qwen3-vl"}  # their outputs are of another form in 5.16; between the two it is not known


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES],
)
def test_kept_features_change_no_logit(family):
    model, inputs = make(family), inputs_for(family, (1, 1))
    real = inputs["attention_mask"].bool()
    with torch.inference_mode():
        expected = model(**inputs).logits[real]
        once = EncodeOnce(model)
        with once.active():
            once.keys = ["a", "b"]
            for _ in range(2):
                torch.testing.assert_close(model(**inputs).logits[real], expected, atol=1e-5, rtol=1e-4)
    assert (once.encoded == 2) is (family not in NOT_SHARED)


def test_pictures_are_told_apart_and_the_oldest_are_forgotten(llava):
    inputs = inputs_for("llava", (1, 1, 1))
    pixels = inputs["pixel_values"]
    with torch.inference_mode():
        once = EncodeOnce(llava, remembered=2)
        with once.active():

            def features(*names: str) -> list[torch.Tensor]:
                once.keys = names
                rows = torch.stack([pixels["abc".index(name)] for name in names])
                return list(llava.base_model.get_image_features(pixel_values=rows, return_dict=True).pooler_output)

            a, b, again = features("a", "b", "a")
            assert once.encoded == 2 and torch.equal(a, again) and not torch.equal(a, b)
            (c,) = features("c")
            assert once.encoded == 3 and not torch.equal(c, b)
            (again,) = features("a")  # the latest of the first batch
            assert once.encoded == 3 and torch.equal(a, again)
            (again,) = features("b")
            assert once.encoded == 4 and torch.equal(b, again)
