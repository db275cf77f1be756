"""The plain baseline at a size that two CPU cores train in minutes; every experiment starts from it."""

from jaxformer.experiment import (
    AttentionConfig,
    CheckpointConfig,
    CorpusConfig,
    EvaluationConfig,
    Experiment,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    PackingConfig,
    TokenizerConfig,
    TrackingConfig,
    TrainingConfig,
)

EXPERIMENT = Experiment(
    question="How well does a plain decoder of 1.3 million parameters learn Python from the standard library?",
    init_from="",  # trained weights to start from: a run, RUN/checkpoints/STEP or a Hugging Face folder; '': drawn
    model=ModelConfig(
        vocabulary_size=4096,  # tokens
        width=128,  # features of the residual stream
        depth=4,  # blocks
        heads=4,  # query heads
        key_value_heads=0,  # heads; 0: as many as query heads
        head_width=0,  # features; 0: width / heads
        feed_forward_width=0,  # features; 0: 4 x width
        activation="gelu",  # gelu, swiglu or relu2
        norm="rmsnorm",  # rmsnorm or layernorm
        norm_epsilon=1e-6,  # mean square
        rope_base=10_000.0,  # base of the rotary wavelengths, positions
        learned_positions=0,  # positions; 0: rotary
        sliding_window=0,  # tokens; 0: all of the document so far
        window_pattern="",  # letters S, with the window, and L, without, over again; '': all layers
        qk_norm=False,
        tied_embeddings=True,
        logit_soft_cap=0.0,  # logits; 0: none
        z_loss=0.0,  # coefficient; 0: none
        attention=None,  # your own part; None: the model's
        feed_forward=None,  # your own part; None: the model's
        residual=None,  # your own part; None: added
        auxiliary_loss=None,  # your own part; None: none
        scaling=None,  # your own part; None: the default
        scan_unroll=0,  # blocks per iteration; 0: chosen for the device
        loss_chunk_tokens=0,  # tokens; 0: chosen for the device
        loss="auto",  # auto, xla or pallas, or a tile of pallas, such as pallas:128x128x64x8x3
        remat="auto",  # auto, none, elementwise, feed_forward or block
    ),
    corpus=CorpusConfig(
        kind="pystdlib",  # pystdlib, text, jsonl, parquet, tfds, mixture, or a Reader of your own
        path="",  # file, folder, glob or TFDS name
        split="train",  # of a TFDS dataset
        text_field="text",  # of a record
        key_field="",  # of a record; '': a digest of its text
        origin="",  # '': the path
        licence="",  # '': as the corpus states
        validation_share=0.05,  # share of the documents
        tokens=0,  # training tokens to prepare, in reading order; 0: all
        decontaminate=False,  # True: without documents that contain items of the tasks
        weight=1.0,  # share of the rows, relative to the other parts of a mixture
        parts=(),  # corpora of a mixture
        skip_bad_records=0.0,  # share of the records that may be bad and left out; 0: the first ends it
    ),
    tokenizer=TokenizerConfig(
        path="",  # a SentencePiece .model, a tokenizer.json or a model of the Hub; '': train one
        vocabulary_size=4096,  # tokens
        model_type="bpe",  # bpe or unigram
        training_bytes=50_000_000,  # bytes of text
        processes=0,  # that tokenise and write shards; 0: one per processor
    ),
    packing=PackingConfig(
        row_length=256,  # tokens
        method="best_fit",  # best_fit or concat_and_split
        documents_per_row=0,  # documents; 0: no bound
        document_mask=True,  # False: the documents of a training row see one another
        minimum_fill=0.9,  # share of a row's tokens that are text
        reader_threads=1,  # threads
        reader_buffer=8,  # batches
    ),
    attention=AttentionConfig(
        implementation="auto",  # auto, xla, pallas or cudnn_packed
    ),
    optimizer=OptimizerConfig(
        name="adamw",  # adamw, muon, or an Optimizer
        learning_rate=4e-3,  # per step, at its peak
        schedule="cosine",  # cosine or wsd
        warmup_steps=100,  # steps
        decay_share=0.2,  # share of the steps, at the end; of wsd
        final_learning_rate_share=0.1,  # share of the peak
        b1=0.9,  # decay per step
        b2=0.95,  # decay per step
        epsilon=1e-8,  # of AdamW's denominator
        muon_momentum=0.95,  # decay per step; of muon
        weight_decay=0.1,  # per unit of learning rate
        decay="matrices",  # matrices, or a Decay
        clip_norm=1.0,  # global norm of the gradient
        embedding_rate=1.0,  # factor of the learning rate
        unembedding_rate=1.0,  # factor of the learning rate; of untied embeddings
        matrix_rate=1.0,  # factor of the learning rate
        gain_rate=1.0,  # factor of the learning rate
    ),
    training=TrainingConfig(
        steps=1600,  # updates
        rows_per_step=4,  # rows
        phases=(),  # other batches from a step on
        micro_batches=1,  # parts of a batch; 0: chosen for the device's memory
        compute_dtype="auto",  # auto, float32 or bfloat16
        skip_spikes_above=0.0,  # standard deviations of the last losses; 0: skip none
        device="auto",  # auto, cpu or gpu
        startup_proof=True,  # before the first step
        log_every_steps=20,  # steps
        peak_tflops=0.0,  # TFLOP/s; 0: looked up
        profile="",  # FIRST:LAST, steps; '': none
    ),
    checkpoint=CheckpointConfig(
        every_steps=400,  # steps
        keep=3,  # newest checkpoints
        keep_every_steps=0,  # steps; 0: none for good
        keep_best=True,  # by validation loss
    ),
    evaluation=EvaluationConfig(
        every_steps=400,  # steps
        validation_bytes=150_000,  # bytes of text; 0: all
        rows_per_batch=8,  # rows
        task_data="",  # a folder, or tfds; '': no tasks
        tasks="hellaswag,arc_easy,winogrande",  # or a tuple of names and of Tasks of your own
        task_items=500,  # items of each task before the last step; 0: none
        sample_tokens=200,  # tokens
    ),
    tracking=TrackingConfig(
        to="",  # tensorboard, trackio, wandb, several with commas between; '': none
        project="jaxformer",  # at trackio and Weights & Biases
    ),
    mesh=MeshConfig(
        data=1,  # devices, or groups of them, with all parameters each; 0: as many as there are
        fsdp=1,  # devices that share the parameters; 0: as many as there are
        processes=1,  # processes, each with devices of its own
    ),
)
