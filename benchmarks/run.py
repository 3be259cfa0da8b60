"""Speed and memory as ratios against what a user would run instead: ``make bench``; some of them: ``benchmarks/run.py decoding``.

All comparisons are made in one process, alternating. float32 on the CPU, bfloat16 on an accelerator.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from timing import Ratio, compare, machine, saved_bytes, seconds
from torch import nn
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_utils import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from evomoe import upcycle
from evomoe.data import easy_vqa
from evomoe.data.conversations import ConversationDataset
from evomoe.data.records import load_records
from evomoe.demo.journey import DENSE_MODEL
from evomoe.evaluation.benchmarks.easy_vqa import BENCHMARK, questions
from evomoe.evaluation.generation import Answerer, Prompts, ask
from evomoe.model.block import EvoMoEBlock
from evomoe.model.configuration import MoEConfig
from evomoe.model.experts import Experts
from evomoe.model.forward_pass import ForwardPass, running
from evomoe.model.loading import load_model, load_processor
from evomoe.model.modality import Modality
from evomoe.model.routers.dtr import DynamicTokenAwareRouter
from evomoe.model.structure import decoder_layers
from evomoe.recipe.options import EvolutionOptions
from evomoe.recipe.placement import moe_layers
from evomoe.support.device import best_device, moved, prepare
from evomoe.training.evolution import ExpertEvolution
from evomoe.training.trainable import set_trainable

DEVICE = best_device()
DTYPE = torch.float32 if DEVICE.type == "cpu" else torch.bfloat16


def dense_ffn(hidden: int, inner: int) -> nn.Module:
    config = LlamaConfig(hidden_size=hidden, intermediate_size=inner, num_attention_heads=8)
    return LlamaMLP(config).to(DEVICE, DTYPE)


def block_with(router: str, ffn: nn.Module, hidden: int, **options) -> EvoMoEBlock:
    """An MoE layer whose first expert is ``ffn`` itself, as after ``upcycle``: the same weights at the same place in memory."""
    moe = MoEConfig(base_model_type="llama", moe_layers=[0], router=router, router_options=options)
    return EvoMoEBlock(0, moe, hidden, Experts([ffn, *(deepcopy(ffn) for _ in range(3))])).to(DEVICE, DTYPE)


def half_image(tokens: int) -> ForwardPass:
    """Half of the tokens are image tokens, in one run, as a picture's are."""
    is_image_BS = (torch.arange(tokens, device=DEVICE) < tokens // 2)[None]
    return ForwardPass(Modality.of(is_image_BS, None))


def block_against_dense(rounds: int) -> Iterator[Ratio]:
    """The MoE layer with a fixed router, top-1, against the dense FFN."""
    D, F, T = 1024, 2816, 2048
    ffn = dense_ffn(D, F)
    block, forward_pass = block_with("fixed", ffn, D), half_image(T)
    x_BSD = torch.randn(1, T, D, device=DEVICE, dtype=DTYPE, requires_grad=True)
    gradient_BSD = torch.randn_like(x_BSD)

    def step(module: nn.Module) -> None:
        with running(forward_pass):
            module(x_BSD).backward(gradient_BSD)

    label = f"MoE layer, fixed router, top-1 / dense FFN (D {D}, F {F})"
    yield compare(f"{label}, {T} tokens, forward + backward", lambda: step(block), lambda: step(ffn), rounds, 1.10)

    one_BSD, one_pass = torch.randn(1, 1, D, device=DEVICE, dtype=DTYPE), half_image(1)

    @torch.inference_mode()
    def decode(module: nn.Module) -> None:
        with running(one_pass):
            for _ in range(20):
                module(one_BSD)

    yield compare(f"{label}, one decoded token", lambda: decode(block), lambda: decode(ffn), 4 * rounds, 1.10)


def naive_dtr(router: DynamicTokenAwareRouter, x_TD: torch.Tensor, modality: Modality) -> torch.Tensor:
    """Eq. 5-8 with every token's two matrices formed: what DTR costs without the factored form."""
    x_TD = x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + 1e-6)
    out_TE = x_TD.new_zeros(x_TD.shape[0], router.num_experts)
    for tokens, net in zip(modality.tokens, (router.image, router.text), strict=True):
        z_TD, R, H = x_TD[tokens], router.image.rank, router.image.width
        a_TH = nn.functional.linear(z_TD, net.embed.weight, net.embed.bias)
        down_HX = net.down.weight.view(H + 1, -1)
        up_HX = net.up.weight.view(-1, H + 1, R).permute(1, 0, 2).reshape(H + 1, -1)
        theta_down_TPD = torch.addmm(down_HX[-1], a_TH, down_HX[:-1]).view(len(tokens), 2 * R, -1)
        theta_up_TDR = torch.addmm(up_HX[-1], a_TH, up_HX[:-1]).view(len(tokens), -1, R)
        gate_TR, value_TR = torch.bmm(theta_down_TPD, z_TD.unsqueeze(-1)).squeeze(-1).chunk(2, -1)
        e_TD = torch.bmm(theta_up_TDR, (nn.functional.silu(gate_TR) * value_TR).unsqueeze(-1)).squeeze(-1)
        out_TE = out_TE.index_copy(0, tokens, nn.functional.linear(e_TD, *router.phi()))
    return out_TE


def router_against_dense(rounds: int) -> Iterator[Ratio]:
    """DTR against the dense FFN, and its factored form against the naive one."""
    D, F, T = 2048, 5504, 2048
    ffn = dense_ffn(D, F)
    router = DynamicTokenAwareRouter(D, 4, hypernet_width=64, rank=16).to(DEVICE)
    x_TD = torch.randn(T, D, device=DEVICE, dtype=DTYPE)
    z_TD, modality = x_TD.float(), half_image(T).modality

    @torch.inference_mode()
    def forward(module, *inputs) -> None:
        module(*inputs)

    yield compare(
        f"DTR (H 64, R 16) / dense FFN (D {D}, F {F}), {T} tokens, forward",
        lambda: forward(router, z_TD, modality),
        lambda: forward(ffn, x_TD),
        rounds,
        0.13,
    )
    few, few_modality = z_TD[:256].clone().requires_grad_(), half_image(256).modality
    there = [few, *router.parameters()]
    factored = saved_bytes(lambda: router(few, few_modality), there)
    naive = saved_bytes(lambda: naive_dtr(router, few, few_modality), there)
    torch.testing.assert_close(router(few, few_modality), naive_dtr(router, few, few_modality), atol=1e-3, rtol=1e-3)
    yield Ratio(
        "DTR factored / naive, activations kept for backward, 256 tokens", factored / naive, (factored / naive,) * 2, 1 / 32
    )


def evolution_step(rounds: int) -> Iterator[Ratio]:
    """An optimiser step of Stage II with and without evolution: a LLaVA of 8 decoder layers, one micro-batch of 2,048 tokens.

    One micro-batch a step is the hardest case: accumulation makes steps longer, and evolution happens once per step.
    """
    model, batch = small_llava(rows=8)
    layers = moe_layers("alternating", 8)
    set_trainable(model, "ffn", layers)
    ffns = {index: decoder_layers(model)[index].get_submodule("mlp") for index in layers}
    evolution = ExpertEvolution(ffns, EvolutionOptions(), total_steps=10**9)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> float:
        """Takes a step with evolution; returns its time over the time without the evolution in it."""
        begin = seconds()
        evolution.before_step()
        begun = seconds()
        model(**batch).loss.backward()
        optimizer.step()
        before = seconds()
        evolution.after_step()
        after = seconds()
        optimizer.zero_grad()
        end = seconds()
        return (end - begin) / (end - begin - (begun - begin) - (after - before))

    step()
    label = "Stage II step (LLaVA, D 512, F 1408, 8 layers, 8 x 256 tokens)"
    yield Ratio.of(f"{label}, with / without evolution", [step() for _ in range(rounds)], 1.02)


def small_llava(rows: int) -> tuple[LlavaForConditionalGeneration, dict[str, torch.Tensor]]:
    """A LLaVA of 8 decoder layers (D 512, F 1408) and a batch of so many rows of 256 tokens, 16 of each image tokens."""
    vision = CLIPVisionConfig(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=64,
                              patch_size=16)  # fmt: skip
    text = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, vocab_size=8192)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=8191, vision_feature_select_strategy="default")
    ids_BS = torch.randint(0, 8000, (rows, 256), device=DEVICE)
    ids_BS[:, :16] = 8191
    pixels = torch.randn(rows, 3, 64, 64, device=DEVICE, dtype=DTYPE)
    model = moved(LlavaForConditionalGeneration(config), DEVICE, DTYPE).train()
    return model, {"input_ids": ids_BS, "labels": ids_BS, "pixel_values": pixels}


def gradient_of_all_experts(rounds: int) -> Iterator[Ratio]:
    """A step of Stage III, four experts in every second layer: the router learns from all experts, or from one that it did not choose."""
    dense, batch = small_llava(rows=2)
    model = upcycle(dense, router="dtr", router_options={"hypernet_width": 16, "rank": 4}).train()
    set_trainable(model, "router", model.config.moe.moe_layers)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step(choice: Literal["chosen", "all"], most: int = 0) -> None:
        for block in model.moe_blocks.values():
            block.moe = replace(block.moe, router_gradient=choice, gradient_experts=most)
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    label = "Stage III step (LLaVA, D 512, F 1408, 8 layers, 4 of them sparse, E 4, top-1, 2 x 256 tokens)"
    yield compare(
        f"{label}, router learns from all experts / from the chosen", lambda: step("all"), lambda: step("chosen"), rounds, 1.5
    )
    yield compare(f"{label}, from one more / from the chosen", lambda: step("all", 1), lambda: step("chosen"), rounds, 1.2)


def variable_slots(rounds: int) -> Iterator[Ratio]:
    """AnyExperts against a fixed number of experts: as many real experts on average, and 40 % fewer."""
    E, K, D, F, T = 64, 8, 512, 256, 2048
    experts = [dense_ffn(D, F) for _ in range(E)]

    def block_of(router: str) -> EvoMoEBlock:
        moe = MoEConfig(base_model_type="llama", moe_layers=[0], num_experts=E, num_experts_per_tok=K, router=router)
        return EvoMoEBlock(0, moe, D, Experts(experts)).to(DEVICE, DTYPE).eval()

    fixed, variable = block_of("linear"), block_of("anyexperts")
    importance = variable.router.importance_network
    assert importance is not None
    nn.init.normal_(importance.get_submodule("outer").get_parameter("weight"))  # so that importance differs from token to token
    forward_pass = half_image(T)
    x_BSD = torch.randn(1, T, D, device=DEVICE, dtype=DTYPE)

    @torch.inference_mode()
    def forward(block: EvoMoEBlock) -> None:
        with running(forward_pass):
            block(x_BSD)

    def rows() -> int:
        """How many rows the experts' FFNs compute in one pass: those of real slots, and no others."""
        computed: list[int] = []
        hooks = [expert.register_forward_hook(lambda _, given, __: computed.append(len(given[0]))) for expert in experts]
        forward(variable)
        for hook in hooks:
            hook.remove()
        with torch.inference_mode():
            routing = variable.router.route(x_BSD[0], forward_pass.modality, K, "straight_through")
        assert sum(computed) == int((routing.index_TK < E).sum())
        return sum(computed)

    for share, limit in ((1.0, 1.02), (0.6, 0.70)):
        low, high = 1.0, float(E - 4)
        for _ in range(20):
            budget = (low + high) / 2
            variable.router.options = replace(variable.router.options, budget=budget)
            low, high = (low, budget) if rows() > share * K * T else (budget, high)
        label = f"AnyExperts, {rows() / T:.2f} real experts per token / top-{K} of {E} (D {D}, F {F}), {T} tokens, forward"
        yield compare(label, lambda: forward(variable), lambda: forward(fixed), rounds, limit)


def answering(rounds: int) -> Iterator[Ratio]:
    """The demo's model on easy-VQA, about ten questions a picture: in batches with each picture encoded once, against other ways."""
    everything = easy_vqa.questions("test")
    shown = set(sorted({question.image_path for question in everything})[:10])
    asked = [ask(question) for question in questions(question for question in everything if question.image_path in shown)]
    model, processor = moved(load_model(DENSE_MODEL), DEVICE), load_processor(DENSE_MODEL)

    def answer(batch_size: int, encode_once: bool):
        def run() -> None:
            answerer = Answerer(model, BENCHMARK.max_new_tokens, encode_once)
            for _ in answerer.answer(Prompts(asked, processor, batch_size), label=None):
                pass
            if encode_once and answerer.encoded != len(shown):
                raise RuntimeError(f"{answerer.encoded} pictures were encoded, not {len(shown)}.")

        return run

    label = f"{len(asked)} questions on {len(shown)} pictures, batches of 32, pictures encoded once"
    yield compare(f"{label} / one by one", answer(32, True), answer(1, False), max(3, rounds // 4))
    yield compare(f"{label} / encoded for each question", answer(32, True), answer(32, False), rounds)


def decoding(rounds: int) -> Iterator[Ratio]:
    """``generate`` of 32 tokens, batch 1: a language model whose eight FFNs are all sparse (E 4, top-1) against the dense one.

    Once with the prompt in the cache, so that every pass decodes one token, and once with it: a prompt of 16 tokens reads all
    experts where a dense model reads one FFN.
    """
    config = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, vocab_size=8192)
    dense = moved(LlamaForCausalLM(config), DEVICE, DTYPE).eval()
    ids_BS = torch.randint(0, 8000, (1, 16), device=DEVICE)

    def answer(model: PreTrainedModel, cache: DynamicCache | None = None) -> None:
        generate: Any = model.generate
        generate(
            input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), past_key_values=cache, max_new_tokens=32, min_new_tokens=32,
            do_sample=False,
        )  # fmt: skip
        if cache is not None:
            cache.crop(ids_BS.shape[1] - 1 - cache.get_seq_length())

    def decode(model: PreTrainedModel) -> Callable[[], None]:
        cache = DynamicCache(config=model.config.get_text_config())
        with torch.no_grad():
            model(input_ids=ids_BS[:, :-1], past_key_values=cache)
        return lambda: answer(model, cache)

    for router, limit in (("linear", 1.05), ("dtr", 1.30)):
        sparse = upcycle(deepcopy(dense), router=router, moe_layers="all").eval()
        label = f"{router}, all of 8 layers sparse / dense (D 512, F 1408), generate, 32 tokens, batch 1"
        yield compare(f"{label}, prompt in the cache", decode(sparse), decode(dense), rounds, limit)
        yield compare(label, lambda model=sparse: answer(model), lambda: answer(dense), rounds)


def data_check(_rounds: int, number: int = 100_000) -> Iterator[str]:
    """CPU time to check records before training, each with one of 4,000 pictures: the records alone, their labels too, all again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for n in range(4_000):
            Image.new("RGB", (64, 64), (n % 256, n // 256, 0)).save(folder / f"{n}.png")
        asked = {"from": "human", "value": "<image>\nwhat color is the shape?"}
        rows = [{"image": f"{n % 4_000}.png", "conversations": [asked, {"from": "gpt", "value": "blue"}]} for n in range(number)]
        (folder / "data.json").write_text(json.dumps(rows))
        processor = load_processor(DENSE_MODEL)
        begin = time.process_time()
        records = load_records(folder / "data.json", folder)
        loaded = time.process_time()
        ConversationDataset(records, processor).check()
        checked = time.process_time()
        ConversationDataset(load_records(folder / "data.json", folder), processor).check()
        again = time.process_time()
    yield (
        f"{number:,} records with pictures checked: {loaded - begin:.1f} s of CPU (limit 60); with chat template, labels and "
        f"lengths {checked - begin:.1f} s; a second time {again - checked:.1f} s"
    )


def command_line(_rounds: int) -> Iterator[str]:
    """CPU time of ``evomoe --help``, and what ``import evomoe`` loads. With bytecode kept, as an installation keeps it."""
    import resource

    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def cpu_seconds(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=kept)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    cpu_seconds("-m", "evomoe.cli", "--help")  # writes what bytecode is missing
    times = sorted(cpu_seconds("-m", "evomoe.cli", "--help") for _ in range(5))
    yield f"evomoe --help: {times[2]:.2f} s of CPU (limit 0.50), {times[0]:.2f} to {times[-1]:.2f} over 5 runs"
    code = "import sys, evomoe; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    yield f"import evomoe loads torch, transformers: {out.strip()}"


BENCHMARKS = (
    block_against_dense,
    router_against_dense,
    evolution_step,
    gradient_of_all_experts,
    variable_slots,
    decoding,
    answering,
    data_check,
    command_line,
)


def main() -> None:
    names = [benchmark.__name__ for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "only", nargs="*", choices=[[], *names], metavar="NAME", help=f"which to run, by default all: {', '.join(names)}"
    )
    chosen = parser.parse_args().only or names
    torch.manual_seed(0)
    prepare(DEVICE)
    rounds = 12 if DEVICE.type == "cpu" else 50
    begin = time.perf_counter()
    print(f"{machine()}, {DTYPE}")
    for benchmark in BENCHMARKS:
        if benchmark.__name__ in chosen:
            for result in benchmark(rounds):
                print(result, flush=True)
    print(f"{Path(__file__).name}: {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
