"""Every row of the initialiser table."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from evomoe.conversion.expert_init import INITS

D, F, E = 16, 40, 4


def make_ffn() -> nn.Module:
    torch.manual_seed(0)
    return LlamaMLP(LlamaConfig(hidden_size=D, intermediate_size=F, num_attention_heads=2))


def make(name: str, seed: int = 0, layer: int = 0, ffn: nn.Module | None = None, **options) -> list[nn.Module]:
    return INITS[name](ffn or make_ffn(), E, layer, torch.Generator().manual_seed(seed), **options)


def evolved_tensors(layer: int = 0) -> dict[str, torch.Tensor]:
    names = {name: p.shape for name, p in make_ffn().named_parameters()}
    return {
        f"layers.{layer}.experts.{n}.{name}": torch.full(shape, float(n)) for n in range(1, E) for name, shape in names.items()
    }


@pytest.mark.parametrize("name", INITS)
def test_every_initialiser_gives_E_modules_of_the_ffn_s_class_and_leaves_the_ffn_alone(name):
    ffn = make_ffn()
    experts = make(name, ffn=ffn, **({"experts": evolved_tensors()} if name == "evolved" else {}))
    untouched = make_ffn()
    assert all(torch.equal(a, b) for a, b in zip(ffn.parameters(), untouched.parameters(), strict=True))
    assert len(experts) == E and all(type(expert) is type(ffn) for expert in experts)
    assert len({p.data_ptr() for expert in experts for p in expert.parameters()}) == 3 * E


def test_replicate_copies():
    first, *others = make("replicate")
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_noise_leaves_the_first_expert_and_has_the_size_asked_for():
    original = make_ffn().up_proj.weight
    first, *others = make("noise", std=0.25)
    assert torch.equal(first.up_proj.weight, original)
    for other in others:
        assert (other.up_proj.weight - original).std().item() == pytest.approx(0.25, rel=0.15)
    assert not torch.equal(others[0].up_proj.weight, others[1].up_proj.weight)
    again = make("noise", std=0.25)
    assert torch.equal(again[2].up_proj.weight, others[1].up_proj.weight)
    with pytest.raises(ValueError, match="init_options.std: -1 must not be negative"):
        make("noise", std=-1.0)


def test_drop_upcycling_redraws_the_same_inner_units_in_every_map():
    ffn = make_ffn()
    original = {name: p.detach().clone() for name, p in ffn.named_parameters()}
    for expert in make("drop_upcycling", ffn=ffn, ratio=0.3):
        changed = {
            "gate": (expert.gate_proj.weight != original["gate_proj.weight"]).all(1),
            "up": (expert.up_proj.weight != original["up_proj.weight"]).all(1),
            "down": (expert.down_proj.weight != original["down_proj.weight"]).all(0),
        }
        assert torch.equal(changed["gate"], changed["up"]) and torch.equal(changed["up"], changed["down"])
        assert int(changed["up"].sum()) == round(0.3 * F)
        untouched = ~changed["up"]
        assert torch.equal(expert.up_proj.weight[untouched], original["up_proj.weight"][untouched])


def test_drop_upcycling_keeps_the_statistics_of_what_it_drops():
    ffn = make_ffn()
    with torch.no_grad():
        ffn.up_proj.weight.normal_(mean=3.0, std=0.5)
    expert = make("drop_upcycling", ffn=ffn, ratio=1.0)[2]
    assert expert.up_proj.weight.mean().item() == pytest.approx(3.0, abs=0.1)
    assert expert.up_proj.weight.std().item() == pytest.approx(0.5, rel=0.1)
    with pytest.raises(ValueError, match="init_options.ratio: 1.5 must lie in"):
        make("drop_upcycling", ratio=1.5)


def test_evolved_reads_its_layer_from_the_file_of_stage_2(tmp_path):
    save_file(evolved_tensors(layer=4) | {"layers.2.experts.1.up_proj.weight": torch.zeros(1)}, tmp_path / "e.safetensors")
    experts = make("evolved", layer=4, experts=tmp_path / "e.safetensors")
    assert torch.equal(experts[0].up_proj.weight, make_ffn().up_proj.weight)
    assert [expert.down_proj.weight.unique().tolist() for expert in experts[1:]] == [[1.0], [2.0], [3.0]]


def test_evolved_says_what_does_not_fit(tmp_path):
    with pytest.raises(ValueError, match="init_options.experts: name the file that Stage II wrote"):
        make("evolved", experts=tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match=r"has no tensor 'layers\.2\.experts\.1\."):
        make("evolved", layer=2, experts=evolved_tensors(layer=0))
    for held, wanted in ((4, 3), (4, 5)):
        save_file(evolved_tensors(), tmp_path / "four.safetensors")
        with pytest.raises(ValueError, match=rf"four.safetensors has {held - 1} evolved experts .* num_experts {wanted} needs"):
            INITS["evolved"](make_ffn(), wanted, 0, torch.Generator(), experts=tmp_path / "four.safetensors")
    wrong = evolved_tensors()
    wrong["layers.0.experts.1.up_proj.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="belong to another model"):
        make("evolved", experts=wrong)


@pytest.mark.parametrize("kind", ["gated", "fused", "biased"])
def test_the_mean_of_all_parts_is_the_ffn(kind):
    torch.manual_seed(0)
    ffn = {"gated": make_ffn, "fused": Fused, "biased": lambda: nn.Sequential(nn.Linear(D, F), nn.GELU(), nn.Linear(F, D))}[
        kind
    ]()
    parts = make("partition", ffn=ffn)
    x_TD = torch.randn(7, D)
    torch.testing.assert_close(torch.stack([part(x_TD) for part in parts]).mean(0), ffn(x_TD))
    weights = sum(p.numel() for p in ffn.parameters() if p.dim() == 2)
    assert sum(p.numel() for part in parts for p in part.parameters() if p.dim() == 2) == weights
    assert {module.in_features for part in parts for module in part.modules() if isinstance(module, nn.Linear)} == {D, F // E}


class Fused(nn.Module):
    """As Phi-3's: gate and up in one map."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Linear(D, 2 * F, bias=False), nn.Linear(F, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * nn.functional.silu(gate))


def test_an_ffn_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="an FFN of 40 inner units cannot be cut into 7 equal experts; choose a number"):
        INITS["partition"](make_ffn(), 7, 0, torch.Generator())
