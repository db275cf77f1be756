"""Pretraining of small decoder-only transformers on one GPU, to decide by evidence.

The modules in the order in which data flows; each imports only from those above it:

    config             how a configuration is declared, checked, overridden and compared
    cache              where what is made once is kept: complete or absent
    corpus             documents in, in a fixed order, with origin, licence and digest
    tokenizer          text to ids and back with SentencePiece, lossless
    shards             documents to token ids on disk, once, verified
    row_fitting        lengths to pieces, and pieces to rows
    packing            token documents to packed rows and batches, resumable
    document_mask      the mask as two integers per token
    timing             how long functions take on the device
    flash_kernels      the kernels of flash attention by documents
    flash              those kernels on Pallas-Triton, with their gradient
    cudnn              attention by cuDNN
    attention_support  which implementation a device and the shapes admit
    attention_trial    how right and how fast an implementation is
    attention          document-masked causal attention, one contract
    model              the architecture, whole
    loss               cross-entropy as sums, without all logits at once
    optimizer          schedule and Optax chain
    step               the pure training step
    checkpoint         save and restore with Orbax
    metrics            scalars to screen, JSON lines and TensorBoard
    evaluate           validation in nats and bits per byte
    generate           sampling with a key/value cache
    experiment         the record of one question
    data               the data of a run, prepared and planned
    plan               what a run will cost
    run_folder         what identifies a run, and its files
    train              the loop and the command
"""
