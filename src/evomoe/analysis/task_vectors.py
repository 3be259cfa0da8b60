"""How different the evolved experts are from expert 1, and whether they collapsed.

Implements: Section 1 (uniformity of weights).
"""

from transformers.modeling_utils import PreTrainedModel

from evomoe.analysis.uniformity import mean_of_pairs, weight_cosine
from evomoe.model.sparse_model import SparseModel
from evomoe.model.structure import decoder_layers, ffn_names
from evomoe.support.errors import OptionError


def task_vector_cosines(model: SparseModel, dense: PreTrainedModel) -> dict[int, float]:
    """Mean cosine of two experts' task vectors, theta_n - theta of the dense FFN, by MoE layer; nan where no two have moved.

    Args:
        model: a sparse model.
        dense: the dense model that its experts went apart from: that of Stage I.

    Raises:
        OptionError: the dense model, which `analyze` calls ``stage1``, has other FFNs.
    """
    layers = decoder_layers(dense)
    names, cosines = ffn_names(dense), {}
    for index, block in model.moe_blocks.items():
        start = dict(layers[index].get_submodule(names[index]).named_parameters()) if index < len(layers) else {}
        experts = [block.experts.weights(number) for number in range(len(block.experts))]
        if any({n: p.shape for n, p in expert.items()} != {n: p.shape for n, p in start.items()} for expert in experts):
            raise OptionError(
                "stage1", f"the FFN of its layer {index} is not of the experts' shape; name the dense model they came from."
            )
        aligned = [[expert[name] for name in start] for expert in experts]
        cosines[index] = mean_of_pairs(weight_cosine(aligned, list(start.values())))
    return cosines
