"""Names of fields in other libraries, and the hint that the command line gives for them."""

from collections.abc import Iterable

from jaxformer.config import did_you_mean

# Names in nanoGPT, Hugging Face's transformers and papers, by the field here.
CUSTOMARY = {
    "model.vocabulary_size": "vocab_size n_vocab",
    "tokenizer.vocabulary_size": "vocab_size n_vocab",
    "model.width": "n_embd d_model hidden_size n_embed embed_dim emb_dim embedding_dim dim hidden_dim",
    "model.depth": "n_layer n_layers num_layers num_hidden_layers layers blocks num_blocks",
    "model.heads": "n_head n_heads num_heads num_attention_heads attention_heads",
    "model.key_value_heads": "n_kv_head n_kv_heads num_kv_heads num_key_value_heads kv_heads",
    "model.head_width": "head_dim head_size d_head d_kv",
    "model.feed_forward_width": "intermediate_size d_ff ffn_dim n_inner mlp_dim ffn_hidden_size",
    "model.activation": "hidden_act activation_function act act_fn",
    "model.norm_epsilon": "rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps",
    "model.rope_base": "rope_theta theta",
    "model.sliding_window": "window window_size attention_window",
    "model.tied_embeddings": "tie_word_embeddings tie_embeddings weight_tying",
    "model.logit_soft_cap": "softcap final_logit_softcapping logit_softcap",
    "model.remat": "gradient_checkpointing activation_checkpointing checkpointing",
    "corpus.path": "dataset dataset_name data data_path data_dir train_file",
    "corpus.validation_share": "val_split val_share validation_split validation_split_percentage",
    "corpus.text_field": "text_column",
    "packing.row_length": "block_size context_length context seq_len seq_length sequence_length max_seq_len "
    "max_seq_length max_length n_positions n_ctx max_position_embeddings",
    "optimizer.learning_rate": "lr max_lr peak_lr base_lr",
    "optimizer.final_learning_rate_share": "min_lr min_lr_ratio final_lr",
    "optimizer.schedule": "lr_scheduler_type lr_scheduler lr_schedule scheduler",
    "optimizer.warmup_steps": "warmup warmup_iters num_warmup_steps warmup_ratio",
    "optimizer.b1": "beta1 adam_beta1 beta_1",
    "optimizer.b2": "beta2 adam_beta2 beta_2",
    "optimizer.epsilon": "eps adam_epsilon adam_eps",
    "optimizer.weight_decay": "wd",
    "optimizer.clip_norm": "grad_clip max_grad_norm clip gradient_clip gradient_clip_val clip_grad_norm",
    "optimizer.name": "optim optimizer_type",
    "training.steps": "max_iters max_steps num_steps total_steps train_steps num_train_steps n_steps iters iterations "
    "lr_decay_iters epochs num_epochs num_train_epochs",
    "training.rows_per_step": "batch_size batch train_batch_size per_device_train_batch_size global_batch_size",
    "training.micro_batches": "gradient_accumulation_steps grad_accum grad_accum_steps accumulation_steps",
    "training.compute_dtype": "dtype precision mixed_precision bf16 fp16",
    "training.log_every_steps": "log_interval logging_steps log_every",
    "checkpoint.every_steps": "save_steps save_interval save_every checkpoint_every checkpoint_interval",
    "checkpoint.keep": "save_total_limit",
    "evaluation.every_steps": "eval_interval eval_steps eval_every",
    "evaluation.validation_bytes": "eval_iters",
    "workdir": "out_dir output_dir",
}

# The unit here, for names with another unit there.
_UNITS = {
    "min_lr": "a share of learning_rate",
    "final_lr": "a share of learning_rate",
    "warmup_ratio": "steps, not a share of them",
    "epochs": "steps, not epochs",
    "num_epochs": "steps, not epochs",
    "num_train_epochs": "steps, not epochs",
    "eval_iters": "bytes of text, not batches",
    "validation_split_percentage": "a share, not a percentage",
    "per_device_train_batch_size": "rows of all devices",
}

# What this library lacks.
_ABSENT = ("dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout", "bias")


def suggest(word: str, known: Iterable[str]) -> str:
    """Returns `did_you_mean` for a field or an option, also for its name elsewhere, with its unit if that differs.

    For what this library lacks, returns '; there is no X'.
    """
    known, name = [*known], word.lstrip("-").lower().replace("-", "_").rpartition(".")[2]
    if name in _ABSENT and not any(f".{each.lstrip('-')}".endswith(f".{name}") for each in known):
        return f"; there is no {name}"
    ours = [one for one, theirs in CUSTOMARY.items() if name in theirs.split()]
    return did_you_mean(word, known, also=ours, unit=_UNITS.get(name, ""))
