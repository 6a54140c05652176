"""Which model types `tools/model_matrix.py` has found right; the others are tried before a run."""

from transformers import PretrainedConfig

from rlhf_ppo.errors import UserError

POLICIES = {
    "afmoe", "apertus", "arcee", "bamba", "biogpt", "bitnet", "bloom", "codegen", "cohere",
    "cohere2", "ctrl", "cwm", "dbrx", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1",
    "ernie4_5", "ernie4_5_moe", "exaone4", "falcon", "falcon_h1", "falcon_mamba", "flex_olmo",
    "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neo",
    "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "granitemoe", "granitemoehybrid",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jamba", "jetmoe", "lfm2",
    "lfm2_moe", "llama", "llama4_text", "mamba", "mamba2", "minicpm3", "minimax", "ministral",
    "mistral", "mixtral", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo",
    "olmo2", "olmo3", "olmo_hybrid", "olmoe", "openai-gpt", "opt", "persimmon", "phi", "phi3",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_5_text", "qwen3_moe", "qwen3_next",
    "recurrent_gemma", "rwkv", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2",
    "vaultgemma", "xglm", "xlstm", "youtu", "zamba", "zamba2",
}  # fmt: skip
REWARD_MODELS = {
    "albert", "bert", "bloom", "deberta", "deberta-v2", "distilbert", "electra", "eurobert",
    "falcon", "gemma", "gemma2", "gpt2", "gpt_neox", "gpt_oss", "gptj", "jamba", "llama", "mistral",
    "mixtral", "modernbert", "mpnet", "opt", "phi3", "qwen2", "qwen3", "qwen3_next", "roberta",
    "xlm-roberta", "xlnet",
}  # fmt: skip


def check_kind(config: PretrainedConfig, setting: str) -> None:
    """Refuse what cannot work by its design: an encoder with a decoder, attention by chance.

    Raises:
        UserError: names the model type.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"{setting}: model type {config.model_type} has an encoder and a decoder, which is not "
            "supported: a conversation is one sequence here. Choose a decoder; as a reward model "
            "an encoder will do too."
        )
    if config.model_type == "reformer":
        raise UserError(
            f"{setting}: model type reformer attends by hashes drawn at random, so two passes over "
            "the same tokens differ. Choose another family."
        )
