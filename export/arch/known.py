"""The models that become GGUF, under the names that people know them by: one for each row of the table."""

from __future__ import annotations

from dataclasses import dataclass

from lorafold.export.arch.asked import NEVER_ASKED
from lorafold.export.arch.table import ARCHITECTURES
from lorafold.export.arch.wrappers import HEADLESS, WRAPPERS

# Models that people know, by the class that their config.json names.
KNOWN_MODELS = {
    "LlamaForCausalLM": "Llama 2, 3, 3.1, 3.2 (text), 3.3; DeepSeek-LLM; Yi; Vicuna; TinyLlama; SmolLM2",
    "MistralForCausalLM": "Mistral 7B and its relatives",
    "MixtralForCausalLM": "Mixtral 8x7B, 8x22B",
    "SmolLM3ForCausalLM": "SmolLM3",
    "IndexForCausalLM": "Index-1.9B",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5, QwQ; DeepSeek-R1-Distill-Qwen",
    "Qwen2MoeForCausalLM": "Qwen1.5-MoE, Qwen2-57B-A14B",
    "Qwen3ForCausalLM": "Qwen3, dense sizes",
    "Qwen3MoeForCausalLM": "Qwen3-30B-A3B, Qwen3-235B-A22B",
    "Qwen3NextForCausalLM": "Qwen3-Next-80B-A3B",
    "Qwen3_5ForCausalLM": "Qwen3.5 and 3.6, dense sizes (text part, with MTP)",
    "Qwen3_5MoeForCausalLM": "Qwen3.5 and 3.6 with experts (text part, with MTP)",
    "GptOssForCausalLM": "gpt-oss-20b, 120b, from 16-bit weights",
    "DeepseekV2ForCausalLM": "DeepSeek-V2-Lite, DeepSeek-Coder-V2-Lite",
    "DeepseekV3ForCausalLM": "DeepSeek-V3, R1, from 16-bit weights",
    "Glm4MoeLiteForCausalLM": "GLM-4.7-Flash, with MTP",
    "Gemma4ForConditionalGeneration": "Gemma 4, dense, E2B, E4B and with experts (text part)",
    "GraniteMoeHybridForCausalLM": "Granite 4.0 hybrid: H-Micro, H-Tiny, H-Small",
    "Phi3ForCausalLM": "Phi-3, Phi-3.5-mini, Phi-4",
    "Glm4ForCausalLM": "GLM-4-0414",
    "Glm4MoeForCausalLM": "GLM-4.5, GLM-4.5-Air, GLM-4.6",
    "GraniteForCausalLM": "Granite 3",
    "Olmo2ForCausalLM": "OLMo 2",
    "Gemma2ForCausalLM": "Gemma 2",
    "Gemma3ForCausalLM": "Gemma 3 (of the larger ones the text part)",
    "InternLM2ForCausalLM": "InternLM2, InternLM2.5",
    "GPT2LMHeadModel": "GPT-2",
    "Ministral3ForCausalLM": "Ministral 3; Mistral Small 3.1 and 3.2 (text part)",
    "ArceeForCausalLM": "AFM-4.5B",
    "SeedOssForCausalLM": "Seed-OSS-36B",
    "Exaone4ForCausalLM": "EXAONE 4.0 1.2B, 32B",
    "HunYuanDenseV1ForCausalLM": "Hunyuan 0.5B, 1.8B, 4B, 7B (dense)",
    "Ernie4_5ForCausalLM": "ERNIE-4.5-0.3B",
    "Ernie4_5_MoeForCausalLM": "ERNIE-4.5-21B-A3B, 300B-A47B",
    "Dots1ForCausalLM": "dots.llm1",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL, Qwen2.5-VL (text part)",
    "Qwen3VLForConditionalGeneration": "Qwen3-VL, dense sizes (text part)",
    "PhiForCausalLM": "Phi-1, Phi-1.5, Phi-2",
    "GraniteMoeForCausalLM": "Granite 3 1B-A400M, 3B-A800M",
    "OlmoForCausalLM": "OLMo 1",
    "Olmo3ForCausalLM": "OLMo 3",
    "OlmoeForCausalLM": "OLMoE-1B-7B",
    "GemmaForCausalLM": "Gemma 1, CodeGemma",
    "CohereForCausalLM": "Command R, Command R+, Aya 23",
    "Cohere2ForCausalLM": "Command R7B, Command A",
    "Starcoder2ForCausalLM": "StarCoder2",
    "StableLmForCausalLM": "StableLM 2, StableLM Zephyr",
    "NemotronForCausalLM": "Nemotron-4, Minitron",
    "ApertusForCausalLM": "Apertus 8B, 70B",
    "AfmoeForCausalLM": "Trinity (Arcee's AFM with experts)",
    "BloomForCausalLM": "BLOOM, BLOOMZ",
    "Cohere2MoeForCausalLM": "Command A with experts, North Mini Code",
    "Exaone4_5_ForConditionalGeneration": "EXAONE 4.5 (text part)",
    "ExaoneMoeForCausalLM": "K-EXAONE",
    "FalconForCausalLM": "Falcon 7B, 40B, 180B, Falcon 2",
    "FalconH1ForCausalLM": "Falcon-H1",
    "FalconMambaForCausalLM": "Falcon Mamba",
    "GPTBigCodeForCausalLM": "StarCoder, SantaCoder",
    "GPTNeoXForCausalLM": "GPT-NeoX, Pythia, Dolly 2",
    "Gemma3nForCausalLM": "Gemma 3n E2B, E4B (text part), as released",
    "GlmForCausalLM": "GLM-4-9B (`-hf`), GLM-Edge",
    "Glm4vForConditionalGeneration": "GLM-4.1V, GLM-OCR (text part)",
    "Glm4vMoeForConditionalGeneration": "GLM-4.5V (text part)",
    "GraniteSWAForCausalLM": "Granite with windows",
    "GraniteMoeSWAForCausalLM": "Granite with windows and experts",
    "HYV3ForCausalLM": "Hy3",
    "HunYuanMoEV1ForCausalLM": "Hunyuan-A13B",
    "HunYuanVLForConditionalGeneration": "HunyuanOCR (text part)",
    "Jais2ForCausalLM": "Jais 2",
    "JambaForCausalLM": "Jamba",
    "LagunaForCausalLM": "Laguna",
    "Llama4ForConditionalGeneration": "Llama 4 Scout, Maverick (text part)",
    "MambaForCausalLM": "Mamba",
    "Mamba2ForCausalLM": "Mamba 2, Codestral Mamba",
    "MellumForCausalLM": "Mellum 2",
    "MiniCPM3ForCausalLM": "MiniCPM3-4B",
    "MiniMaxM2ForCausalLM": "MiniMax-M2",
    "MptForCausalLM": "MPT 7B, 30B",
    "MuseGlimmerForConditionalGeneration": "Muse Glimmer (text part)",
    "PaddleOCRVLForConditionalGeneration": "PaddleOCR-VL (text part)",
    "PhimoeForCausalLM": "Phi-3.5-MoE, nearly: llama.cpp normalises in another way",
    "Qwen3ASRForConditionalGeneration": "Qwen3-ASR (text part)",
    "Qwen3VLMoeForConditionalGeneration": "Qwen3-VL with experts (text part), as released",
    "SolarOpenForCausalLM": "Solar Open",
    "YoutuForCausalLM": "Youtu-LLM",
    # Of two rows, which llama.cpp knows by two names.
    "NemotronHForCausalLM": "Nemotron-H, Nemotron Nano 2 and 3, without their MTP layers",
    "Lfm2ForCausalLM": "LFM2, LFM2.5, dense sizes",
    "Lfm2MoeForCausalLM": "LFM2-8B-A1B",
}


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A row of the list.

    Args:
        models: names that people know.
        classes: that config.json names under `architectures`.
        gguf: llama.cpp's name of the architecture, or how it is found.
        adapter: which weights an adapter GGUF can change.
    """

    models: str
    classes: tuple[str, ...]
    gguf: str
    adapter: str


def known_models(word: str = "") -> list[KnownModel]:
    """What becomes a GGUF from its own files.

    Args:
        word: only rows that hold it, in any case; all by default.
    """
    rows = [
        KnownModel(KNOWN_MODELS[row.classes[0]], row.classes, row.gguf, _carried(row.gguf))
        for row in ARCHITECTURES
    ]
    wrapped = "the text part of what wraps another model"
    rows.append(KnownModel(wrapped, tuple(sorted(WRAPPERS)), "by the class inside", "likewise"))
    headless = "embedding models: the model without its head, with its pooling"
    rows.append(KnownModel(headless, tuple(sorted(HEADLESS)), "by the class with a head", "likewise"))
    wanted = word.casefold()
    return [row for row in rows if wanted in " ".join((row.models, *row.classes, row.gguf)).casefold()]


def _carried(gguf: str) -> str:
    never = NEVER_ASKED.get(gguf)
    return "all" if never is None else f"all but {never.words}"
