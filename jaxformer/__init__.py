"""Pretraining of small decoder-only transformers on one GPU or a few, to decide by evidence.

The modules in the order in which data flows; each imports only from those above it:

    config             how a configuration is declared, checked, overridden and compared
    screen             lines for a person, which stop no run
    closing            what is closed at the end of a `with` block
    files              files that are whole or absent
    lock               locks that name who holds them
    cache              where what is made once is kept: complete or absent
    remote             files elsewhere, read with patience
    storage            the files of a corpus: found, told apart, opened
    records            records of JSON lines, Parquet and TFDS, with their places
    documents          documents of each kind of source: texts with keys
    corpus             documents in, in a fixed order, with origin, licence and digest
    tokenizer          text to ids and back with SentencePiece, lossless
    items              rows of tasks to questions in cloze form
    tasks              tasks by a versioned specification, and their data
    shards             token ids on disk, verified and read
    units              a corpus in units of work: tokenised once each, whole or absent
    selection          which documents are kept, and in which split
    shard_files        selected documents to shard files, by TFDS, here or over Apache Beam
    preparation        documents to token shards, once, by one machine or by many
    row_fitting        lengths to pieces, and pieces to rows
    packing            token documents to packed rows and batches, resumable
    document_mask      the mask as two integers per token
    timing             how long functions take on the device
    mesh               where arrays live on more than one device, and what is summed over them
    processes          the processes of one run, and what they tell each other
    flash_kernels      the kernels of flash attention by documents
    flash              those kernels on Pallas-Triton, with their gradient
    cudnn              attention by cuDNN
    attention_support  which implementation a device and the shapes admit
    attention_trial    how right and how fast an implementation is
    einsum_attention   attention by einsum and a mask, the reference
    attention          document-masked causal attention, one contract
    model              the architecture, whole
    loss               cross-entropy as sums, without all logits at once
    optimizer          schedule and Optax chain
    guard              which steps count: finite ones, and no spikes
    step               the pure training step
    startup_proof      what is proved on the first batch
    fingerprint        by which a change of any bit is noticed
    retention          which checkpoints are kept
    checkpoint_store   steps on disk: saved in the background, whole or absent
    checkpoint         training states saved, verified and restored
    flops              parameters, operations of a step, and the peaks of devices
    metrics            scalars to JSON lines and TensorBoard
    progress           what a person sees of a run
    cloze              the log-likelihood of continuations
    scores             log-likelihoods to accuracies and smooth measures, with standard errors
    evaluate           validation by document, and tasks by item
    generate           sampling with a key/value cache
    experiment         all configurations of a run as one value
    memory_share       which share of a GPU's memory JAX takes
    device             the device that was asked for, and its memory
    memory             the memory of a step at its peak, by formula
    memory_fit         what a step recomputes, and its parts, so that it fits the device
    experiment_files   files of experiments, found and run
    consequences       what must follow a change for the comparison to be fair
    variant            questions: an experiment as one change of another
    data               the data of a run, prepared and planned
    plan               what a run will cost
    overview           what a run says of itself at its start
    sources            the sources that decide a run's numbers, as a digest
    run_folder         the folder of a run, and its files
    identity           what identifies a run, and refuses another in its place
    results            what evaluations leave: tables and files
    fault              a failed step as a file, to be replayed
    trained            a trained model, from its run folder alone
    harness            a run as a model of lm-evaluation-harness
    stop_signals       SIGINT and SIGTERM, at once or after saving
    loop               the steps of a run, one after another
    command_line       options, and overrides of any field
    train              the run and the command
    looks              after how many seeds a comparison is looked at, and at which level
    variance_prior     what other comparisons say of the variance of one
    statistics         by how much two arms differ, over seeds and items
    power              how probably an effect is seen, and how many seeds that takes
    significance       p-values of counts, and of many comparisons
    evidence           what runs leave for a comparison
    comparable         whether runs can be compared
    noise_floor        how much runs differ by their seeds alone
    cost               what a variant costs, and what its gain is worth
    verdict            the rule by which a change is kept, reverted or asked again
    compare            a variant beside its parent
    launch             jobs, and how one is started
    queue              many runs, each a process of its own
    board              what a person sees of a queue
    early_stopping     ending a variant that is clearly worse
    study              several variants of one parent, and what came out
    notation           how numbers, intervals and texts are written for a reader
    answers            the questions of a study, each with what is known of its answer
    facts              what a study found, as the words and numbers that texts share
    decisions          what a study decided, as a table of text
    canvas             what pictures are drawn on: style, colours, PNG and SVG
    forest             the forest plot
    curves             loss curves, and what pairing pays
    graph_layout       where the boxes and edges of a graph go
    graph              the graph of ablations
    returns            what a study returned for its hours and its complexity
    pictures           the pictures of a study, each with its heading and caption
    stylesheet         how the page of a study looks
    page               a study as one HTML page
    markdown           a study as a Markdown file
    report             page, pictures and Markdown in a folder
"""
